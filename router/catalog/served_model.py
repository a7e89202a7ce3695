"""What a shard serves: a candidate at a depth, and what it becomes once a shard has loaded it. Pure data."""

import msgspec

from router.catalog.repository import Choice
from router.text.tokenizer import Tokenizer
from shard.messages import Ready, ShardConfig


class Target(msgspec.Struct, frozen=True):
    """A candidate at a depth: what a shard is to load, and the tokenizer that goes with it."""

    name: str  # as answers and /ops call the candidate
    config: ShardConfig  # but for `device`, which is each shard's own
    tokenizer: Tokenizer


class ModelIdentity(msgspec.Struct, frozen=True):
    """Who wrote: equal ones write the same text."""

    model: str
    version: str
    depth: int


class Segment(msgspec.Struct, frozen=True):
    """Which model wrote an answer from one token on."""

    model: str
    version: str
    depth: int
    from_token: int

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.model, self.version, self.depth)


class RoutingKey(msgspec.Struct, frozen=True):
    """Routing key of a request that has not started."""

    prompts: str  # what the prompt is about; "": no matter, any model that takes it is as good
    vocabulary: str | None = None  # prompt or parameters have token ids of the tokenizer with this digest


class Requirements(msgspec.Struct, frozen=True):
    """What a model must be for a waiting request to run on it."""

    affinity: ModelIdentity | None = None  # begun there, and goes on there while a shard has it
    vocabulary: str | None = None  # its prompt is token ids of the tokenizer with this digest
    exact: bool = False  # all layers, and the answer stays with the model that begins it
    prompts: str = ""  # what it is about, where the model that answers is to be good at that

    @property
    def routing_key(self) -> RoutingKey:
        return RoutingKey(self.prompts, self.vocabulary)


class ServedModel(msgspec.Struct, frozen=True):
    """A target that a shard has loaded, under the epoch of its `Prepare` (0: the shard started with it)."""

    epoch: int
    target: Target
    ready: Ready

    @property
    def tokenizer(self) -> Tokenizer:
        return self.target.tokenizer

    @property
    def identity(self) -> ModelIdentity:
        return ModelIdentity(self.target.name, self.ready.version, self.ready.depth)

    @property
    def choice(self) -> Choice:
        return Choice(self.target.name, self.ready.depth)

    @property
    def is_whole(self) -> bool:
        """All layers are there."""
        return self.ready.depth == self.ready.num_layers

    def takes(self, requirements: Requirements) -> bool:
        """Whether such a request may run here, be it as a migration."""
        if requirements.vocabulary not in (None, self.tokenizer.digest):
            return False
        return not requirements.exact or (self.is_whole and requirements.affinity in (None, self.identity))

    def segment(self, from_token: int) -> Segment:
        return Segment(self.target.name, self.ready.version, self.ready.depth, from_token)
