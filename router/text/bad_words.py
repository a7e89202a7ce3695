"""Encodes words that an answer must not contain."""

from collections.abc import Sequence

from router.text.tokenizer import Tokenizer


def bad_token_ids(words: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids as in vLLM: of each word alone and, if that has equally many tokens, after a space."""
    found: list[list[int]] = []
    for word in words:
        first = tokenizer.encode(word.lstrip(), add_special_tokens=False)
        spaced = tokenizer.encode(" " + word.lstrip(), add_special_tokens=False)
        is_other = bool(spaced) and spaced[:1] != first[:1] and len(spaced) == len(first)
        found += [ids for ids in (first, spaced if is_other else []) if ids]
    return found
