"""A struct's fields as command line flags, environment variables and keys of a TOML file.

Knows nothing of what the fields mean: types and bounds are msgspec's, which converts and checks the values of
all three. A value is taken from the flag, else the environment, else the file, else the struct's default.
"""

import argparse
import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec import Meta, inspect

S = TypeVar("S", bound=msgspec.Struct)

_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgtpe", start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgtpe", start=1)},
}
_SWITCHES = {**dict.fromkeys(("yes", "on"), True), **dict.fromkeys(("no", "off"), False)}  # beside msgspec's
_AT_FIELD = re.compile(r"at `\$\.(?P<name>\w+)(?:\[(?P<index>\d+)\])?")
_BOUND = re.compile(r"Expected `\w+` (?P<sign>>=|<=) (?P<value>\S+)")


class ConfigError(ValueError):
    """A value that cannot be used. The message is one sentence that names field, value and bound."""

    def __init__(self, field: str, sentence: str):
        super().__init__(sentence)
        self.field = field


class Setting(msgspec.Struct, frozen=True):
    """Properties of a setting that msgspec's `Meta` does not have."""

    group: str  # in --help
    aliases: tuple[str, ...] = ()
    env: str | None = None  # None: the field's name in capitals
    is_bytes: bool = False  # accepts 512MiB, 2GB
    is_secret: bool = False  # is or may contain a secret: never shown


def setting(group: str, description: str, **more: Any) -> Meta:
    """The annotation that makes a field a setting: a line for --help, and fields of `Setting`."""
    return Meta(description=description, extra={"setting": Setting(group, **more)})


