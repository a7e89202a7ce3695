"""The bodies of TGI's routes. Bounds that need no configuration are in the types, so in /openapi.json."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from router.api.constraint_structs import Format
from router.api.sampling_parameters import NotNegative, Positive, SamplingParameters
from router.catalog.served_model import Segment
from router.text.tokenizer import GeneratedToken, Span
from shard.messages import FinishReason


class Parameters(SamplingParameters, frozen=True, kw_only=True):
    """How to generate. null means the default everywhere."""

    best_of: Annotated[Positive | None, Meta(description="Generate so many, return the likeliest.")] = None
    top_k: Annotated[Positive | None, Meta(description="Sample among so many.")] = None
    do_sample: Annotated[bool | None, Meta(description="Sample, at temperature 1 unless it is set.")] = None
    max_new_tokens: (
        Annotated[Positive | None, Meta(description="Default: 100. null: as many as fit.")]
        | msgspec.UnsetType
    ) = msgspec.UNSET
    stop: Annotated[list[str] | None, Meta(description="The text ends with the first of these.")] = None
    truncate: Annotated[Positive | None, Meta(description="Keep the last so many prompt tokens.")] = None
    return_full_text: Annotated[bool | None, Meta(description="Put the prompt before the text.")] = None
    details: Annotated[bool | None, Meta(description="Tokens, and how the text came about.")] = None
    decoder_input_details: Annotated[bool | None, Meta(description="Score the prompt's tokens.")] = None
    top_n_tokens: Annotated[NotNegative | None, Meta(description="Alternatives per token.")] = None
    grammar: Annotated[
        Format | None, Meta(description="What the answer must look like: docs/structured-output.md.")
    ] = None


Inputs = Annotated[
    str,
    Meta(
        description="The prompt.",
        examples=["The capital of France is"],
        extra_json_schema={"minLength": 1},  # refused in our own words
    ),
]


class GenerateRequest(msgspec.Struct, frozen=True):
    inputs: Inputs
    parameters: Parameters | None = None


class CompatRequest(msgspec.Struct, frozen=True):
    """Body of `POST /`: a generation, streamed or not."""

    inputs: Inputs
    parameters: Parameters | None = None
    stream: bool | None = None


class PrefillToken(msgspec.Struct, frozen=True):
    id: int
    text: str
    logprob: float | None  # null for the first token of the prompt


class TopToken(msgspec.Struct, frozen=True):
    id: int
    text: str
    logprob: float
    special: bool


class Marked(msgspec.Struct, frozen=True, kw_only=True):
    """Marks an answer of a simulated or replayed model; absent otherwise."""

    exit_replay: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    random_weights: Literal[True] | msgspec.UnsetType = msgspec.UNSET


class BestOfSequence(msgspec.Struct, frozen=True, kw_only=True):
    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[TopToken]] | msgspec.UnsetType = msgspec.UNSET


class Details(Marked, frozen=True, kw_only=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None  # null: greedy
    cached_tokens: int  # of the prompt, that a shard had computed before
    prefill: list[PrefillToken]
    tokens: list[GeneratedToken]
    top_tokens: list[list[TopToken]] | msgspec.UnsetType = msgspec.UNSET
    best_of_sequences: list[BestOfSequence] | msgspec.UnsetType = msgspec.UNSET
    mean_exit_layer: float | None
    segments: list[Segment]


class GenerateResponse(msgspec.Struct, frozen=True):
    generated_text: str
    details: Details | msgspec.UnsetType = msgspec.UNSET


class StreamDetails(Marked, frozen=True, kw_only=True):
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int
    cached_tokens: int
    mean_exit_layer: float | None
    segments: list[Segment]


class StreamEvent(msgspec.Struct, frozen=True):
    """One token. The last one carries the whole text and, if asked for, the details."""

    index: int
    token: GeneratedToken
    top_tokens: list[TopToken] | msgspec.UnsetType = msgspec.UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class TokenizeRequest(msgspec.Struct, frozen=True):
    """TGI's `{inputs}` or vLLM's `{model, prompt}`."""

    inputs: str | None = None
    prompt: str | None = None
    model: str | None = None
    add_special_tokens: bool | None = None


class TokenizedText(msgspec.Struct, frozen=True):
    """The answer in vLLM's shape."""

    count: int
    max_model_len: int
    tokens: list[int]


class ChatTokenized(msgspec.Struct, frozen=True):
    tokenize_response: list[Span]
    templated_text: str


class DetokenizeRequest(msgspec.Struct, frozen=True):
    tokens: list[NotNegative]
    model: str | None = None


class DetokenizedText(msgspec.Struct, frozen=True):
    prompt: str


class Info(msgspec.Struct, frozen=True, kw_only=True):
    """TGI's fields, then ours."""

    model_id: str
    model_sha: str | None
    model_dtype: str | None
    model_device_type: str | None
    model_pipeline_tag: str = "text-generation"
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int | None
    max_input_length: int | None
    max_total_tokens: int | None
    max_batch_total_tokens: int | None
    max_batch_size: int | None
    max_client_batch_size: int
    validation_workers: int = 1
    router: str = "helios"
    version: str
    sha: str | None = None
    docker_label: str | None = None
    deployment: str
    model_version: str | None
    num_layers: int | None
    depth: int | None
    weight_bytes: int | None  # held: layers loaded and exits, padding and all
    compute_dtype: str | None  # of activations and products; model_dtype is of weights
    weights: (
        str | None
    )  # format of matrices: none (as model_dtype) | int8 | int4 | gguf (the file's own blocks)
    kv_dtype: str | None  # of the KV cache
    kernels: str | None  # native | plain | cuda
    dtype_reason: str | None  # why these types, and what they cost
    supports_exact: bool
    supports_chat: bool  # the model has a chat template
    exit_thresholds: dict[int, float]  # by exit layer, of requests that give none; 1: not left
    num_shards: int
    is_ready: bool
    exit_mode: str
    exit_replay: bool  # exit layers are drawn from a file: no model's answers
    random_weights: bool
    warnings: list[str]  # where what is served goes beyond what was certified of its exits
