import random

import pytest

from loadgen.traffic.filler import CANDIDATES, Filler, learn_filler


async def test_words_of_several_tokens_are_left_out_and_lengths_are_exact() -> None:
    """A tokenizer with two special tokens in front, for which words with an `o` are two tokens."""

    async def count(text: str) -> int:
        return 2 + sum(2 if "o" in word else 1 for word in text.split())

    filler = await learn_filler(count)
    assert filler.is_exact
    assert not any("o" in word for word in filler.words)
    for wanted in (5, 64, 300):
        assert await count(filler.prompt(wanted, random.Random(1))) == wanted


async def test_the_first_word_may_count_differently() -> None:
    """As with tokenizers for which a word without a space in front is another one."""

    async def count(text: str) -> int:
        return len(text.split()) + (3 if text else 0)

    filler = await learn_filler(count)
    assert await count(filler.prompt(50, random.Random(1))) == 50


async def test_a_server_that_cannot_count_makes_an_estimate() -> None:
    async def count(text: str) -> None:
        return None

    filler = await learn_filler(count)
    assert filler == Filler()
    assert not filler.is_exact


async def test_a_tokenizer_of_letters_makes_an_estimate() -> None:
    async def count(text: str) -> int:
        return len(text)

    assert not (await learn_filler(count)).is_exact


def test_text_is_seeded() -> None:
    first, again, other = (Filler().text(40, random.Random(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first.split()) == 40


def test_candidates_are_different_words() -> None:
    assert len(set(CANDIDATES)) == len(CANDIDATES) > 100


@pytest.mark.parametrize("tokens", [1, 2])
def test_the_shortest_prompts_have_a_word(tokens: int) -> None:
    assert Filler(extra_tokens=3).prompt(tokens, random.Random(0))
