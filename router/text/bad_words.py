"""Words that an answer must not have, as the sequences of tokens that would write them."""

from collections.abc import Sequence

from router.text.tokenizer import Tokenizer


def bad_token_ids(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """vLLM's: each word as it begins a text and, where that is as many tokens, as it follows a space."""
    found: list[list[int]] = []
    for word in words:
        first = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        is_other = bool(spaced) and spaced[:1] != first[:1] and len(spaced) == len(first)
        found += [ids for ids in (first, spaced if is_other else []) if ids]
    return found
