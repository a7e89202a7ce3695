"""Certificates made by hand."""

import msgspec

from shard.quality.certificate import (
    Basis,
    DepthAgreement,
    Guarantee,
    Setting,
)

BASIS = Basis("abc", "def", "float32", "chat", "123", 400, 64, 0.0, 0, "2026-11-21T12:00:00Z")


def guarantee(**changes) -> Guarantee:
    setting = Setting({1: 0.9, 3: 0.8}, 0.01, 0.001, {1: 0.25, 3: 0.25, 4: 0.5}, 3.0)
    made = Guarantee("per_row", "recompute", "softmax", 0.05, 0.9, setting.thresholds, [setting], BASIS)
    return msgspec.structs.replace(made, **changes)


def depth(layers: int, agreement: float, dtype: str = "float32") -> DepthAgreement:
    basis = msgspec.structs.replace(BASIS, dtype=dtype)
    return DepthAgreement(layers, agreement, agreement - 0.05, 0.9, basis)
