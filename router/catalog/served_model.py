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


class Identity(msgspec.Struct, frozen=True):
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
    def identity(self) -> Identity:
        return Identity(self.model, self.version, self.depth)


class Kind(msgspec.Struct, frozen=True):
    """What decides which shards a request is left to that no model has begun."""

    prompts: str  # what the prompt is about; "": no matter, any model that takes it is as good
    vocabulary: str | None = None  # prompt or parameters have token ids of the tokenizer with this digest


class Need(msgspec.Struct, frozen=True):
    """What a model must be for a waiting request to run on it."""

    home: Identity | None = None  # begun there, and goes on there while a shard has it
    vocabulary: str | None = None  # its prompt is token ids of the tokenizer with this digest
    exact: bool = False  # all layers, and the answer stays with the model that begins it
    prompts: str = ""  # what it is about, where the model that answers is to be good at that

    @property
    def kind(self) -> Kind:
        return Kind(self.prompts, self.vocabulary)


ANYTHING = Need()


class Generation(msgspec.Struct, frozen=True):
    """A target living in a shard, under the ticket that prepared it (0: the shard started with it)."""

    ticket: int
    target: Target
    ready: Ready

    @property
    def tokenizer(self) -> Tokenizer:
        return self.target.tokenizer

    @property
    def identity(self) -> Identity:
        return Identity(self.target.name, self.ready.version, self.ready.depth)

    @property
    def choice(self) -> Choice:
        return Choice(self.target.name, self.ready.depth)

    @property
    def is_whole(self) -> bool:
        """All layers are there."""
        return self.ready.depth == self.ready.num_layers

    def takes(self, need: Need) -> bool:
        """Whether such a request may run here, be it as a migration."""
        if need.vocabulary not in (None, self.tokenizer.digest):
            return False
        return not need.exact or (self.is_whole and need.home in (None, self.identity))

    def segment(self, from_token: int) -> Segment:
        return Segment(self.target.name, self.ready.version, self.ready.depth, from_token)
