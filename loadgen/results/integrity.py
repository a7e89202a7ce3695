"""Checks that every answer came exactly once, complete and unmixed.

Lost: not ended cleanly, or with tokens missing. Duplicated: a token or an end twice. Mixed: with parts of
another answer. Refusals with 429 and requests that the client cancelled do not count.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from loadgen.client.records import Flaw, Outcome, Record

LOST = {Flaw.GAP, Flaw.COUNT_DIFFERS}
DUPLICATED = {Flaw.DUPLICATED, Flaw.AFTER_END}
MIXED = {Flaw.MIXED, Flaw.TEXT_DIFFERS}
SNIPPET_CHARS = 48  # a common passage of this length is no coincidence
LOOP_CHARS = 16  # passages that repeat this many characters are no evidence


class Integrity(msgspec.Struct, frozen=True):
    """Counts of broken answers, with a line about each of the first few."""

    num_requests: int
    lost: int
    duplicated: int
    mixed: int
    examples: list[str]
    num_repeated: int = 0  # greedy answers to a prompt that the same version had answered before
    num_unequal: int = 0  # of these, those with another text

    @property
    def is_whole(self) -> bool:
        return self.lost == self.duplicated == self.mixed == 0


def integrity_of(records: Sequence[Record]) -> Integrity:
    """Check the answers of a run."""
    first = _first_answers(records)
    lost = [record for record in records if _is_lost(record)]
    doubled = [record for record in records if DUPLICATED & set(record.flaws)]
    repeated = [record for record in records if first.get(_key(record), record) is not record]
    unequal = [record for record in repeated if record.text != first[_key(record)].text]
    mixed = [record for record in records if MIXED & set(record.flaws)] + _with_foreign_text(unequal, first)
    labelled = [("lost", lost), ("duplicated", doubled), ("mixed", mixed)]
    return Integrity(
        num_requests=len(records),
        lost=len(lost),
        duplicated=len(doubled),
        mixed=len(mixed),
        examples=[_line(name, record) for name, found in labelled for record in found[:5]],
        num_repeated=len(repeated),
        num_unequal=len(unequal),
    )


def _is_lost(record: Record) -> bool:
    if record.outcome.is_failure or record.outcome is Outcome.PENDING:
        return True
    if LOST & set(record.flaws):
        return True
    return _is_cut_short(record)


def _is_cut_short(record: Record) -> bool:
    """The answer claims to have ended by length, with fewer tokens than that."""
    num_tokens = record.output_tokens
    return record.finish_reason == "length" and num_tokens is not None and num_tokens < record.max_tokens


Key = tuple[str, int, str]


def _key(record: Record) -> Key:
    """Key of requests whose greedy answers must be equal."""
    return record.prompt, record.max_tokens, _signature(record)


def _signature(record: Record) -> str:
    segments = [(s.model, s.version, s.depth) for s in record.segments]
    return repr(segments[0] if len(segments) == 1 else segments) if segments else record.version


def _first_answers(records: Sequence[Record]) -> dict[Key, Record]:
    found: dict[Key, Record] = {}
    for record in records:
        if record.outcome is Outcome.OK and record.prompt and len(record.segments) < 2:
            found.setdefault(_key(record), record)
    return found


def _with_foreign_text(unequal: Sequence[Record], first: dict[Key, Record]) -> list[Record]:
    """Answers that diverge from an earlier one to their prompt, then contain text of another prompt's answer.

    Near-ties may change an answer; its continuation is then its own, not another answer's text.
    """
    asides = {id(r): (r, _stretches_behind_parting(r, first[_key(r)])) for r in unequal if not r.flaws}
    speakers = _speakers({stretch for _, own in asides.values() for stretch in own}, first.values())
    return [r for r, own in asides.values() if any(_is_foreign(r, speakers[stretch]) for stretch in own)]


def _stretches_behind_parting(record: Record, reference: Record) -> set[str]:
    """Passages of the answer after the divergence that occur neither in its prompt nor in the earlier answer.

    Repeated passages are left out: two answers may run into the same loop.
    """
    pairs = enumerate(zip(record.text, reference.text, strict=False))
    parting = next((i for i, (own, known) in pairs if own != known), len(reference.text))
    known = (record.prompt, reference.text)
    said = Counter(_stretches(record.text, LOOP_CHARS))
    fresh = (
        stretch
        for stretch in _stretches(record.text[parting:], SNIPPET_CHARS)
        if said[stretch[-LOOP_CHARS:]] == 1
    )
    return {stretch for stretch in fresh if not any(stretch in text for text in known)}


def _speakers(stretches: set[str], answers: Iterable[Record]) -> dict[str, list[Record]]:
    """For each passage, the answers that contain it."""
    found: dict[str, list[Record]] = {stretch: [] for stretch in stretches}
    for answer in answers:
        for stretch in stretches.intersection(_stretches(answer.text, SNIPPET_CHARS)):
            found[stretch].append(answer)
    return found


def _stretches(text: str, length: int) -> Iterable[str]:
    return (text[i : i + length] for i in range(len(text) - length + 1))


def _is_foreign(record: Record, speakers: Sequence[Record]) -> bool:
    """The passage occurs in answers to exactly one other prompt; in several it would be a common phrase.

    Prompts with equal ends are tasks about one text, whose answers may share words.
    """
    prompts = {other.prompt for other in speakers} - {record.prompt}
    return len(prompts) == 1 and prompts.pop()[-SNIPPET_CHARS:] != record.prompt[-SNIPPET_CHARS:]


def _line(name: str, record: Record) -> str:
    flaws = ", ".join(record.flaws)
    what = f"{record.outcome}{f' ({record.detail})' if record.detail else ''}{f'; {flaws}' if flaws else ''}"
    return f"{name}: request {record.number} ({record.group}), {record.num_tokens} tokens: {what}"
