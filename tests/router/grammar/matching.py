"""What a grammar accepts and what it writes, by llguidance over single bytes."""

import json
import random

from llguidance import LLMatcher, LLTokenizer

from router.grammar import constraint
from router.grammar.compiling import grammar_of
from router.grammar.constraint import Constraint

TOKENIZER = LLTokenizer("byte")


def of_schema(schema: object) -> Constraint:
    return constraint.schema(json.dumps(schema).encode())


def matcher_of(made: Constraint) -> LLMatcher:
    """Raises GrammarError."""
    matcher = LLMatcher(TOKENIZER, grammar_of(made), log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    return matcher


def accepts(made: Constraint, text: str) -> bool:
    """The whole text may be an answer."""
    matcher, data = matcher_of(made), list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()


def written(made: Constraint, seed: int, max_bytes: int = 2000) -> str | None:
    """An answer of bytes drawn among the legal ones. None: it was not over after so many."""
    matcher, draw, text = matcher_of(made), random.Random(seed), bytearray()
    while len(text) < max_bytes:
        if matcher.is_stopped() or (matcher.is_accepting() and draw.random() < 0.5):
            return text.decode()
        mask = matcher.compute_bitmask()
        legal = [byte for byte in range(256) if mask[byte // 8] >> byte % 8 & 1]
        closing = [byte for byte in legal if byte in b'"]}']
        byte = draw.choice(closing if closing and draw.random() < 0.3 else legal)
        assert matcher.consume_token(byte)
        text.append(byte)
    return None
