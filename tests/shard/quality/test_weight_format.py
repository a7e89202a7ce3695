"""What matrices are kept in, and that certificates tell formats apart."""

import pytest

from shard.messages import Criterion, Fill, Mode
from shard.quality.certificate import Basis, Certificate, DepthAgreement, write_certificate
from shard.quality.certificate_check import Served, objections
from shard.quality.weight_format import BLOCKS_INDEX, GGUF, INT4, NONE, certified_name, weight_format


@pytest.mark.parametrize(
    ("asked", "device", "mode", "expected"),
    [
        ("auto", "cpu", Mode.FULL, GGUF),
        ("auto", "cpu", Mode.SPECULATIVE, GGUF),
        ("auto", "cpu", Mode.CAPPED, NONE),
        ("auto", "cpu", Mode.PER_ROW, NONE),
        ("auto", "cuda:0", Mode.FULL, NONE),
        ("none", "cpu", Mode.FULL, NONE),
        ("int4", "cpu", Mode.CAPPED, INT4),
    ],
)
def test_a_files_own_blocks_are_served_where_full_depth_answers(tmp_path, asked, device, mode, expected):
    (tmp_path / BLOCKS_INDEX).write_text("{}")
    assert weight_format(asked, tmp_path, device, mode) == expected


def test_without_blocks_weights_are_of_the_storage_type(tmp_path):
    assert weight_format("auto", tmp_path, "cpu", Mode.FULL) == NONE


@pytest.mark.parametrize(
    ("weights", "kv_dtype", "is_covered"),
    [
        (NONE, "bfloat16", True),
        (INT4, "bfloat16", False),
        (GGUF, "bfloat16", False),
        (NONE, "int8", False),
        (NONE, "float32", False),
    ],
)
def test_a_certificate_for_a_type_does_not_cover_others(tmp_path, weights, kv_dtype, is_covered):
    basis = Basis("model", "heads", "bfloat16", "chat", "digest", 400, 64, 0.0, 0, "2026-11-27T00:00:00Z")
    write_certificate(tmp_path, Certificate(depths=[DepthAgreement(20, 0.9, 0.88, 0.9, basis)]))
    (tmp_path / "exits.json").write_text('{"exits": []}')
    dtype = certified_name("bfloat16", weights, kv_dtype)
    served = Served(Mode.CAPPED, Fill.RECOMPUTE, Criterion.SOFTMAX, dtype, "model", 20, {})
    said = [sentence for sentence in objections(served, tmp_path) if "says nothing" in sentence]
    assert (said == []) is is_covered
