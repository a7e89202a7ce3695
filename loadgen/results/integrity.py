"""Whether every answer came once, whole and as its own: what the scenarios promise.

Lost: asked for and not ended in order, or with tokens missing. Duplicated: a token or an end twice. Mixed:
parts of another answer inside. What a server is right to do is not counted: refusing with 429, or ending
what we hung up on.
"""

from collections.abc import Iterable, Sequence

import msgspec

from loadgen.client.records import Flaw, Outcome, Record

LOST = {Flaw.GAP, Flaw.COUNT_DIFFERS}
DUPLICATED = {Flaw.DUPLICATED, Flaw.AFTER_END}
MIXED = {Flaw.MIXED, Flaw.TEXT_DIFFERS}
SNIPPET_CHARS = 48  # so long a stretch of another's answer is no chance


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
    told = record.output_tokens
    return record.finish_reason == "length" and told is not None and told < record.max_tokens


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
    """Answers that part from an earlier one of their own and go on as the answer to another prompt.

    Near-ties may turn an answer aside; what it then says is its own, not word for word one other's.
    """
    return [r for r in unequal if not r.flaws and _is_foreign(r, first[_key(r)], first.values())]


def _is_foreign(record: Record, reference: Record, others: Iterable[Record]) -> bool:
    """All that comes behind the parting is a stretch of another prompt's answer: a shared phrase is not.

    Nor is what two tasks about one passage may well have in common.
    """
    pairs = enumerate(zip(record.text, reference.text, strict=False))
    parting = next((i for i, (own, known) in pairs if own != known), len(reference.text))
    rest = record.text[parting:].strip()
    return len(rest) >= SNIPPET_CHARS and any(
        rest in other.text and other.prompt[-SNIPPET_CHARS:] != record.prompt[-SNIPPET_CHARS:]
        for other in others
    )


def _line(name: str, record: Record) -> str:
    flaws = ", ".join(record.flaws)
    what = f"{record.outcome}{f' ({record.detail})' if record.detail else ''}{f'; {flaws}' if flaws else ''}"
    return f"{name}: request {record.number} ({record.group}), {record.num_tokens} tokens: {what}"
