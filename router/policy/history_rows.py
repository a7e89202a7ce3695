"""From a window of telemetry to a row of history: what a choice was measured to do. Pure."""

import msgspec

from router.catalog.repository import Choice
from shard.quality.agreement import Sums
from telemetry.cost import CostFit
from telemetry.history import Interval, Row
from telemetry.window import Answers, Window

_P95 = 0.95
_MOST_FOREIGN = 0.1  # share of tokens in a window that still tells of a choice
_MOST_KEPT = 150  # requests that an earlier measurement counts for


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What a window does not say of itself."""

    prompts: str  # what most of them were about
    excluded_classes: frozenset[str] = frozenset()  # classes of prompts that it is no longer sent
    now_s: float
    swap_ms: float | None = None  # what the last change to the choice took, from another candidate
    deepen_ms: float | None = None  # and from another depth
    version: str = ""


def row_of(choice: Choice, window: Window, around: Circumstances) -> Row:
    """What the window says, as history keeps it.

    Answers are read again some time after they were given, so of excluded classes none counts.
    """
    answers = _answers(window, around.excluded_classes)
    return Row(
        candidate=choice.candidate,
        depth=choice.depth,
        measured_at=int(around.now_s),
        num_requests=window.requests,
        num_tokens=window.tokens,
        throughput=window.throughput,
        cost=window.cost.fit(),
        exits=dict(sorted(window.tokens_by_exit.items())),
        breaches=window.breaches,
        agreement=interval_of(answers),
        perplexity=answers.perplexity,
        bits_per_byte=answers.bits_per_byte,
        joules_per_token=window.joules_per_token,
        swap_ms=around.swap_ms,
        deepen_ms=around.deepen_ms,
        version=around.version,
        prompts=around.prompts,
        ttft_p95_ms=window.ttft_ms.quantile(_P95),
        itl_p95_ms=window.itl_ms.quantile(_P95),
    )


def _answers(window: Window, excluded_classes: frozenset[str]) -> Answers:
    if not excluded_classes:
        return window.answers
    own = Answers()
    for name in window.answers_of.keys() - excluded_classes:
        own.merge(window.answers_of[name])
    return own


def tells(window: Window, excluded_classes: frozenset[str]) -> bool:
    """It is about prompts that the choice is sent, and not much about others that were begun on it before."""
    if not excluded_classes:
        return True
    num_tokens = sum(use.tokens for use in window.classes.values())
    num_excluded = sum(use.tokens for name, use in window.classes.items() if name in excluded_classes)
    return num_tokens > 0 and num_excluded <= _MOST_FOREIGN * num_tokens


def brought_up(known: Row | None, new: Row) -> Row:
    """A row with what is older, where the new one has not measured it; of another version nothing is kept."""
    if known is None or known.version != new.version:
        return new
    kept = {
        name: getattr(known, name)
        for name in ("cost", "agreement", "perplexity", "bits_per_byte", "swap_ms", "deepen_ms")
        if getattr(new, name) is None
    }
    return msgspec.structs.replace(new, **kept)


def pooled(earlier: Row | None, new: Row) -> Row:
    """A row whose cost rests on an earlier measurement too: few requests leave it uncertain."""
    row = brought_up(earlier, new)
    if earlier is None or earlier.version != new.version or earlier.cost is None or new.cost is None:
        return row
    before = min(earlier.num_requests, _MOST_KEPT)
    share = new.num_requests / max(1, new.num_requests + before)
    pairs = zip(msgspec.structs.astuple(earlier.cost), msgspec.structs.astuple(new.cost), strict=True)
    cost = CostFit(*((1 - share) * old + share * late for old, late in pairs))
    return msgspec.structs.replace(row, cost=cost, num_requests=new.num_requests + before)


def interval_of(answers: Answers) -> Interval | None:
    """Agreement with its bounds; None without an answer that was read again."""
    if not answers.tokens:
        return None
    share = Sums(
        answers.num_answers,
        answers.tokens,
        answers.agreeing,
        answers.tokens_squared,
        answers.agreeing_squared,
        answers.agreeing_by_tokens,
    ).share()
    return Interval(share.agreement, share.low, share.high, answers.num_answers)
