"""Command lines derived from structs: each field, with its default and help, is a flag."""

import argparse
import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

S = TypeVar("S", bound=msgspec.Struct)


class Flag(msgspec.Struct, frozen=True):
    """A field's properties on the command line. `is_positional`: given without its name."""

    group: str
    help: str
    metavar: str | None = None
    is_positional: bool = False


def read(
    options: type[S], argv: Sequence[str], prog: str, about: str, defaults: dict[str, Any] | None = None
) -> S:
    """Read options from a command line. Exits with a sentence on an invalid one, as argparse does."""
    parser = parser_for(options, prog, about, defaults or {})
    values = vars(parser.parse_args(list(argv)))
    return msgspec.convert({name: _frozen(value) for name, value in values.items()}, options)


def parser_for(
    options: type[msgspec.Struct], prog: str, about: str, defaults: dict[str, Any]
) -> argparse.ArgumentParser:
    """Flags in groups; the groups of a struct's own fields come before those it inherits."""
    hints = get_type_hints(options, include_extras=True)
    fields = msgspec.structs.fields(options)
    flags = {field.name: _parts(hints[field.name]) for field in fields}
    names = " ".join(name.upper() for name, (_, flag) in flags.items() if flag.is_positional)
    usage = " ".join(part for part in (prog, names, "[flags]") if part)
    parser = argparse.ArgumentParser(prog=prog, usage=usage, description=about, formatter_class=_Formatter)
    own_first = sorted(fields, key=lambda field: field.name not in options.__annotations__)
    titles = dict.fromkeys(flags[field.name][1].group for field in own_first)
    groups = {title: parser.add_argument_group(title) for title in titles}
    for field in fields:
        kind, flag = flags[field.name]
        _add(groups[flag.group], field.name, kind, flag, _default(field))
    parser.set_defaults(**defaults)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=30, width=100)


def _parts(hint: Any) -> tuple[Any, Flag]:
    if get_origin(hint) is not Annotated:
        raise TypeError(f"{hint} has no Flag")
    kind, *extras = get_args(hint)
    return kind, next(extra for extra in extras if isinstance(extra, Flag))


def _default(field: msgspec.structs.FieldInfo) -> Any:
    return None if field.required else field.default


def _add(group: Any, name: str, kind: Any, flag: Flag, default: Any) -> None:
    names = [name] if flag.is_positional else ["--" + name.replace("_", "-")]
    words = (flag.help + _default_words(default)).replace("%", "%%")
    if kind is bool:
        group.add_argument(*names, action="store_true", default=default, help=words)
        return
    settings: dict[str, Any] = {"default": default, "help": words, "metavar": flag.metavar}
    if _is_tuple(kind):
        settings |= {"action": "append", "default": list(default)}
    base = _base(kind)
    if typing.get_origin(base) is typing.Literal:
        settings |= {"choices": get_args(base), "metavar": None}
    elif base in (int, float):
        settings["type"] = base
    group.add_argument(*names, **settings)


def _default_words(default: Any) -> str:
    return "" if default in (None, False, (), "") else f" [{default}]"


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _base(kind: Any) -> Any:
    """The type without None."""
    if get_origin(kind) in (types.UnionType, typing.Union):
        return next(part for part in get_args(kind) if part is not type(None))
    return kind


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
