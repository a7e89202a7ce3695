"""A model that a shard is to load (`Target`) or has loaded (`ServedModel`). Pure data."""

import msgspec

from router.catalog.repository import Choice
from router.text.tokenizer import Tokenizer
from shard.messages import Ready, ShardConfig


class Target(msgspec.Struct, frozen=True):
    """A candidate at a depth: what a shard is to load, and the tokenizer that goes with it."""

    name: str  # the candidate's, shown in answers and under /ops
    config: ShardConfig  # except `device`, which differs by shard
    tokenizer: Tokenizer


class ModelIdentity(msgspec.Struct, frozen=True):
    """Identity of a model's output: equal identities write the same text."""

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

    prompts: str  # class of the prompt; "": any model will do
    vocabulary: str | None = None  # digest of the tokenizer whose ids prompt or parameters use


class Requirements(msgspec.Struct, frozen=True):
    """Conditions for a waiting request to run on a model."""

    affinity: ModelIdentity | None = None  # the model that began it, which goes on while a shard has it
    vocabulary: str | None = None  # digest of the tokenizer whose ids the prompt uses
    exact: bool = False  # needs all layers, and stays with the model that begins it
    prompts: str = ""  # class of the prompt, where the model must be good at it
    constrained: bool = False  # its answer must follow a grammar

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
        """All layers are loaded."""
        return self.ready.depth == self.ready.num_layers

    def takes(self, requirements: Requirements) -> bool:
        """A request with these requirements may run here, if need be as a migration."""
        if requirements.vocabulary not in (None, self.tokenizer.digest):
            return False
        if requirements.constrained and not self.ready.can_constrain:
            return False
        return not requirements.exact or (self.is_whole and requirements.affinity in (None, self.identity))

    def segment(self, from_token: int) -> Segment:
        return Segment(self.target.name, self.ready.version, self.ready.depth, from_token)
