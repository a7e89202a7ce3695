"""Text is found again, by whoever may find it, in memory that does not grow."""

import gc
import random
import weakref

import pytest

from shard.drafts.ngram_pool import NgramPool
from shard.drafts.own_text import OwnText
from shard.drafts.text import TextDrafter
from shard.engine.sequence import Sequence
from shard.messages import DraftSharing, NewSequence


def sequence_of(token_ids: list[int], salt: str = "", number: int = 0) -> Sequence:
    return Sequence(NewSequence(number, 0, token_ids, len(token_ids), 100, cache_salt=salt))


def random_text(length: int, seed: int, vocab_size: int = 1000) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(vocab_size) for _ in range(length)]


def test_what_followed_the_longest_match_is_drafted() -> None:
    ids = [1, 2, 3, 4, 5, 6, 9, 3, 4, 7, 8, 2, 3, 4]
    own = OwnText(100)
    own.extend(ids)
    assert own.find(ids, 3) == ([5, 6, 9], 3)  # 2 3 4, not the more recent 3 4


@pytest.mark.parametrize("vocab_size", [3, 30])
def test_every_draft_is_what_followed_a_match_of_that_length(vocab_size: int) -> None:
    ids, own = random_text(300, 1, vocab_size), OwnText(300)
    for end in range(3, len(ids)):
        own.extend(ids[:end])
        found, matched = own.find(ids[:end], 1)
        places = [p for p in range(2, end) if ids[p - matched : p] == ids[end - matched : end]]
        assert not found or found[0] in {ids[p] for p in places if p >= matched}


def test_a_repetition_goes_on() -> None:
    ids, own = [5, 6, 7] * 3, OwnText(20)
    own.extend(ids)
    assert own.find(ids, 8)[0] == [5, 6, 7, 5, 6, 7, 5, 6]


@pytest.mark.parametrize(
    ("sharing", "salt", "finds"),
    [(DraftSharing.SHARD, "a", True), (DraftSharing.SHARD, "b", False), (DraftSharing.REQUEST, "a", False)],
)
def test_others_text_is_found_under_the_same_salt_alone(
    sharing: DraftSharing, salt: str, finds: bool
) -> None:
    text = random_text(50, 2)
    drafter = TextDrafter(sharing)
    drafter.retire(sequence_of(text, "a"))
    (draft,) = drafter.propose([sequence_of(text[:20], salt)], [8])
    assert draft.token_ids == (text[20:28] if finds else [])
    assert len(draft.grades) == len(draft.token_ids)


def test_what_was_cleared_is_found_no_more_and_new_text_is() -> None:
    text = random_text(50, 2)
    drafter = TextDrafter()
    drafter.retire(sequence_of(text, "a"))
    drafter.clear([])
    assert drafter.propose([sequence_of(text[:20], "a")], [8])[0].token_ids == []
    drafter.retire(sequence_of(text, "a"))
    assert drafter.propose([sequence_of(text[:20], "a")], [8])[0].token_ids == text[20:28]


def test_what_a_running_sequence_said_before_a_clear_is_never_found() -> None:
    text = random_text(80, 2)
    drafter, running = TextDrafter(), sequence_of(text[:40], "a")
    drafter.clear([running])
    running.token_ids += text[40:]
    drafter.retire(running)
    assert drafter.propose([sequence_of(text[:20], "a")], [8])[0].token_ids == []
    assert drafter.propose([sequence_of(text[30:40], "a")], [8])[0].token_ids == []
    assert drafter.propose([sequence_of(text[50:60], "a")], [8])[0].token_ids == text[60:68]


def test_the_pool_has_a_size_and_forgets_what_is_oldest() -> None:
    pool = NgramPool(1 << 10)
    size = pool.num_bytes
    texts = [random_text(200, seed) for seed in range(30)]

    def share_found(text: list[int]) -> float:
        found = [pool.find(7, text[at - 3 : at]) == text[at] for at in range(3, len(text))]
        return sum(found) / len(found)

    for text in texts:
        for at in range(3, len(text)):
            pool.enter(7, text[at - 3 : at], text[at])
    assert pool.num_bytes == size
    assert share_found(texts[-1]) > 0.9
    assert share_found(texts[0]) < 0.1


def test_nothing_is_kept_of_a_sequence_that_is_gone() -> None:
    drafter = TextDrafter()
    sequences = [sequence_of(random_text(40, i), number=i) for i in range(5)]
    drafter.propose(sequences, [4] * 5)
    for sequence in sequences:
        drafter.retire(sequence)
    gone = [weakref.ref(sequence) for sequence in sequences]
    del sequence, sequences
    gc.collect()
    assert not any(ref() for ref in gone)
