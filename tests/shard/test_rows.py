"""Every kind of CPU that this machine can imitate keeps what the engine promises, in processes of their own.

There weights and KV are stored in bfloat16 and computed in float32, as is usual on such a CPU, and tokens are
equal as they are in float32. What this machine does by itself is the rest of the suite.
"""

import os
import subprocess
import sys

import pytest

from shard.cpu import LEVELS, SWITCH, real_cpu
from tests.running import ROOT

KEPT = [
    "test_precision",
    "ops/test_blocks",
    "ops/test_ops",
    "exits/test_early_exit",
    "exits/test_projection",
    "exits/test_speculative",
    "drafts/test_head",
]
KEPT_IN_8_BITS = ["engine/test_prefix_cache", "exits/test_speculative"]  # of keys and values
TIMEOUT_S = 900  # a row takes half a minute on an idle core, its kernels' compilation with it


@pytest.mark.timeout(TIMEOUT_S + 10)
@pytest.mark.parametrize("row", [level.name for level in LEVELS if level.name != "avx512_bf16"])
def test_a_row_keeps_the_engines_promises(row: str):
    if row not in [level.name for level in real_cpu().levels]:
        pytest.skip(f"this machine cannot imitate {row}")
    run_tests(KEPT, {SWITCH: row, "HELIOS_TEST_DTYPE": "bfloat16"})


@pytest.mark.timeout(TIMEOUT_S + 10)
def test_a_kv_cache_of_8_bits_keeps_the_engines_promises():
    run_tests(KEPT_IN_8_BITS, {"HELIOS_TEST_KV": "int8"}, "-k", "not transformers")


def run_tests(names: list[str], settings: dict[str, str], *options: str) -> None:
    environment = os.environ | settings
    for name in [name for name in environment if name.startswith(("PYTEST_", "COV_"))]:
        del environment[name]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:xdist", "-p", "no:cacheprovider"]
    command += [*options, *(f"tests/shard/{name}.py" for name in names)]
    ran = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
