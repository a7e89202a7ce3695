"""A candidate's profile before loading: its size by layers, and the agreement certified at its depths."""

import msgspec

from router.catalog.repository import Candidate, Choice


class CandidateProfile(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes and certified agreement of a candidate, read from its files."""

    candidate: Candidate
    num_layers: int
    layer_bytes: int  # weights of one layer
    other_bytes: int  # weights outside of layers
    kv_bytes: int  # per token and layer
    proven: dict[int, float] = {}  # depth -> lower bound of agreement with its own full depth
    unavailable_reason: str = ""  # why it cannot be served; "" if it can

    @property
    def choices(self) -> list[Choice]:
        """By depth."""
        own = self.candidate
        depths = [depth for depth in own.depths if depth < self.num_layers]
        return [Choice(own.name, depth) for depth in [*depths, *([self.num_layers] if own.whole else [])]]

    def weight_bytes(self, depth: int) -> int:
        return self.other_bytes + depth * self.layer_bytes
