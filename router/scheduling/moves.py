"""Where a request ran, and why it left: its way from shard to shard and from model to model."""

import enum

import msgspec

MAX_MOVES = 64  # the latest that a request keeps


class What(enum.StrEnum):
    """What happened to a request."""

    STARTED = "started"  # on a shard
    RESUMED = "resumed"  # on the shard and the model that it left
    MOVED = "moved"  # to another shard or model
    PREEMPTED = "preempted"  # its shard had no KV block left; it is queued again
    SHARD_DIED = "shard_died"  # likewise queued again
    MODEL_CHANGED = "model_changed"  # likewise queued again


class Move(msgspec.Struct, frozen=True):
    """`at` is loop time in seconds. `shard`, `model` and `depth` are those that it starts on, or leaves."""

    at: float
    what: What
    shard: int
    model: str
    depth: int
    num_generated_tokens: int  # by then
