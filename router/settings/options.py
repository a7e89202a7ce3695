"""A struct's fields as command line flags, environment variables and keys of a TOML file.

Knows nothing of what the fields mean: each carries a `Flag` in its annotation, and the struct checks itself.
A value is taken from the flag, else the environment, else the file, else the struct's default.
"""

import argparse
import difflib
import enum
import functools
import tomllib
import types
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

S = TypeVar("S", bound=msgspec.Struct)

_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
}
_YES = ("1", "true", "yes", "on")
_NO = ("0", "false", "no", "off")


class ConfigError(ValueError):
    """A value that cannot be used. The message is one sentence that names field, value and bound."""

    def __init__(self, field: str, sentence: str):
        super().__init__(sentence)
        self.field = field


class Flag(msgspec.Struct, frozen=True):
    """How a field looks to a person: its group in --help, a line on it, its bounds, its other names."""

    group: str
    help: str
    at_least: float | None = None
    at_most: float | None = None
    aliases: tuple[str, ...] = ()
    env: str | None = None  # None: the field's name in capitals
    is_bytes: bool = False  # accepts 512MiB, 2GB
    is_secret: bool = False  # or may hold one: not to be shown to anybody


class Option(msgspec.Struct, frozen=True):
    """A field as it was declared: `kind` is str, int, float or bool, of which `is_many` are taken."""

    name: str
    flag: Flag
    kind: type
    is_many: bool
    choices: tuple[str, ...]
    default: Any

    @property
    def flag_name(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env_names(self) -> list[str]:
        return [self.flag.env or self.name.upper(), *(alias.upper() for alias in self.flag.aliases)]


@functools.cache
def options_of(struct: type[msgspec.Struct]) -> tuple[Option, ...]:
    """The declared options of a struct, in order. Fields without a `Flag` are not options."""
    hints = get_type_hints(struct, include_extras=True)
    declared = ((field, hints[field.name]) for field in msgspec.structs.fields(struct))
    return tuple(_option(field, hint) for field, hint in declared if hasattr(hint, "__metadata__"))


def _option(field: Any, hint: Any) -> Option:
    inner = hint.__origin__
    if get_origin(inner) in (Union, types.UnionType):
        inner = next(part for part in get_args(inner) if part is not type(None))
    is_many = get_origin(inner) is tuple
    kind = get_args(inner)[0] if is_many else inner
    choices = get_args(inner) if get_origin(inner) is Literal else ()
    if choices:
        kind = str
    elif issubclass(kind, enum.StrEnum):
        choices = tuple(member.value for member in kind)
    return Option(field.name, hint.__metadata__[0], kind, is_many, choices, field.default)


def check(values: msgspec.Struct) -> None:
    """Raises `ConfigError` for the first field that is out of its bounds or none of its choices."""
    for option in options_of(type(values)):
        value = getattr(values, option.name)
        for one in value if option.is_many else [value]:
            if one is not None:
                _check(option, one)


def _check(option: Option, value: Any) -> None:
    flag = option.flag
    if option.choices and value not in option.choices:
        raise ConfigError(option.name, f"{option.name} must be {_either(option.choices)}, not {value!r}.")
    if flag.at_least is not None and not value >= flag.at_least:  # not a number: neither of both
        raise ConfigError(option.name, f"{option.name} must be at least {flag.at_least}, not {value}.")
    if flag.at_most is not None and not value <= flag.at_most:
        raise ConfigError(option.name, f"{option.name} must be at most {flag.at_most}, not {value}.")


def read(struct: type[S], parser: argparse.ArgumentParser, argv: Sequence[str], env: Mapping[str, str]) -> S:
    """The struct from a command line, an environment and the file that `--config` (or CONFIG) names.

    Raises `ConfigError`. The parser, which gets a flag for each field, ends the process for --help.
    """
    options = options_of(struct)
    _add_flags(parser, options)
    given = vars(parser.parse_args(argv))
    path = given.pop("config") or env.get("CONFIG")
    from_flags = {name: value for name, value in given.items() if value is not None}
    from_env = _environment_values(options, env)
    from_file = _file_values(options, Path(path)) if path else {}
    sources = dict.fromkeys(from_file, f"{path}")
    sources |= {name: f"{variable} of the environment" for name, (variable, _) in from_env.items()}
    sources |= dict.fromkeys(from_flags, "")
    values = from_file | {name: text for name, (_, text) in from_env.items()} | from_flags
    try:
        return struct(**{name: _typed(_named(options, name), value) for name, value in values.items()})
    except ConfigError as error:
        source = sources.get(error.field)
        raise ConfigError(error.field, f"{error} (from {source})" if source else str(error)) from None


def take_secrets(struct: type[msgspec.Struct], env: MutableMapping[str, str]) -> None:
    """Take out of an environment what would show there to every process that inherits it."""
    for option in options_of(struct):
        if option.flag.is_secret:
            for name in option.env_names:
                env.pop(name, None)


def shown_secrets(struct: type[msgspec.Struct], argv: Sequence[str]) -> list[str]:
    """The flags of a command line that tell a secret to everyone who may list processes."""
    given = {word.partition("=")[0] for word in argv}
    return [
        option.flag_name
        for option in options_of(struct)
        if option.flag.is_secret and option.flag_name in given
    ]


def _named(options: Iterable[Option], name: str) -> Option:
    return next(option for option in options if option.name == name)


class OneSentenceParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one line, without the usage of fifty flags before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}{self._guess(message)} (see {self.prog} --help)\n")

    def _guess(self, message: str) -> str:
        known = [name for action in self._actions for name in action.option_strings]
        unknown = [word.split("=")[0] for word in message.split() if word.startswith("--")]
        close = (
            difflib.get_close_matches(unknown[0], known, n=1) if "unrecognized" in message and unknown else []
        )
        return f"; did you mean {close[0]}?" if close else ""


