# `make` alone lists the targets. The only prerequisites are Python 3.11 or newer and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.installed
AZURITE := tools/azurite/node_modules/.installed

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: install ## the whole workflow on this machine, with proof that nothing was lost or doubled
	@$(BIN)/python tools/demo.py

.PHONY: test
test: install ## unit tests, integration and failure tests against Azurite
	@$(BIN)/pytest -n 3

.PHONY: soak
soak: install ## random faults for MINUTES=5, with proof that nothing was lost or doubled and no memory grew
	@$(BIN)/python tools/soak.py --minutes $(or $(MINUTES),5)

.PHONY: lint
lint: install ## formatter, linter, types, shell scripts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy app/edw app/handler.py tools/*.py
	@$(BIN)/shellcheck $$(git ls-files | xargs grep -lE '^#!.*(bash|sh)$$')

.PHONY: install
install: $(DEPENDENCIES) $(AZURITE) ## the Python packages into .venv, Azurite into tools/azurite/node_modules

$(DEPENDENCIES): requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$$($(PYTHON) --version) is too old: Python 3.11 or newer is needed (make PYTHON=python3.12 …)"; exit 1; }
	@echo "Installing the Python packages into $(VENV) (once)"
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes \
		-r requirements.txt -r requirements-dev.txt
	@touch $@

$(AZURITE): tools/azurite/package-lock.json | $(DEPENDENCIES)
	@echo "Installing Azurite into tools/azurite (once)"
	@$(BIN)/npm ci --prefix tools/azurite --ignore-scripts --no-audit --no-fund --loglevel error
	@touch $@

.PHONY: lock
lock: install ## compile requirements*.txt and the lock file of Azurite anew
	@$(BIN)/pip install --quiet uv==0.13.9
	@for name in requirements requirements-dev; do \
		$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
			--custom-compile-command 'make lock' $$name.in --output-file $$name.txt; done
	@$(BIN)/npm install --prefix tools/azurite --package-lock-only --omit-lockfile-registry-resolved --ignore-scripts

.PHONY: clean
clean: ## remove what make has installed and what the tools have cached
	rm -rf $(VENV) tools/azurite/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
