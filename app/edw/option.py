"""Settings declared once: a dataclass field is an environment variable, a flag and a line of --help.

The flag follows from the variable: `EDW_HTTP_PORT` is `--http-port`. A flag wins over its variable, a
variable over the default; an empty variable counts as not set. Secrets have no flag, because a command
line can be read by every process of the machine. What is said anew at each call, as a command, is an
argument: it has no variable.
"""

import argparse
import dataclasses
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

Parser = Callable[[str], Any]
T = TypeVar("T")


class SettingsError(Exception):
    """Raised when settings are missing or wrong; the text is one line that names the variable."""


@dataclasses.dataclass(frozen=True)
class Option:
    """How one setting is given and explained. `parse` raises ValueError with the rule that was broken.

    `variable` is None for what only the command line gives; a `flag` without hyphens is known by its place there.
    """

    variable: str | None
    flag: str
    meaning: str
    parse: Parser
    default_text: str
    required: bool
    secret: bool

    @property
    def explained(self) -> str:
        default = self.default_text if self.default_text.startswith("required") else f"default: {self.default_text}"
        return f"{self.meaning} ({'; '.join(filter(None, (self.variable, default)))})"

    @property
    def is_positional(self) -> bool:
        return not self.flag.startswith("-")

    @property
    def is_switch(self) -> bool:
        return self.parse is switch


def option(
    variable: str,
    meaning: str,
    parse: Parser,
    *,
    default: Any = dataclasses.MISSING,
    default_text: str | None = None,
    secret: bool = False,
) -> Any:
    """A dataclass field that is a setting; without a default it is required."""
    flag = "--" + variable.partition("_")[2].lower().replace("_", "-")
    return _field(variable, flag, meaning, parse, default, default_text, secret)


def argument(
    flag: str, meaning: str, parse: Parser, *, default: Any = dataclasses.MISSING, default_text: str | None = None
) -> Any:
    """A dataclass field that only the command line gives: by its flag or, if that has no hyphens, by its place."""
    return _field(None, flag, meaning, parse, default, default_text, secret=False)


def _field(
    variable: str | None, flag: str, meaning: str, parse: Parser, default: Any, default_text: str | None, secret: bool
) -> Any:
    required = default is dataclasses.MISSING
    if default_text is None:
        default_text = "required" if required else str(default).lower() if parse is switch else str(default)
    declared = Option(variable, flag, meaning, parse, default_text, required, secret)
    return dataclasses.field(default=default, repr=not secret, metadata={"option": declared})


def options(settings: type) -> dict[str, Option]:
    """The options of a settings class by the name of their field."""
    return {field.name: field.metadata["option"] for field in dataclasses.fields(settings)}


def load(settings: type[T], argv: Sequence[str], environ: Mapping[str, str], *, epilog: str = "") -> T:
    """Settings from flags, then variables, then defaults.

    Raises SettingsError; --help prints and exits with 0.
    """
    flags = vars(_parser(settings, epilog).parse_args(argv))
    values: dict[str, Any] = {}
    missing: list[str] = []
    for name, opt in options(settings).items():
        given_by, text = opt.flag, flags.get(name)
        if text is None and opt.variable:
            given_by, text = opt.variable, environ.get(opt.variable) or None
        if text is None:
            missing += [opt.variable or opt.flag] if opt.required else []
            continue
        try:
            values[name] = opt.parse(text)
        except ValueError as error:
            shown = "" if opt.secret else f" {text!r}"
            named = given_by if opt.variable in (None, given_by) else f"{given_by} ({opt.variable})"
            raise SettingsError(f"{named}:{shown} {error}") from None
    if missing:
        raise SettingsError(f"not set: {', '.join(missing)} (--help explains every setting)")
    return settings(**values)


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise SettingsError(f"{message} (--help explains every setting)")


class _Help(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=110)


def _parser(settings: type, epilog: str) -> argparse.ArgumentParser:
    positional = "".join(f"{opt.flag} " for opt in options(settings).values() if opt.is_positional)
    parser = _OneLineParser(
        usage=f"%(prog)s [--help] {positional}[--setting VALUE ...]",
        description=inspect.getdoc(settings),
        epilog=epilog,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    for name, opt in options(settings).items():
        explained = opt.explained.replace("%", "%%")  # argparse formats what it shows
        if opt.secret:
            parser.epilog = f"{opt.variable} has no flag, because it is a secret:\n  {explained}\n\n{parser.epilog}"
        elif opt.is_positional:
            parser.add_argument(name, metavar=opt.flag, help=explained)
        elif opt.is_switch and not opt.variable:  # nothing that a value of false could take back
            parser.add_argument(opt.flag, dest=name, action="store_const", const="true", help=explained)
        elif opt.is_switch:
            parser.add_argument(opt.flag, dest=name, nargs="?", const="true", metavar="false", help=explained)
        else:
            parser.add_argument(opt.flag, dest=name, metavar="VALUE", help=explained)
    return parser


def text(value: str) -> str:
    if not value:
        raise ValueError("is empty")
    return value


def switch(value: str) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    if value.lower() not in known:
        raise ValueError("is neither true nor false")
    return known[value.lower()]


def integer(least: int, most: int) -> Parser:
    def parse(value: str) -> int:
        if not re.fullmatch(r"-?\d{1,18}", value, re.ASCII) or not least <= int(value) <= most:
            raise ValueError(f"is not a whole number from {least} to {most}")
        return int(value)

    return parse


def number(least: float, most: float) -> Parser:
    def parse(value: str) -> float:
        try:
            parsed = float(value)
        except ValueError:
            parsed = float("nan")
        if not least <= parsed <= most:
            raise ValueError(f"is not a number from {least:g} to {most:g}")
        return parsed

    return parse


def choice(*known: str) -> Parser:
    def parse(value: str) -> str:
        if value.lower() not in known:
            raise ValueError(f"is not one of {', '.join(known)}")
        return value.lower()

    return parse
