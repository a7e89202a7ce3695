"""GPUs, cores and memory as a shard would find them, told from files and the environment."""

import os
from pathlib import Path

import pytest

from router.settings import machine


@pytest.fixture
def four_gpus(monkeypatch):
    """Four GPUs in /dev and a torch that was built for them."""
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: True)
    monkeypatch.setattr(Path, "glob", lambda *_: [Path(f"/dev/nvidia{number}") for number in range(4)])


@pytest.mark.parametrize(
    ("visible", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("2", 1), ("0,1", 2), ("GPU-3f2a,GPU-77b1", 2), ("0,1,2,3,4,5", 4)],
)
def test_gpus_are_those_that_are_visible(four_gpus, visible, count):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert machine.inspect(environment).num_gpus == count


def test_a_torch_without_cuda_sees_no_gpu(four_gpus, monkeypatch):
    monkeypatch.setattr(machine, "torch_has_cuda", lambda: False)
    assert machine.inspect({}).num_gpus == 0


def test_whether_torch_has_cuda_is_told_as_torch_itself_does():
    import torch

    assert machine.torch_has_cuda() is torch.backends.cuda.is_built()


def test_cores_are_those_this_process_may_use():
    assert machine.inspect({}).num_cores == len(os.sched_getaffinity(0))


def test_available_memory_is_part_of_what_there_is():
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.inspect({}).available_bytes <= total