def _add_flags(parser: argparse.ArgumentParser, options: Sequence[Option]) -> None:
    parser.add_argument(
        "--config", metavar="FILE.toml", help="read settings from a TOML file, keys as the flags"
    )
    groups: dict[str, Any] = {}
    for option in options:
        if option.flag.group not in groups:
            groups[option.flag.group] = parser.add_argument_group(option.flag.group)
        _add_flag(groups[option.flag.group], option)


def _add_flag(group: Any, option: Option) -> None:
    names = [option.flag_name, *("--" + alias.replace("_", "-") for alias in option.flag.aliases)]
    common = {"dest": option.name, "default": None, "help": _help(option)}
    if option.kind is bool:
        group.add_argument(*names, action="store_true", **common)
    else:
        many = {"action": "append"} if option.is_many else {}
        group.add_argument(*names, metavar=_metavar(option), **common, **many)


def _help(option: Option) -> str:
    text = option.flag.help.replace("%", "%%")
    if option.default is None or option.is_many or option.kind is bool:
        return text
    return f"{text} [{option.default}]"


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    if option.flag.is_bytes:
        return "BYTES"
    if option.kind is int and option.is_many:
        return "N,N,..."
    if option.kind in (int, float):
        return "MS" if option.name.endswith("_ms") else "N" if option.kind is int else "X"
    return "PATH" if option.name.endswith(("_path", "_file", "_dir", "exits")) else "TEXT"


def _environment_values(options: Iterable[Option], env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Field -> (variable, text). An empty variable says nothing."""
    found = {}
    for option in options:
        variable = next((name for name in option.env_names if env.get(name)), None)
        if variable is not None:
            found[option.name] = (variable, env[variable])
    return found


def _file_values(options: Sequence[Option], path: Path) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("config", f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError("config", f"{path} is not valid TOML: {error}.") from None
    known = [option.name for option in options]
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            guess = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(name, f"{path} sets {name}, which is no setting{guess}")
    return table


def _typed(option: Option, value: Any) -> Any:
    """A value of the field's own type. Text is parsed, as from flags; a file's typed values are checked."""
    if not option.is_many:
        return _one(option, value)
    given = value if isinstance(value, list) else [value]
    parts = [part for one in given for part in (one.split(",") if isinstance(one, str) else [one])]
    return tuple(_one(option, part) for part in parts)


def _one(option: Option, value: Any) -> Any:
    if isinstance(value, str) and option.kind is not str:
        return _parse(option, value.strip())
    if option.kind is float and type(value) is int:
        return float(value)
    if type(value) is not option.kind:
        given = "something else" if option.flag.is_secret else repr(value)
        raise ConfigError(option.name, f"{option.name} must be {_what(option)}, not {given}.")
    return value


def _parse(option: Option, text: str) -> Any:
    if option.kind is bool and text.lower() in _YES + _NO:
        return text.lower() in _YES
    try:
        if option.flag.is_bytes:
            return parse_bytes(text)
        if option.kind is not bool:
            return option.kind(text)
    except (KeyError, ValueError, OverflowError):
        pass
    raise ConfigError(option.name, f"{option.name} must be {_what(option)}, not {text!r}.")


def parse_bytes(text: str) -> int:
    """A number of bytes such as 512MiB. Raises `KeyError`, `ValueError` or `OverflowError`."""
    number = text.rstrip("bBkKmMgGtTiI")
    unit: int = _UNITS[text[len(number) :].lower()]
    return round(float(number) * unit)


def _what(option: Option) -> str:
    if option.flag.is_bytes:
        return "a number of bytes such as 512MiB"
    if option.choices:
        return _either(option.choices)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names[option.kind]


def _either(choices: Sequence[str]) -> str:
    return ", ".join(choices[:-1]) + f" or {choices[-1]}"
