"""Grammars, compiled by llguidance, and the place of each constrained sequence in its own.

Which tokens are legal is a pure function of the answer so far, so that preemption, replay, drafts and
scoring all find the same. Where the grammar leaves one way to go on, its tokens are *forced*: they are
emitted without a pass, and computed along with the next token that is drawn.
"""

import functools
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

from shard.messages import MAX_LEXER_STATES, Grammar, GrammarReport, NewSequence

MAX_COMPILED = 64  # grammars kept; of more, the one not used for longest is compiled again
_REPLACEABLE = 64  # tokens at the end of a sequence that drafts may have replaced
_LIMITS = LLParserLimits(
    max_lexer_states=MAX_LEXER_STATES,
    verbose_errors=False,  # they would show the grammar
)


class GrammarCompiler:
    """Grammars of one model's vocabulary, compiled on a thread of its own while prompts are computed.

    `vocab_size` is the width of the model's logits. Ids that the tokenizer does not know are never legal.
    """

    def __init__(self, folder: Path, vocab_size: int, eos_token_ids: list[int]):
        self._path = folder / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._thread = ThreadPoolExecutor(1, "grammars")
        self._compiled: OrderedDict[str, Future[LLMatcher]] = OrderedDict()
        self.counters = GrammarCounters()

    @property
    def has_tokenizer(self) -> bool:
        """True if the model's folder has a tokenizer.json, without which no grammar can be compiled."""
        return self._path.is_file()

    def constrain(self, new: NewSequence) -> "GrammarState | None":
        """A new sequence's constraint, without waiting for its grammar to be compiled; None without one."""
        if new.grammar is None:
            return None
        source = new.grammar.source
        compiled = self._compiled.get(source)
        if compiled is None:
            compiled = self._compiled[source] = self._thread.submit(self._compile, source)
            if len(self._compiled) > MAX_COMPILED:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(source)
            self.counters.reused += 1
        return GrammarState(new.grammar, new.num_prompt_tokens, self, compiled)

    def warm_up(self) -> None:
        """Begin to read the vocabulary, which the first grammar needs: it takes most of a second."""
        if self.has_tokenizer:
            self._thread.submit(self._vocabulary)

    def wait(self, seconds: float) -> None:
        """Wait up to `seconds` for the grammars that are being compiled."""
        wait([compiled for compiled in self._compiled.values() if not compiled.done()], seconds)

    def begin_at(self, matcher: LLMatcher, text: str) -> LLMatcher:
        """A copy of a matcher behind `text`, the beginning of an answer."""
        copy = matcher.deep_copy()
        if text:
            copy.consume_tokens(self._vocabulary().tokenize_str(text, parse_special=True))
        return copy

    def illegal_tokens(self, matcher: LLMatcher) -> torch.Tensor:
        """Mask (V,) bool of the tokens that may not come next."""
        started = time.perf_counter()
        legal = np.frombuffer(matcher.compute_bitmask(), dtype=np.uint8)
        illegal = np.unpackbits(~legal, count=self._vocab_size, bitorder="little").view(bool)
        self.counters.masks += 1
        self.counters.mask_ms += (time.perf_counter() - started) * 1000
        return torch.from_numpy(illegal)

    def all_but(self, token_ids: list[int]) -> torch.Tensor:
        """Mask (V,) bool of all tokens but these."""
        illegal = torch.ones(self._vocab_size, dtype=torch.bool)
        illegal[token_ids] = False
        return illegal

    def all_but_ends(self) -> torch.Tensor:
        """Mask (V,) bool of the tokens that do not end an answer."""
        return self.all_but(self._eos_token_ids)

    def ends_an_answer(self, token_id: int) -> bool:
        return token_id in self._eos_token_ids

    def take_report(self) -> GrammarReport | None:
        """What was counted since the last report; None: nothing."""
        report, self.counters = GrammarReport(**vars(self.counters)), GrammarCounters()
        return None if report == GrammarReport() else report

    def _compile(self, source: str) -> LLMatcher:
        """Raises `ValueError` with one sentence."""
        started = time.perf_counter()
        matcher = LLMatcher(self._vocabulary(), source, log_level=0, limits=_LIMITS)
        matcher.compute_bitmask()  # the first takes a hundred times as long as others
        self.counters.compiled += 1
        self.counters.compile_ms += (time.perf_counter() - started) * 1000
        if matcher.is_error():
            raise ValueError(_first_line(matcher.get_error()))
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        return read_vocabulary(self._path, self._vocab_size, tuple(self._eos_token_ids))


@functools.lru_cache(maxsize=2)  # while a model is changed, there are two; depths of one have the same
def read_vocabulary(path: Path, vocab_size: int, eos_token_ids: tuple[int, ...]) -> LLTokenizer:
    """The vocabulary of a tokenizer.json, as llguidance reads it."""
    backend = Tokenizer.from_file(str(path))
    backend.no_truncation()
    backend.no_padding()
    return LLTokenizer(backend.to_str(), n_vocab=vocab_size, eos_token=list(eos_token_ids))


