"""Whether every answer came once, whole and as its own: what the scenarios promise.

Lost: asked for and not ended in order, or with tokens missing. Duplicated: a token or an end twice. Mixed:
parts of another answer inside. What a server is right to do is not counted: refusing with 429, or ending
what we hung up on.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from loadgen.client.records import Flaw, Outcome, Record

LOST = {Flaw.GAP, Flaw.COUNT_DIFFERS}
DUPLICATED = {Flaw.DUPLICATED, Flaw.AFTER_END}
MIXED = {Flaw.MIXED, Flaw.TEXT_DIFFERS}
SNIPPET_CHARS = 48  # so long a stretch of another's answer is no chance
LOOP_CHARS = 16  # what is said twice of so many is no evidence


class Integrity(msgspec.Struct, frozen=True):
    """Counts of broken answers, and a line about each of the first few."""

    num_requests: int
    lost: int
    duplicated: int
    mixed: int
    examples: list[str]
    num_repeated: int = 0  # answers to a prompt that the same version had answered before, greedily
    num_unequal: int = 0  # of these, with another text

    @property
    def is_whole(self) -> bool:
        return self.lost == self.duplicated == self.mixed == 0


def integrity_of(records: Sequence[Record]) -> Integrity:
    """Judge the answers of a run."""
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
    """Said to have ended for its length, with fewer tokens than that."""
    num_tokens = record.output_tokens
    return record.finish_reason == "length" and num_tokens is not None and num_tokens < record.max_tokens


Key = tuple[str, int, str]


def _key(record: Record) -> Key:
    """What two equal greedy answers have in common."""
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
    """Answers that part from an earlier one of their own and then hold words of another prompt's answer.

    Near-ties may turn an answer aside; what it then says is its own, not word for word one other's.
    """
    asides = {id(r): (r, _stretches_behind_parting(r, first[_key(r)])) for r in unequal if not r.flaws}
    speakers = _speakers({stretch for _, own in asides.values() for stretch in own}, first.values())
    return [r for r, own in asides.values() if any(_is_foreign(r, speakers[stretch]) for stretch in own)]


def _stretches_behind_parting(record: Record, reference: Record) -> set[str]:
    """What the answer says behind the parting that neither its prompt nor its other answer says.

    What it says again and again is left out: two answers may well run into the same loop.
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
    """For each stretch the answers that have it."""
    found: dict[str, list[Record]] = {stretch: [] for stretch in stretches}
    for answer in answers:
        for stretch in stretches.intersection(_stretches(answer.text, SNIPPET_CHARS)):
            found[stretch].append(answer)
    return found


def _stretches(text: str, length: int) -> Iterable[str]:
    return (text[i : i + length] for i in range(len(text) - length + 1))


def _is_foreign(record: Record, speakers: Sequence[Record]) -> bool:
    """The answers to one other prompt say it too. What the answers to several say is a common phrase.

    Prompts that end alike are tasks about one passage, whose answers may well have words in common.
    """
    prompts = {other.prompt for other in speakers} - {record.prompt}
    return len(prompts) == 1 and prompts.pop()[-SNIPPET_CHARS:] != record.prompt[-SNIPPET_CHARS:]


def _line(name: str, record: Record) -> str:
    flaws = ", ".join(record.flaws)
    what = f"{record.outcome}{f' ({record.detail})' if record.detail else ''}{f'; {flaws}' if flaws else ''}"
    return f"{name}: request {record.number} ({record.group}), {record.num_tokens} tokens: {what}"
