"""certificate.json: what is written is read again, a statement replaces its like, damage gets a sentence."""

import json
from pathlib import Path

import pytest

from shard.quality.certificate import (
    CERTIFICATE,
    Certificate,
    CertificateError,
    heads_digest,
    read_certificate,
    write_certificate,
)
from tests.shard.quality.certificates import depth, guarantee


def test_what_is_written_is_read_again(tmp_path: Path):
    certificate = Certificate([guarantee()], [depth(2, 0.7)])
    write_certificate(tmp_path, certificate)
    assert read_certificate(tmp_path) == certificate
    assert [path.name for path in tmp_path.iterdir()] == [CERTIFICATE]


def test_a_folder_without_one_has_none(tmp_path: Path):
    assert read_certificate(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", '{"guarantees": 5}', '{"stamp": "valid"}'])
def test_damage_is_one_sentence_that_names_the_file(tmp_path: Path, text: str):
    (tmp_path / CERTIFICATE).write_text(text)
    with pytest.raises(CertificateError, match=r"certificate\.json is not a certificate .*helios calibrate"):
        read_certificate(tmp_path)


def test_a_statement_replaces_its_like_and_no_other():
    both = Certificate([guarantee(), guarantee(mode="synchronized")])
    after = both.with_guarantee(guarantee(risk=0.1))
    assert [(guarantee.mode, guarantee.risk) for guarantee in after.guarantees] == [
        ("synchronized", 0.05),
        ("per_row", 0.1),
    ]
    known = Certificate(depths=[depth(2, 0.6), depth(3, 0.7), depth(2, 0.5, "bfloat16")])
    found = known.with_depths([depth(2, 0.65), depth(1, 0.3)])
    assert [(depth.depth, depth.basis.dtype, depth.agreement) for depth in found.depths] == [
        (1, "float32", 0.3),
        (2, "bfloat16", 0.5),
        (2, "float32", 0.65),
        (3, "float32", 0.7),
    ]


def test_what_is_known_of_a_depth_is_of_its_dtype_too():
    certificate = Certificate(depths=[depth(2, 0.6)])
    assert certificate.depth_agreement(2, "float32") == depth(2, 0.6)
    assert certificate.depth_agreement(2, "bfloat16") is None
    assert certificate.depth_agreement(3, "float32") is None


def test_thresholds_do_not_change_the_heads_but_weights_do(tmp_path: Path):
    def describe(**fields) -> str:
        exits = {"num_layers": 4, "exits": [{"layer": 2, "head": "mlp"} | fields]}
        (tmp_path / "exits.json").write_text(json.dumps(exits))
        return heads_digest(tmp_path)

    (tmp_path / "exits.safetensors").write_bytes(b"weights")
    plain = describe()
    assert describe(threshold=0.5) == describe(thresholds={"softmax": 0.7}) == plain
    assert describe(rank=8) != plain
    (tmp_path / "exits.safetensors").write_bytes(b"other weights")
    assert describe() != plain
