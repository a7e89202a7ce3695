"""Memory arithmetic: weights, then KV cache for requests of the greatest length. Pure."""

from collections.abc import Mapping

import msgspec


class TooSmall(ValueError):
    """The memory does not hold the model and one request; the message is one sentence."""


class Load(msgspec.Struct, frozen=True):
    """A model at a depth. `token_bytes` is the KV cache of one token."""

    depth: int
    weight_bytes: int
    token_bytes: float


class Footprint(msgspec.Struct, frozen=True):
    """A model's memory by the number of loaded layers."""

    weight_bytes: Mapping[int, int]
    token_bytes: Mapping[int, float]  # of KV cache

    @property
    def num_layers(self) -> int:
        return max(self.weight_bytes)

    def total_bytes(self, depth: int, num_requests: int, request_tokens: int) -> int:
        """Bytes of weights, and of KV cache for `num_requests` requests."""
        return self.weight_bytes[depth] + round(num_requests * request_tokens * self.token_bytes[depth])

    def kv_bytes(self, depth: int, memory_bytes: int) -> int:
        """Bytes left beside the weights. Raises `TooSmall` if none are."""
        left = memory_bytes - self.weight_bytes[depth]
        if left <= 0:
            needed, given = self.weight_bytes[depth] / 2**20, memory_bytes / 2**20
            raise TooSmall(f"{depth} layers weigh {needed:.0f} MiB, and the memory is to be {given:.0f} MiB")
        return left

    def largest_batch(self, depth: int, memory_bytes: int, request_tokens: int) -> int:
        """Number of requests of this length that fit beside the weights. Raises `TooSmall`."""
        fitting = self.kv_bytes(depth, memory_bytes) / (request_tokens * self.token_bytes[depth])
        if fitting < 1:
            raise TooSmall(
                f"beside {depth} layers there is no room for one request of {request_tokens} tokens"
            )
        return int(fitting + 1e-6)


def footprint_of(whole: Load, capped: Load) -> Footprint:
    """A footprint from measurements at full depth and at a lower depth, interpolated linearly."""
    layer_bytes = (whole.weight_bytes - capped.weight_bytes) / (whole.depth - capped.depth)
    depths = range(1, whole.depth + 1)
    return Footprint(
        {depth: round(whole.weight_bytes - (whole.depth - depth) * layer_bytes) for depth in depths},
        {depth: whole.token_bytes * depth / whole.depth for depth in depths},
    )
