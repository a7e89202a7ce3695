"""Venvs of peers: found, said to be missing, or made."""

import sys
from pathlib import Path

import pytest

from loadgen.client.server_info import Unusable
from loadgen.peers.venvs import LLAMA_CPP, VLLM, Distribution, find, install


async def test_a_python_without_the_peer_is_named_with_the_remedy(tmp_path: Path):
    with pytest.raises(Unusable, match=r"--llama-cpp: .* has no xllamacpp: .*--install llama-cpp"):
        await find(LLAMA_CPP, sys.executable, tmp_path)


async def test_a_path_that_is_no_program_is_named(tmp_path: Path):
    with pytest.raises(Unusable, match=r"--vllm: .*nothing is no program"):
        await find(VLLM, str(tmp_path / "nothing"), tmp_path)


async def test_nothing_given_and_nothing_installed_is_no_error(tmp_path: Path):
    assert await find(LLAMA_CPP, None, tmp_path) is None


async def test_the_first_package_that_is_there_tells_its_version(tmp_path: Path):
    peer = Distribution("peer", "peer", ("no-such-package", "pytest"), ())
    venv = await find(peer, sys.executable, tmp_path)
    assert venv is not None
    assert venv.version == f"pytest {pytest.__version__}"


async def test_an_installation_is_found_again_and_a_failing_one_says_what_pip_said(tmp_path: Path):
    await install(Distribution("peer", "peer", (), (("--version",),)), tmp_path)
    venv = await find(Distribution("peer", "peer", ("pip",), ()), None, tmp_path)
    assert venv is not None
    assert Path(venv.python).is_relative_to(tmp_path / "peers" / "peer")
    with pytest.raises(Unusable, match=r"peer could not be installed: .*unknown command"):
        await install(Distribution("peer", "peer", (), (("no-such-command",),)), tmp_path)
