"""The model repository: what its file says, and one sentence with line and field for what it cannot say."""

from pathlib import Path
from textwrap import dedent

import pytest

from router.catalog.repository import Choice, default_path, read_repository
from router.settings.toml_lines import TomlError

SMALL = """
    [[candidate]]
    name = "chat"
    model = "some/model"
"""


@pytest.fixture
def read(tmp_path):
    def write_and_read(text):
        path = tmp_path / "repository.toml"
        path.write_text(dedent(text))
        return read_repository(path)

    return write_and_read


def test_a_name_and_a_model_are_enough(read):
    repository = read(SMALL)
    (candidate,) = repository.candidates
    assert (candidate.name, candidate.model, candidate.mode) == ("chat", "some/model", "full")
    assert (repository.objective, repository.floor.agreement) == ("throughput", 0.95)


def test_the_numbers_of_the_paper_are_the_defaults(read):
    loop = read(SMALL).loop
    assert (loop.shortlist, loop.evaluation_requests) == (3, 5)
    assert (loop.breach_window, loop.breach_limit, loop.reassess_every) == (100, 50, 150)


def test_everything_can_be_set(read):
    repository = read(
        """
        objective = "latency"
        limits = { p95_ttft_ms = 500, memory_bytes = "2GiB" }
        [floor]
        agreement = 0.9
        quality = 0.4
        [loop]
        reassess_every = 50
        [[candidate]]
        name = "a"
        model = "m"
        exits = "exits/a"
        mode = "per_row"
        depths = [6, 9]
        [candidate.figures]
        quality = 0.5
        """
    )
    assert repository.limits.memory_bytes == 2 * 1024**3
    assert repository.limits.p95_itl_ms is None
    assert repository.loop.reassess_every == 50
    assert repository.find("a").depths == (6, 9)


def test_paths_are_meant_from_the_file(read, tmp_path):
    (tmp_path / "weights").mkdir()
    repository = read('[[candidate]]\nname = "a"\nmodel = "weights"\nexits = "heads"\ndepths = [3]')
    assert repository.find("a").model == str(tmp_path / "weights")
    assert repository.find("a").exits == str(tmp_path / "heads")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('objective = "speed"' + SMALL, "line 1: objective: invalid enum value 'speed'."),
        ("[floor]\nagreement = 1.5" + SMALL, "line 2: floor.agreement: expected float <= 1.0."),
        ("[loop]\n\nhysterisis = 0.2" + SMALL, "line 3: loop.hysterisis: is no setting."),
        (SMALL + "    depths = [3, 'x']", "line 5: candidate 1, depths: expected int, got str."),
        (SMALL + SMALL.replace("name", "nam"), "line 7: candidate 2, nam: is no setting."),
        (SMALL + "    [[candidate]]\n    name = 'b'", "line 5: candidate 2, model: is missing."),
        (SMALL + SMALL, "line 7: name 'chat' is given twice: each candidate needs its own."),
        (SMALL + "    exits = 'e'\n    depths = [9, 3]", "line 6: depths must rise, not [9, 3]."),
        (SMALL + "    depths = [3]", "line 5: depths needs exits, the folder that says where"),
        (SMALL + "    mode = 'per_row'", "line 5: mode needs exits"),
        (
            SMALL + "    whole = false",
            "line 5: whole is false, but depths is empty: 'chat' could never",
        ),
        (
            "[limits]\nmemory_bytes = 'much'" + SMALL,
            "line 2: limits.memory_bytes: expected a number of",
        ),
        ("[floor]\nquality = 0.5" + SMALL, "line 2: quality is 0.5, but no candidate's figures."),
        ("[loop]\nbreach_limit = 101" + SMALL, "line 2: breach_limit must be at most breach_window, 100."),
        ("objective = ", "is not valid TOML: Invalid value (at end of document)."),
        ("objective = 'energy'", "line 1: candidate: is missing."),
    ],
)
def test_an_error_is_one_sentence_with_line_and_field(read, text, says):
    with pytest.raises(TomlError) as refusal:
        read(dedent(text))
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(TomlError, match="cannot be read: No such file"):
        read_repository(tmp_path / "none.toml")


def test_the_embedded_models_repository_is_whole_first():
    repository = read_repository(default_path())
    assert repository.candidates[0].mode == "full"
    assert {candidate.name for candidate in repository.candidates} == {"full", "chat", "code"}
    assert {candidate.model for candidate in repository.candidates} == {"smollm2-135m-instruct"}


def test_the_embedded_models_exits_are_where_its_repository_says():
    folders = [Path(each.exits) for each in read_repository(default_path()).candidates if each.exits]
    assert folders
    assert all((folder / "exits.json").is_file() for folder in folders)


def test_a_choice_reads_as_a_person_would_say_it():
    assert str(Choice("chat", 20)) == "chat at 20 layers"
