"""The struct of a decision, and constructors of the common ones. Pure."""

import enum

import msgspec

from router.catalog.repository import Choice
from router.policy.observation import Observation
from router.policy.splitting import Split
from router.policy.weighing import Ranked


class DecisionKind(enum.StrEnum):
    """What a decision changes."""

    STAY = "stay"
    EVALUATE = "evaluate"  # try it on live requests
    DEEPEN = "deepen"  # more layers of the served candidate
    LIGHTEN = "lighten"  # fewer
    SWITCH = "switch"  # another candidate
    SPLIT = "split"  # several choices, each for the prompts it is best for


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do and why. `choice` is to serve from now on, or, for `evaluate`, to be tried."""

    kind: DecisionKind
    choice: Choice  # of a split: the choice with the most load
    why: str  # a sentence for the operator
    considered: tuple[Ranked, ...] = ()
    waiting: tuple[Choice, ...] = ()  # to be tried after `choice`
    is_elective: bool = False  # not required: counts against the budget of swaps
    split: dict[str, Choice] = {}  # choice for each class of prompts; {}: `choice` for all
    shards: tuple[Choice, ...] = ()  # choice by shard; (): `choice` for all, or for the one evaluating

    @property
    def settles(self) -> bool:
        """All choices were compared and none is to be tried: it counts as a reassessment."""
        return bool(self.considered) and self.kind is not DecisionKind.EVALUATE


def stay(
    observation: Observation, why: str, ranked: list[Ranked] | None = None, shards: tuple[Choice, ...] = ()
) -> Decision:
    """Keep what serves; of a split, with these `shards`."""
    return Decision(
        kind=DecisionKind.STAY,
        choice=observation.serving,
        why=first_up(why),
        considered=tuple(ranked or ()),
        split=observation.split,
        shards=shards,
    )


def change(observation: Observation, choice: Choice, why: str, ranked: list[Ranked]) -> Decision:
    """Serve all prompts by one choice."""
    serving = observation.serving
    if observation.split or choice.candidate != serving.candidate:
        kind = DecisionKind.SWITCH
    else:
        kind = DecisionKind.DEEPEN if choice.depth > serving.depth else DecisionKind.LIGHTEN
    return Decision(kind=kind, choice=choice, why=first_up(why), considered=tuple(ranked))


def split_up(observation: Observation, split: Split, why: str, ranked: list[Ranked]) -> Decision:
    """Serve each class of prompts by its own choice."""
    counts = {choice: split.shards.count(choice) for choice in split.choices.values()}
    return elective(
        Decision(
            kind=DecisionKind.SPLIT,
            choice=max(sorted(counts), key=counts.__getitem__),
            why=first_up(why),
            considered=(*ranked, *split.considered),
            split=split.choices,
            shards=split.shards,
        )
    )


def elective(decision: Decision) -> Decision:
    """The decision, marked to count against the budget of swaps."""
    return msgspec.structs.replace(decision, is_elective=True)


def first_up(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
