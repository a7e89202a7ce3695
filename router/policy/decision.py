"""What a decision says, and how the plain ones are made: to stay, or to have one choice for all. Pure."""

import enum

import msgspec

from router.catalog.repository import Choice
from router.policy.observation import Observation
from router.policy.splitting import Split
from router.policy.weighing import Ranked


class Kind(enum.StrEnum):
    STAY = "stay"
    EVALUATE = "evaluate"  # try it on live requests
    DEEPEN = "deepen"  # more layers of what serves
    LIGHTEN = "lighten"  # fewer
    SWITCH = "switch"  # another candidate
    SPLIT = "split"  # several choices, each for the prompts it is best for


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why. `choice` is what shall serve from now on; of `evaluate`, what shall be tried."""

    kind: Kind
    choice: Choice  # of a split, the one with the most to do
    why: str  # a sentence for a person
    considered: tuple[Ranked, ...] = ()
    waiting: tuple[Choice, ...] = ()  # to be tried after it
    is_elective: bool = False  # things were well enough: it counts against the budget of swaps
    split: dict[str, Choice] = {}  # what prompts of each class are served by; {}: all by `choice`
    shards: tuple[Choice, ...] = ()  # what each is to serve; (): all `choice`, or one of them what is tried

    @property
    def settles(self) -> bool:
        """All was weighed and nothing is to be tried: it counts as a reassessment."""
        return bool(self.considered) and self.kind is not Kind.EVALUATE


def stay(
    observation: Observation, why: str, ranked: list[Ranked] | None = None, shards: tuple[Choice, ...] = ()
) -> Decision:
    """Go on as it is; of a split, with these `shards`."""
    return Decision(
        kind=Kind.STAY,
        choice=observation.serving,
        why=first_up(why),
        considered=tuple(ranked or ()),
        split=observation.split,
        shards=shards,
    )


def change(observation: Observation, choice: Choice, why: str, ranked: list[Ranked]) -> Decision:
    """Have all served by one choice."""
    serving = observation.serving
    if observation.split or choice.candidate != serving.candidate:
        kind = Kind.SWITCH
    else:
        kind = Kind.DEEPEN if choice.depth > serving.depth else Kind.LIGHTEN
    return Decision(kind=kind, choice=choice, why=first_up(why), considered=tuple(ranked))


def split_up(observation: Observation, split: Split, why: str, ranked: list[Ranked]) -> Decision:
    """Have each class of prompts served by its own choice."""
    counts = {choice: split.shards.count(choice) for choice in split.choices.values()}
    return elective(
        Decision(
            kind=Kind.SPLIT,
            choice=max(sorted(counts), key=counts.__getitem__),
            why=first_up(why),
            considered=(*ranked, *split.considered),
            split=split.choices,
            shards=split.shards,
        )
    )


def elective(decision: Decision) -> Decision:
    """It counts against the budget of swaps."""
    return msgspec.structs.replace(decision, is_elective=True)


def first_up(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