class Option(msgspec.Struct, frozen=True):
    """A declared setting, with values of `type`, or lists of them if `is_many`."""

    name: str
    help: str
    setting: Setting
    type: inspect.Type
    is_many: bool
    default: Any

    @property
    def flag_name(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def env_names(self) -> list[str]:
        aliases = (alias.upper() for alias in self.setting.aliases)
        return [self.setting.env or self.name.upper(), *aliases]

    @property
    def choices(self) -> tuple[str, ...]:
        match self.type:
            case inspect.LiteralType(values):
                return tuple(map(str, values))
            case inspect.EnumType(kind):
                return tuple(member.value for member in kind)
            case _:
                return ()

    @property
    def is_number(self) -> bool:
        return isinstance(self.type, inspect.IntType | inspect.FloatType)

    @property
    def is_flag(self) -> bool:
        return isinstance(self.type, inspect.BoolType)

    @property
    def kind(self) -> str:
        """The kind of value in words, for messages."""
        match self.type:
            case _ if self.setting.is_bytes:
                return "a number of bytes such as 512MiB"
            case _ if self.choices:
                return ", ".join(self.choices[:-1]) + f" or {self.choices[-1]}"
            case inspect.IntType():
                return "a whole number"
            case inspect.FloatType():
                return "a number"
            case inspect.BoolType():
                return "true or false"
            case _:
                return "text"


@functools.cache
def options_of(struct: type[msgspec.Struct]) -> tuple[Option, ...]:
    """The settings of a struct, in order."""
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    return tuple(_option(field) for field in described.fields)


def _option(field: inspect.Field) -> Option:
    assert isinstance(field.type, inspect.Metadata) and field.type.extra and field.type.extra_json_schema
    inner: inspect.Type = field.type.type
    if isinstance(inner, inspect.UnionType):
        inner = next(part for part in inner.types if not isinstance(part, inspect.NoneType))
    is_many = isinstance(inner, inspect.VarTupleType)
    if isinstance(inner, inspect.VarTupleType):
        inner = inner.item_type
    description = field.type.extra_json_schema["description"]
    return Option(field.name, description, field.type.extra["setting"], inner, is_many, field.default)


def read(struct: type[S], parser: argparse.ArgumentParser, argv: Sequence[str], env: Mapping[str, str]) -> S:
    """Read the struct from a command line, an environment and the file that `--config` (or CONFIG) names.

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
        return convert(struct, values)
    except ConfigError as error:
        source = sources.get(error.field)
        raise ConfigError(error.field, f"{error} (from {source})" if source else str(error)) from None


def convert(struct: type[S], values: Mapping[str, Any]) -> S:
    """Make the struct from values of flags, environment or file: text, or a file's types.

    Raises `ConfigError`.
    """
    options = {option.name: option for option in options_of(struct)}
    plain = {name: _plain(options[name], value) for name, value in values.items()}
    try:
        return msgspec.convert(plain, struct, strict=False)
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):  # raised by the struct's own check
            raise error.__cause__ from None
        raise _complaint(str(error), options, plain) from None


def _plain(option: Option, value: Any) -> Any:
    """A value in msgspec's form: lists split, units multiplied."""
    if option.is_many:
        given = value if isinstance(value, list) else [value]
        parts = [part for item in given for part in (item.split(",") if isinstance(item, str) else [item])]
        return [_plain_one(option, part) for part in parts]
    return _plain_one(option, value)


def _plain_one(option: Option, value: Any) -> Any:
    if not isinstance(value, str) or isinstance(option.type, inspect.StrType):
        return value
    text = value.strip().encode(errors="backslashreplace").decode()  # bytes that are no UTF-8, too
    if option.is_flag:
        return _SWITCHES.get(text.lower(), text)
    try:
        return parse_bytes(text) if option.setting.is_bytes else text
    except (KeyError, ValueError, OverflowError):
        return text


def _complaint(message: str, options: Mapping[str, Option], values: Mapping[str, Any]) -> ConfigError:
    """msgspec's message as a sentence with field, bound and value."""
    at = _AT_FIELD.search(message)
    assert at is not None, message
    option, value = options[at["name"]], values[at["name"]]
    if at["index"]:
        value = value[int(at["index"])]
    given = "something else" if option.setting.is_secret else repr(value)
    wanted = option.kind
    if bound := _BOUND.match(message):
        wanted = f"{'at least' if bound['sign'] == '>=' else 'at most'} {bound['value'].removesuffix('.0')}"
        given = str(value)
    return ConfigError(option.name, f"{option.name} must be {wanted}, not {given}.")


def take_secrets(struct: type[msgspec.Struct], env: MutableMapping[str, str]) -> None:
    """Remove secrets from an environment, where every process that inherits it would see them."""
    for option in options_of(struct):
        if option.setting.is_secret:
            for name in option.env_names:
                env.pop(name, None)


def shown_secrets(struct: type[msgspec.Struct], argv: Sequence[str]) -> list[str]:
    """The flags of a command line that show a secret to everyone who may list processes."""
    given = {word.partition("=")[0] for word in argv}
    return [
        option.flag_name
        for option in options_of(struct)
        if option.setting.is_secret and option.flag_name in given
    ]


class OneSentenceParser(argparse.ArgumentParser):
    """A parser that reports a wrong flag in one line, without the usage of fifty flags before it."""

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
        if option.setting.group not in groups:
            groups[option.setting.group] = parser.add_argument_group(option.setting.group)
        _add_flag(groups[option.setting.group], option)


def _add_flag(group: Any, option: Option) -> None:
    names = [option.flag_name, *("--" + alias.replace("_", "-") for alias in option.setting.aliases)]
    common = {"dest": option.name, "default": None, "help": _help(option)}
    if option.is_flag:
        group.add_argument(*names, action="store_true", **common)
    else:
        many = {"action": "append"} if option.is_many else {}
        group.add_argument(*names, metavar=_metavar(option), **common, **many)


def _help(option: Option) -> str:
    text = option.help.replace("%", "%%")
    if option.default is None or option.is_many or option.is_flag:
        return text
    return f"{text} [{option.default}]"


def _metavar(option: Option) -> str:
    if option.choices:
        return "|".join(option.choices)
    if option.setting.is_bytes:
        return "BYTES"
    if option.is_number and option.is_many:
        return "N,N,..."
    if option.is_number:
        whole = "MS" if option.name.endswith("_ms") else "N"
        return whole if isinstance(option.type, inspect.IntType) else "X"
    return "PATH" if option.name.endswith(("_path", "_file", "_dir", "exits")) else "TEXT"


def _environment_values(options: Iterable[Option], env: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Maps field to (variable, text). An empty variable counts as unset."""
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


def parse_bytes(text: str) -> int:
    """A number of bytes such as 512MiB. Raises `KeyError`, `ValueError` or `OverflowError`."""
    number = text.rstrip("bBkKmMgGtTpPeEiI")
    unit: int = _UNITS[text[len(number) :].lower()]
    return round(float(number) * unit)
