"""What surrounds every program: where .env counts, and how wrong settings end."""

import os
import sys
from pathlib import Path

import pytest

from edw import program
from edw.settings import ProducerSettings


async def no_work(_: ProducerSettings) -> int:
    return program.DONE


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A working directory, an environment and a command line of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]})
    monkeypatch.setattr(sys, "argv", ["aqs-producer.py"])
    monkeypatch.setattr(program.log, "configure", lambda *_: None)


def test_a_dotenv_file_fills_what_is_missing_or_empty_and_nothing_else() -> None:
    Path(".env").write_text("AZURE_STORAGE_ACCOUNT_NAME=acct\nAZURE_QUEUE_NAME=theirs\nEDW_COUNT=3\nEDW_RATE=\n")
    os.environ.update(AZURE_QUEUE_NAME="mine", EDW_COUNT="")
    seen: list[ProducerSettings] = []

    async def look(settings: ProducerSettings) -> int:
        seen.append(settings)
        return program.DONE

    assert program.main(ProducerSettings, look) == 0
    assert (seen[0].storage_account_name, seen[0].queue_name, seen[0].count) == ("acct", "mine", 3)


def test_a_dotenv_file_that_cannot_be_read_ends_the_program_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    Path(".env").write_bytes(b"\xff\xfe")
    assert program.main(ProducerSettings, no_work) == 2
    said = capsys.readouterr().err
    assert said.startswith("aqs-producer.py: .env cannot be read:")
    assert said.count("\n") == 1


def test_wrong_settings_end_the_program_with_2_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(ProducerSettings, no_work) == 2
    assert capsys.readouterr().err.startswith("aqs-producer.py: not set: AZURE_QUEUE_NAME")
