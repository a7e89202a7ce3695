"""The parameters that both dialects share: sampling, stopping, priority.

A parameter that stands here, under its name in `shard.messages.Sampling`, and in the sampler is complete:
each dialect's bodies inherit these fields, and what a client gave travels to the shard by its name.
"""

from typing import Annotated

import msgspec
from msgspec import Meta

from shard.messages import Sampling

Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(gt=0, le=1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
BadWord = Annotated[str, Meta(min_length=1, max_length=128)]

MAX_BAD_WORDS = 128  # each is looked for at every token


class SamplingParameters(msgspec.Struct, frozen=True, kw_only=True):
    """null means the default everywhere: the neutral value, unless a description says otherwise."""

    temperature: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="0: greedy. Set: tokens are sampled.")
    ] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1)] | None, Meta(description="Sample among so many. 0 or -1: among all.")
    ] = None
    top_p: Annotated[
        Share | None, Meta(description="Sample among the likeliest that have this share together.")
    ] = None
    typical_p: Annotated[
        Share | None, Meta(description="Sample among the most typical that have this share together.")
    ] = None
    min_p: Annotated[
        Fraction | None,
        Meta(description="Sample among those at least this share as likely as the likeliest."),
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0)] | None,
        Meta(description="> 1: tokens of prompt and answer get less likely."),
    ] = None
    frequency_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from a token's logit each time the answer has it.")
    ] = None
    presence_penalty: Annotated[
        Penalty | None, Meta(description="Subtracted from a token's logit once the answer has it.")
    ] = None
    seed: Annotated[NotNegative | None, Meta(description="The same seed, the same answer.")] = None
    logit_bias: Annotated[
        dict[int, Annotated[float, Meta(ge=-100, le=100)]] | None,
        Meta(description="Added to the logits of tokens, by their ids."),
    ] = None
    allowed_token_ids: Annotated[
        Annotated[list[NotNegative], Meta(min_length=1)] | None, Meta(description="No others are drawn.")
    ] = None
    bad_words: Annotated[
        Annotated[list[BadWord], Meta(max_length=MAX_BAD_WORDS)] | None,
        Meta(description="Not in the answer, where they begin a text or a word."),
    ] = None
    min_tokens: Annotated[
        NotNegative | None, Meta(description="Nothing but length ends the answer before it has so many.")
    ] = None
    stop_token_ids: Annotated[
        list[NotNegative] | None, Meta(description="The answer ends with the first of these.")
    ] = None
    ignore_eos: Annotated[bool | None, Meta(description="Go on behind the end-of-text token.")] = None
    exit_threshold: Annotated[
        Fraction | None, Meta(description="Confidence at which a token may leave early; 1: never.")
    ] = None
    exact: Annotated[bool | None, Meta(description="Only output equal to the full-depth model's.")] = None
    cache_salt: Annotated[
        Annotated[str, Meta(max_length=256)] | None,
        Meta(description="Prompts share what is computed of them only with those of the same salt."),
    ] = None
    priority: Annotated[int | None, Meta(description="Higher goes first.")] = None
    deadline_ms: Annotated[
        Positive | None, Meta(description="Refuse it unless it can start within this time.")
    ] = None


WARPERS = ("temperature", "top_k", "top_p", "typical_p", "min_p")  # one of these asks for sampling, as in TGI

_DRAWN_BY = tuple(name for name in Sampling.__struct_fields__ if name in SamplingParameters.__struct_fields__)


def shared(asked: SamplingParameters) -> dict[str, object]:
    """The shared parameters of a body of either dialect, by name."""
    return {name: getattr(asked, name) for name in SamplingParameters.__struct_fields__}


def drawn_by(asked: SamplingParameters) -> dict[str, object]:
    """The sampling parameters that were given; `Sampling` has a neutral default for the rest."""
    return {name: value for name in _DRAWN_BY if (value := getattr(asked, name)) is not None}
