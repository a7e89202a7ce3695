"""Log lines for machines are JSON, one a line, whatever happens in them."""

import json
import logging

import pytest

from router.settings import logs


@pytest.fixture(autouse=True)
def root_logger_as_before():
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def test_json_lines_have_level_message_and_exception(capsys):
    logs.set_up("info", as_json=True)
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("router.somewhere").exception("It failed for %s", "a reason")
    line = json.loads(capsys.readouterr().err)
    assert (line["level"], line["message"]) == ("ERROR", "It failed for a reason")
    assert line["target"] == "router.somewhere"
    assert "ValueError: two\nlines" in line["exception"]


def test_less_than_the_level_is_not_written(capsys):
    logs.set_up("warning", as_json=False)
    logging.getLogger("router").info("small talk")
    logging.getLogger("router").warning("beware")
    said = capsys.readouterr().err
    assert "small talk" not in said
    assert said.rstrip().endswith("WARNING beware")
