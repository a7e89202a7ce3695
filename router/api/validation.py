"""Checks a client's parameters against the server's limits and makes a `Spec` of them. Pure."""

import random
from typing import Any

import msgspec

from router.api.errors import ContextOverflow, Invalid
from router.api.sampling_parameters import WARPERS, drawn_by
from router.api.tgi_structs import Parameters
from router.scheduling.request import Spec
from router.settings.config import Config
from router.text.bad_words import bad_token_ids
from router.text.prompt import Encoded
from router.text.tokenizer import Tokenizer
from shard.messages import Ready, Sampling

DEFAULT_MAX_NEW_TOKENS = 100  # TGI's
MAX_STOP_CHARACTERS = 1024  # bounds the search of every new token
_MAX_SEED = 2**64 - 1
_MAX_TOP_K = 2**31 - 1  # more than any vocabulary, and fits the wire


class Allowance(msgspec.Struct, frozen=True):
    """A dialect's limits where no flag sets them. None: as much as the queue takes."""

    max_concurrent_requests: int | None
    max_stop_sequences: int
    max_top_n_tokens: int


TGI = Allowance(max_concurrent_requests=128, max_stop_sequences=4, max_top_n_tokens=5)
OPENAI = Allowance(max_concurrent_requests=None, max_stop_sequences=128, max_top_n_tokens=20)


class Limits(msgspec.Struct, frozen=True):
    """Bounds from the configuration and from the loaded model."""

    max_best_of: int
    max_concurrent_requests: int | None
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    vocab_size: int
    depth: int
    num_layers: int
    supports_exact: bool
    can_constrain: bool  # answers follow a grammar


def allowance_of(config: Config, dialect: Allowance) -> Allowance:
    """The allowance of a dialect. Limits set by flags hold for every dialect."""
    given = ((name, getattr(config, name)) for name in Allowance.__struct_fields__)
    return msgspec.structs.replace(dialect, **{name: value for name, value in given if value is not None})


def limits_of(
    config: Config, ready: Ready, max_total_tokens: int, supports_exact: bool, dialect: Allowance
) -> Limits:
    """Limits of a prompt encoded for the model of `ready`. `max_total_tokens` is what every model accepts."""
    longest_prompt, allowed = max_total_tokens - 1, allowance_of(config, dialect)
    return Limits(
        max_best_of=config.max_best_of,
        max_concurrent_requests=allowed.max_concurrent_requests,
        max_stop_sequences=allowed.max_stop_sequences,
        max_top_n_tokens=allowed.max_top_n_tokens,
        max_input_tokens=min(config.max_input_tokens or longest_prompt, longest_prompt),
        max_total_tokens=max_total_tokens,
        vocab_size=ready.vocab_size,
        depth=ready.depth,
        num_layers=ready.num_layers,
        supports_exact=supports_exact,
        can_constrain=ready.can_constrain,
    )


def check(asked: Parameters, limits: Limits) -> None:
    """Raises `Invalid`. Bounds independent of the configuration were checked when the body was decoded."""
    _check_exact(asked, limits)
    _check_tokens(asked, limits.vocab_size)
    _check_best_of(asked, limits)
    _check_stop(asked.stop or [], limits)
    if (asked.top_n_tokens or 0) > limits.max_top_n_tokens:
        raise Invalid("top_n_tokens", f"must be <= {limits.max_top_n_tokens}. Given: {asked.top_n_tokens}")
    if asked.truncate is not None and asked.truncate > limits.max_input_tokens:
        raise Invalid("truncate", f"must be <= {limits.max_input_tokens}. Given: {asked.truncate}")
    if asked.seed is not None and asked.seed > _MAX_SEED:
        raise Invalid("seed", f"must be <= {_MAX_SEED}. Given: {asked.seed}")


def _check_exact(asked: Parameters, limits: Limits) -> None:
    if asked.exact and not limits.supports_exact:
        problem = f"needs all {limits.num_layers} layers, and no shard has more than {limits.depth}"
        raise Invalid("exact", problem)


def _check_best_of(asked: Parameters, limits: Limits) -> None:
    best_of = asked.best_of or 1
    if best_of > limits.max_best_of:
        raise Invalid("best_of", f"must be > 0 and <= {limits.max_best_of}. Given: {best_of}")
    if best_of > 1 and not is_sampled(asked):
        raise Invalid("best_of", "> 1 needs sampling: set `do_sample` or `temperature`")
    if best_of > 1 and asked.seed is not None:
        raise Invalid("seed", "must not be set when `best_of` > 1")


def _check_stop(stop: list[str], limits: Limits) -> None:
    if len(stop) > limits.max_stop_sequences:
        raise Invalid("stop", f"takes up to {limits.max_stop_sequences} strings. Given: {len(stop)}")
    if not all(stop):
        raise Invalid("stop", "must not hold an empty string")
    if any(len(text) > MAX_STOP_CHARACTERS for text in stop):
        raise Invalid("stop", f"strings must have at most {MAX_STOP_CHARACTERS} characters")


