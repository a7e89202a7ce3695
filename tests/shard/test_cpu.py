"""What a CPU may execute is read from its features, and can be made less."""

from pathlib import Path

import pytest

from shard.cpu import LEVELS, SWITCH, Cpu, imitate, real_cpu, this_cpu

SMALL = [feature for level in LEVELS[:2] for feature in level.features]
LARGE = [feature for level in LEVELS for feature in level.features]


@pytest.mark.parametrize(
    ("features", "name"),
    [
        ([], "x86_64"),
        (SMALL, "avx2"),
        (LARGE, "avx512_bf16"),
        ([name for name in LARGE if name != "avx512bw"], "avx2"),
        ([name for name in LARGE if name != "fma"], "baseline"),
    ],
)
def test_a_level_is_had_wholly_or_not(features: list[str], name: str):
    cpu = Cpu("x86_64", frozenset(features))
    assert cpu.name == name
    assert ("-mavx512f" in cpu.compiler_options) == name.startswith("avx512")
    assert ("-mprefer-vector-width=512" in cpu.compiler_options) == name.startswith("avx512")
    assert "-march=native" not in cpu.compiler_options


def test_another_architecture_has_no_level():
    cpu = Cpu("aarch64", frozenset({"asimd", "bf16"}))
    assert (cpu.name, cpu.levels, cpu.compiler_options) == ("aarch64", (), [])


def test_what_linux_says_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shard.cpu.platform.machine", lambda: "AMD64")
    monkeypatch.delenv(SWITCH, raising=False)
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor : 0\nflags\t\t: fpu amx_bf16 {' '.join(LARGE)}\nprocessor : 1\nflags : fpu\n"
    )
    assert real_cpu(cpuinfo).name == "avx512_bf16"
    assert "amx_bf16" in this_cpu(cpuinfo).features
    monkeypatch.setenv(SWITCH, "avx512")
    assert this_cpu(cpuinfo).name == "avx512"
    assert not this_cpu(cpuinfo).features & {"avx512_bf16", "amx_bf16"}
    assert real_cpu(tmp_path / "missing") == Cpu("x86_64", frozenset())


def test_more_than_there_is_cannot_be_imitated():
    with pytest.raises(ValueError, match="must be one of baseline, avx2 on this machine"):
        Cpu("x86_64", frozenset(SMALL)).limited("avx512")


def test_torch_and_onednn_are_limited_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shard.cpu.real_cpu", lambda: Cpu("x86_64", frozenset(LARGE)))
    environment = {SWITCH: "avx2"}
    imitate(environment)
    assert environment == {SWITCH: "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    nothing: dict[str, str] = {}
    imitate(nothing)
    assert nothing == {}
