"""Why something failed, in one sentence: what was being done, what a library said, and what to try."""

import errno
from collections.abc import Callable

import pytest
import torch

from shard.failure import sentence
from shard.messages import ShardConfig
from shard.sim.sim_runner import SimRunner

DOING = "Loading m on cpu"


def raised(act: Callable[[], object]) -> str:
    try:
        act()
    except Exception as error:
        return sentence(error, DOING)
    raise AssertionError("nothing was raised")


def test_a_sentence_of_ours_is_passed_on() -> None:
    missing = ShardConfig("m", "sim", kv_cache_bytes=1)
    assert raised(lambda: SimRunner(missing)).startswith("1 bytes hold no block of ")


def test_what_a_library_raises_is_told_with_what_was_done_and_where_more_is_said() -> None:
    message = raised(lambda: torch.zeros(2, 3) @ torch.zeros(2, 3))
    assert message.startswith(
        "Loading m on cpu failed (RuntimeError: mat1 and mat2 shapes cannot be multiplied"
    )
    assert message.endswith("--log-level debug shows where.")
    assert "\n" not in message
    assert raised(lambda: {}["hidden_size"]).startswith("Loading m on cpu failed (KeyError: 'hidden_size')")


def test_memory_that_runs_out_names_what_takes_it() -> None:
    message = raised(lambda: torch.empty(1 << 50))
    assert message.startswith("Loading m on cpu takes more memory than there is (")
    assert "lower --kv-cache-bytes" in message
    assert sentence(MemoryError(), DOING).startswith(
        "Loading m on cpu takes more memory than there is: lower "
    )
    cuda = RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore follows.")
    assert "CUDA out of memory. Tried to allocate 2.00 GiB. More follows" in sentence(cuda, DOING)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full: make room"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full: make room"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            "(Permission denied, /x): give this user acc",
        ),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "/x): name a folder that can be written with"),
        (ModuleNotFoundError("No module named 'torch'"), "(No module named 'torch'): install Helios again."),
    ],
)
def test_what_the_system_says_is_told_with_what_to_try(error: Exception, message: str) -> None:
    said = sentence(error, DOING)
    assert said.startswith(DOING)
    assert message in said
    assert said.endswith(".")