def _check_tokens(asked: Parameters, vocab_size: int) -> None:
    check_token_ids("logit_bias", list(asked.logit_bias or ()), vocab_size)
    check_token_ids("allowed_token_ids", asked.allowed_token_ids or [], vocab_size)
    check_token_ids("stop_token_ids", asked.stop_token_ids or [], vocab_size)


def check_token_ids(field: str, ids: list[int], vocab_size: int) -> None:
    """Raises `Invalid` for an id outside the vocabulary."""
    for id in ids:
        if not (isinstance(id, int) and 0 <= id < vocab_size):
            raise Invalid(field, f"holds {id}, but token ids are from 0 to {vocab_size - 1}")


def _check_known(encoded: Encoded, vocab_size: int) -> None:
    """Raises `Invalid` for a token without an embedding: tokenizers may have more tokens than their model."""
    greatest = max(encoded.token_ids, default=0)
    if greatest >= vocab_size:
        token = encoded.tokenizer.piece(greatest).text
        problem = f"holds the token {token!r} ({greatest}), but the model knows {vocab_size} tokens only"
        raise Invalid("inputs", problem)


def is_sampled(asked: Parameters) -> bool:
    """True if `do_sample` or any parameter of sampling is given, as in TGI. Temperature 0 is greedy."""
    if asked.temperature == 0:
        return False
    return bool(asked.do_sample) or any(getattr(asked, warper) is not None for warper in WARPERS)


def seed_of(asked: Parameters, index: int) -> int:
    """The seed of answer number `index`, of 63 bits; the client's own for the first."""
    return random.getrandbits(63) if asked.seed is None else (asked.seed + index) % 2**63


def sampling_of(asked: Parameters, tokenizer: Tokenizer) -> Sampling:
    """Sampling parameters of the first answer. `tokenizer` encodes those given as text."""
    sampled = is_sampled(asked)
    temperature = 1.0 if asked.temperature is None else asked.temperature
    wanted: dict[str, Any] = drawn_by(asked) | {
        "temperature": temperature if sampled else 0.0,
        "top_k": min(asked.top_k or 0, _MAX_TOP_K),
        "seed": seed_of(asked, 0) if sampled else 0,
        "bad_token_ids": bad_token_ids(asked.bad_words or (), tokenizer),
        "num_top_tokens": asked.top_n_tokens or 0,
        "prompt_logprobs": bool(asked.decoder_input_details),
    }
    return Sampling(**wanted)


def spec_of(asked: Parameters, encoded: Encoded, limits: Limits, now: float, label: str) -> Spec:
    """Fill in every default. `now` is loop time on arrival.

    Raises `Invalid` when the lengths do not fit, or the model does not know a token.
    """
    _check_known(encoded, limits.vocab_size)
    max_new_tokens = _max_new_tokens(asked, len(encoded.token_ids), limits)
    if (asked.min_tokens or 0) > max_new_tokens:
        problem = f"must be <= {max_new_tokens}, the most there may be. Given: {asked.min_tokens}"
        raise Invalid("min_tokens", problem)
    return Spec(
        prompt_token_ids=encoded.token_ids,
        tokenizer=encoded.tokenizer,
        prompt=encoded.prompt,
        max_new_tokens=max_new_tokens,
        sampling=sampling_of(asked, encoded.tokenizer),
        stop=tuple(asked.stop or ()),
        ignore_eos=bool(asked.ignore_eos),
        priority=asked.priority or 0,
        deadline_s=None if asked.deadline_ms is None else now + asked.deadline_ms / 1000,
        exit_threshold=asked.exit_threshold,
        exact=bool(asked.exact),
        cache_salt=asked.cache_salt or "",
        label=label,
    )


def with_seed(spec: Spec, asked: Parameters, index: int) -> Spec:
    """The same spec with the seed of answer number `index`."""
    if index == 0 or spec.sampling.temperature == 0:
        return spec
    return msgspec.structs.replace(
        spec, sampling=msgspec.structs.replace(spec.sampling, seed=seed_of(asked, index))
    )


def _max_new_tokens(asked: Parameters, num_prompt_tokens: int, limits: Limits) -> int:
    if num_prompt_tokens == 0:
        raise Invalid("inputs", "cannot be empty")
    if num_prompt_tokens > limits.max_input_tokens:
        problem = f"must have at most {limits.max_input_tokens} tokens: {_context(limits)}"
        raise ContextOverflow("inputs", f"{problem}. Given: {num_prompt_tokens}")
    room = limits.max_total_tokens - num_prompt_tokens
    match asked.max_new_tokens:
        case None:
            return room
        case msgspec.UNSET:
            return min(DEFAULT_MAX_NEW_TOKENS, room)
        case wanted if wanted > room:
            problem = f"must be <= {room}: {_context(limits)}, of which the prompt takes {num_prompt_tokens}"
            raise ContextOverflow("max_new_tokens", f"{problem}. Given: {wanted}")
        case wanted:
            return wanted


def _context(limits: Limits) -> str:
    return f"this model's maximum context length is {limits.max_total_tokens} tokens"
