from typing import Annotated, Literal

import msgspec
import pytest

from loadgen.cli import flags
from loadgen.cli.flags import Flag


class Options(msgspec.Struct, frozen=True, kw_only=True):
    name: Annotated[str, Flag("who", "a name", "NAME", is_positional=True)] = "x"
    how_many: Annotated[int | None, Flag("what", "a count", "N")] = None
    rate: Annotated[float, Flag("what", "at 100%", "R")] = 1.5
    kind: Annotated[Literal["a", "b"] | None, Flag("what", "a kind")] = None
    bounds: Annotated[tuple[str, ...], Flag("what", "some bounds", "B")] = ()
    quiet: Annotated[bool, Flag("what", "say nothing")] = False
    key: Annotated[str | None, Flag("who", "a key", "KEY")] = None


def test_fields_become_flags_with_their_types() -> None:
    argv = ["ada", "--how-many", "3", "--kind", "b", "--bounds", "x:1", "--bounds", "y:2", "--quiet"]
    assert flags.read(Options, argv, "prog", "about") == Options(
        name="ada", how_many=3, kind="b", bounds=("x:1", "y:2"), quiet=True
    )


def test_defaults_are_those_of_the_struct_or_those_given() -> None:
    assert flags.read(Options, ["ada"], "prog", "about") == Options(name="ada")
    assert flags.read(Options, ["ada"], "prog", "about", {"key": "k"}).key == "k"


def test_help_groups_the_flags_and_shows_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        flags.read(Options, ["--help"], "prog", "What it does.", {"key": "a-secret"})
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "What it does." in shown
    assert "at 100% [1.5]" in shown
    assert "a-secret" not in shown
    assert shown.index("who:") < shown.index("what:")


@pytest.mark.parametrize("argv", [["ada", "--how-many", "x"], ["ada", "--kind", "c"], ["ada", "--unknown"]])
def test_what_is_no_flag_is_a_sentence(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        flags.read(Options, argv, "prog", "about")
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err
