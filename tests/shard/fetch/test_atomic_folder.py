"""A folder is whole or not there, whatever happens to who makes it, and made by one at a time."""

import fcntl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shard.fetch.atomic_folder import clear_up, make_once


def is_complete(folder):
    return (folder / "done").exists()


def make(folder):
    (folder / "done").touch()


def test_is_made_once_and_then_found(tmp_path):
    calls = []
    for _ in range(2):
        made = make_once(tmp_path / "a" / "folder", is_complete, lambda to: (calls.append(to), make(to)))
        assert is_complete(made)
    assert len(calls) == 1


def test_those_who_want_it_at_the_same_time_wait_for_the_first(tmp_path):
    calls = []

    def make_slowly(folder):
        calls.append(folder)
        time.sleep(0.05)
        make(folder)

    with ThreadPoolExecutor(8) as pool:
        wanted = [pool.submit(make_once, tmp_path / "folder", is_complete, make_slowly) for _ in range(8)]
    assert all(is_complete(future.result()) for future in wanted)
    assert len(calls) == 1


def test_a_failure_leaves_nothing_and_the_next_try_succeeds(tmp_path):
    def fail(folder):
        (folder / "half").touch()
        raise ValueError("no space")

    with pytest.raises(ValueError, match="no space"):
        make_once(tmp_path / "folder", is_complete, fail)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert is_complete(make_once(tmp_path / "folder", is_complete, make))


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    (tmp_path / ".partial-1234" / "folder").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "half").touch()
    made = make_once(tmp_path / "folder", is_complete, make)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "folder"]
    assert [path.name for path in made.iterdir()] == ["done"]


def test_clearing_up_leaves_alone_what_is_being_made(tmp_path):
    def make_and_clear(folder):
        (tmp_path / "others" / ".partial-1").mkdir(parents=True)
        clear_up(tmp_path)
        make(folder)

    assert is_complete(make_once(tmp_path / "models" / "folder", is_complete, make_and_clear))
    assert not list(tmp_path.rglob(".partial-*"))


def test_clearing_up_is_no_error_where_nothing_is(tmp_path):
    clear_up(tmp_path / "none")


def test_clearing_up_waits_a_moment_for_the_lock_of_who_was_killed(tmp_path):
    (tmp_path / "models" / ".partial-1").mkdir(parents=True)
    with (tmp_path / "models" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        freeing = threading.Timer(0.05, fcntl.flock, [held, fcntl.LOCK_UN])
        freeing.start()
        clear_up(tmp_path)
        freeing.join()
    assert not list(tmp_path.rglob(".partial-*"))
