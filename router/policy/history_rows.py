"""Turns windows of telemetry into history rows. Pure."""

import msgspec

from router.catalog.repository import Choice
from shard.quality.agreement import Share, Sums
from telemetry.cost import CostFit
from telemetry.history import Interval, Row
from telemetry.window import Answers, Window

_P95 = 0.95
_MOST_FOREIGN = 0.1  # largest share of excluded classes' tokens in a usable window
_MOST_KEPT = 150  # largest weight of an earlier measurement, in requests


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """Facts about a window that it does not contain."""

    prompts: str  # class of most prompts
    excluded_classes: frozenset[str] = frozenset()  # classes no longer sent to it
    now_s: float
    swap_ms: float | None = None  # duration of the last change to the choice from another candidate
    deepen_ms: float | None = None  # the same from another depth
    version: str = ""


def row_of(choice: Choice, window: Window, around: Circumstances) -> Row:
    """The history row of a window.

    Scores of excluded classes are left out, since answers are scored some time later.
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
        exits={layer: window.tokens_by_exit[layer] for layer in sorted(window.tokens_by_exit) if layer},
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
    """The window is mostly of classes that the choice is sent, not of excluded ones begun on it earlier."""
    if not excluded_classes:
        return True
    num_tokens = sum(use.tokens for use in window.classes.values())
    num_excluded = sum(use.tokens for name, use in window.classes.items() if name in excluded_classes)
    return num_tokens > 0 and num_excluded <= _MOST_FOREIGN * num_tokens


def brought_up(known: Row | None, new: Row) -> Row:
    """The new row, with gaps filled from an older row of the same version."""
    if known is None or known.version != new.version:
        return new
    kept = {
        name: getattr(known, name)
        for name in ("cost", "agreement", "perplexity", "bits_per_byte", "swap_ms", "deepen_ms")
        if getattr(new, name) is None
    }
    return msgspec.structs.replace(new, **kept)


def pooled(earlier: Row | None, new: Row) -> Row:
    """The row with its cost fit pooled with an earlier one, since few requests leave it uncertain."""
    row = brought_up(earlier, new)
    if earlier is None or earlier.version != new.version or earlier.cost is None or new.cost is None:
        return row
    before = min(earlier.num_requests, _MOST_KEPT)
    share = new.num_requests / max(1, new.num_requests + before)
    pairs = zip(msgspec.structs.astuple(earlier.cost), msgspec.structs.astuple(new.cost), strict=True)
    cost = CostFit(*((1 - share) * old + share * late for old, late in pairs))
    return msgspec.structs.replace(row, cost=cost, num_requests=new.num_requests + before)


def interval_of(answers: Answers) -> Interval | None:
    """Agreement with its bounds; None without scored answers."""
    share = share_of(answers)
    return None if share is None else Interval(share.agreement, share.low, share.high, answers.num_answers)


def share_of(answers: Answers) -> Share | None:
    """Agreement with its bounds and tokens; None without scored answers."""
    if not answers.tokens:
        return None
    return Sums(
        answers.num_answers,
        answers.tokens,
        answers.agreeing,
        answers.tokens_squared,
        answers.agreeing_squared,
        answers.agreeing_by_tokens,
    ).share()