class GrammarCounters:
    """Counts and times since the last report. Threads add without a lock, and may lose an addition."""

    def __init__(self) -> None:
        self.compiled = self.reused = self.masks = self.forced_tokens = 0
        self.compile_ms = self.mask_ms = 0.0


class GrammarState:
    """A sequence's `Constraint`: its place in its grammar. Positions count the prompt's tokens too.

    It never raises: once `error` says why it cannot tell what is legal, everything is.
    """

    def __init__(
        self, grammar: Grammar, num_prompt_tokens: int, compiler: GrammarCompiler, compiled: Future[LLMatcher]
    ):
        self.error = ""
        self._grammar = grammar
        self._start = num_prompt_tokens + grammar.num_begun
        self._compiler = compiler
        self._compiled = compiled
        self._matcher: LLMatcher | None = None
        self._read: list[int] = []  # tokens from `start` on that the matcher has taken
        self._illegal: torch.Tensor | None = None  # where the matcher stands
        self._forced: list[int] | None = None  # there

    @property
    def is_ready(self) -> bool:
        """The grammar is compiled, so that no other method waits."""
        return self._compiled.done()

    def is_over(self, token_ids: list[int]) -> bool:
        """The grammar allows nothing behind these tokens."""
        matcher = self._at(token_ids, len(token_ids))
        return matcher is not None and matcher.is_stopped()

    def forced_token(self, token_ids: list[int], num_tokens: int) -> int | None:
        """The one token that may stand behind the first `num_tokens`; None if several may.

        Text that must follow is cut into tokens as the tokenizer would cut it, whatever other cuts there are.
        """
        matcher = self._at(token_ids, num_tokens)
        if matcher is None or matcher.is_stopped():
            return None
        if self._forced is None:
            self._forced = matcher.compute_ff_tokens()[:1]
        return self._forced[0] if self._forced else None

    def permits(self, token_ids: list[int], num_tokens: int, token_id: int) -> bool:
        """Whether a token may stand behind the first `num_tokens`: a hundred times as fast as `illegal`."""
        matcher = self._at(token_ids, num_tokens)
        if matcher is None:
            return True
        if matcher.is_stopped():
            return self._compiler.ends_an_answer(token_id)
        forced = self.forced_token(token_ids, num_tokens)
        return token_id == forced if forced is not None else matcher.validate_tokens([token_id]) == 1

    def illegal(self, token_ids: list[int], num_tokens: int) -> torch.Tensor | None:
        """Mask (V,) bool of the tokens that may not stand behind the first `num_tokens`; None: all may."""
        matcher = self._at(token_ids, num_tokens)
        if matcher is None:
            return None
        if self._illegal is None:
            forced = self.forced_token(token_ids, num_tokens)
            if forced is not None:
                self._illegal = self._compiler.all_but([forced])
            elif matcher.is_stopped():
                self._illegal = self._compiler.all_but_ends()
            else:
                self._illegal = self._compiler.illegal_tokens(matcher)
                self._check(matcher)
        return None if self.error else self._illegal

    def note_forced(self) -> None:
        """Count a token that was emitted without a pass."""
        self._compiler.counters.forced_tokens += 1

    def _at(self, token_ids: list[int], num_tokens: int) -> LLMatcher | None:
        """The matcher behind the first `num_tokens`, or behind the grammar's end if that came before."""
        matcher = self._matcher or self._begin()
        if matcher is None or num_tokens < self._start:
            return None
        read, num_read = self._read, self._num_still_read(token_ids, num_tokens)
        if num_read < len(read):
            matcher.rollback(len(read) - num_read)
            del read[num_read:]
            self._illegal = self._forced = None
        for id in token_ids[self._start + num_read : num_tokens]:
            if matcher.is_stopped():
                break
            matcher.consume_token(id)
            read.append(id)
            self._illegal = self._forced = None
        return None if self._check(matcher) else matcher

    def _num_still_read(self, token_ids: list[int], num_tokens: int) -> int:
        """Length of the common beginning of the tokens read and those given."""
        read, start = self._read, self._start
        most = min(len(read), num_tokens - start)
        first = max(0, most - _REPLACEABLE)
        if read[first:most] == token_ids[start + first : start + most]:
            return most
        return next(index for index in range(first, most) if read[index] != token_ids[start + index])

    def _begin(self) -> LLMatcher | None:
        if self.error:
            return None
        try:
            matcher = self._compiler.begin_at(self._compiled.result(), self._grammar.begun)
        except Exception as error:
            self.error = f"The answer's grammar cannot be used: {_first_line(str(error))}"
            return None
        self._matcher = matcher
        return matcher

    def _check(self, matcher: LLMatcher) -> bool:
        """Record the matcher's error, if it has one; True if there is one."""
        if not self.error and matcher.is_error():
            self.error = f"The answer's grammar cannot be followed: {_first_line(matcher.get_error())}"
        return bool(self.error)


def _first_line(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0] if lines else "it is not known why"
