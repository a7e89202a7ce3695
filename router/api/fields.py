"""Every field that clients of TGI, OpenAI, vLLM and others send, and how the server treats it.

A field is *honoured* where a dialect's body declares it. Of the others, those that would change the text are
*refused* by name, unless they are given with a value that changes nothing; the rest is *harmless*: accepted,
like any field that nobody knows. /openapi.json and docs/parameters.md are made from the same tables.
"""

import functools
from typing import Any, TypeVar

import msgspec

from router.api.decode import decode
from router.api.errors import Invalid
from router.api.openai_structs import ChatRequest, CompletionRequest
from router.api.responses_structs import ResponsesRequest
from router.api.tgi_structs import CompatRequest, GenerateRequest, Parameters

T = TypeVar("T")

_fields = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)

TOOLS = ("tools", "functions")
_EMPTY: tuple[Any, ...] = (None, "", [], {})  # mean "not given" in every field


class Unsupported(msgspec.Struct, frozen=True):
    """Why a field is refused, and the values with which it is accepted beside empty ones."""

    why: str
    neutral: tuple[Any, ...] = ()

    @property
    def accepted(self) -> list[Any]:
        return [*_EMPTY, *self.neutral]

    def accepts(self, value: Any) -> bool:
        """True if the value changes nothing. Compares as JSON does: 1.0 equals 1, true does not."""
        is_bool = isinstance(value, bool)
        return any(value == neutral and isinstance(neutral, bool) == is_bool for neutral in self.accepted)


class Dialect(msgspec.Struct, frozen=True):
    """A request format: the types of its body, and those of the body's `parameters`."""

    name: str
    bodies: tuple[type[msgspec.Struct], ...]
    parameters: type[msgspec.Struct] | None = None

    @property
    def body(self) -> type[msgspec.Struct]:
        """The body type with most fields."""
        return self.bodies[0]


TGI = Dialect("/generate", (CompatRequest, GenerateRequest), Parameters)
CHAT = Dialect("/v1/chat/completions", (ChatRequest,))
COMPLETION = Dialect("/v1/completions", (CompletionRequest,))
RESPONSES = Dialect("/v1/responses", (ResponsesRequest,))
DIALECTS = (TGI, CHAT, COMPLETION, RESPONSES)


def _all(names: str, why: str, *neutral: Any) -> dict[str, Unsupported]:
    return dict.fromkeys(names.split(), Unsupported(why, neutral))


def _all_for(names: str, why: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), why)


REFUSED: dict[str, Unsupported] = {
    # What an answer may look like
    **_all(
        "grammar guided_json guided_regex guided_choice guided_grammar structured_outputs json_schema regex "
        "ebnf format",
        "it is `grammar` on /generate, `response_format` on /v1",
    ),
    **_all(
        "response_format",
        "it is `grammar` on /generate, `response_format` on /v1",
        {"type": "text"},
    ),
    **_all(
        "structural_tag constraints force_words_ids",
        "what an answer must look like is said by a schema, a regex, choices or a grammar",
    ),
    **_all("guided_whitespace_pattern", "JSON is written as Python's json.dumps writes it"),
    **_all("tools", "only chats and responses call tools"),
    **_all("tool_choice", "only chats and responses call tools", "none", "auto"),
    **_all("functions", "it is `tools`"),
    **_all("function_call", "it is `tool_choice`", "none", "auto"),
    **_all("modalities", "answers are text", ["text"]),
    **_all("audio", "answers are text"),
    **_all("watermark", "no watermark is put into text", False),
    **_all("watermarking_config", "no watermark is put into text"),
    **_all("verbosity", "the model's template may know it, by `chat_template_kwargs`", "medium"),
    # What a prompt is made of
    **_all(
        "enable_thinking think thinking thinking_budget thinking_token_budget guideline",
        "the model's template may know it, by `chat_template_kwargs`",
    ),
    **_all("reasoning_effort", "the model's template may know it, by `chat_template_kwargs`", "none"),
    **_all(
        "reasoning",
        "models here have no levels of reasoning",
        {"effort": "none"},
        {"effort": None, "summary": None},
    ),
    **_all("chat_template", "conversations are written by the model's own template"),
    **_all("documents web_search_options", "prompts are made of what is sent alone"),
    **_all("system", "write it into the prompt, or as a message"),
    **_all("suffix", "put what follows into the prompt"),
    **_all(
        "prompt_embeds input_embeds input_ids image_data video_data audio_data",
        "prompts are text or token ids",
    ),
    **_all("add_special_tokens", "prompts get them on this route", True),
    **_all(
        "truncate truncate_prompt_tokens truncation",
        "only /generate cuts prompts, by `truncate`",
        False,
        "disabled",
    ),
    **_all(
        "inputs prompt messages",
        "a prompt is `inputs`, in a completion `prompt`, in a chat `messages`, in a response `input`",
    ),
    **_all(
        "previous_response_id conversation context_management",
        "nothing is stored: send the whole conversation as `input`",
    ),
    **_all("background", "nothing is stored: the answer is the response", False),
    **_all("image", "answers are text"),
    **_all("negative_prompt negative_prompt_ids", "there is no guidance"),
    # Who answers
    **_all("adapter_id lora lora_path lora_name lora_request adapters", "no adapters are served"),
    # Names of other dialects
    **_all(
        "max_tokens max_completion_tokens max_new_tokens n_predict max_length",
        "an answer is bounded by `max_new_tokens` on /generate, by `max_tokens` in chats and completions, by "
        "`max_output_tokens` in responses",
    ),
    **_all("min_new_tokens", "it is `min_tokens`", 0),
    **_all("min_length", "it is `min_tokens`, which counts the answer alone", 0),
    **_all("stop_sequences stop_strings", "it is `stop`"),
    **_all("eos_token_id", "it is `stop_token_ids`"),
    **_all("bad_words_ids", "it is `bad_words`, as texts"),
    **_all("sequence_bias", "it is `logit_bias`, by token id"),
    **_all("suppress_tokens", "it is `logit_bias`, by token id"),
    **_all("repeat_penalty", "it is `repetition_penalty`", 1),
    **_all("typical", "it is `typical_p`", 1),
    **_all("do_sample", "greedy is `temperature` 0 on this route", True),
    **_all("n", "this route returns one answer", 1),
    **_all("num_return_sequences", "it is `n` or `best_of`", 1),
    **_all("best_of", "only /generate and /v1/completions choose among answers", 1),
    **_all(
        "echo return_full_text", "it is `return_full_text` on /generate, `echo` on /v1/completions", False
    ),
    # How tokens are drawn
    **_all("use_beam_search", "there is no beam search", False),
    **_all("num_beams num_beam_groups", "there is no beam search", 1),
    **_all("diversity_penalty", "there is no beam search", 0),
    **_all(
        "no_repeat_ngram_size encoder_no_repeat_ngram_size penalty_alpha epsilon_cutoff eta_cutoff top_a "
        "top_h mirostat mirostat_mode dynatemp_range smoothing_factor xtc_probability dry_multiplier",
        "there is no such way to draw",
        0,
    ),
    **_all("encoder_repetition_penalty guidance_scale tfs_z tfs", "there is no such way to draw", 1),
    **_all("top_n_sigma", "there is no such way to draw", -1, 0),
    **_all("min_keep", "there is no such way to draw", 0, 1),
    **_all("dynamic_temperature temperature_last token_healing", "there is no such way to draw", False),
    **_all(
        "samplers sampler_priority sampler_order exponential_decay_length_penalty begin_suppress_tokens "
        "forced_bos_token_id forced_eos_token_id dola_layers logits_processors logits_processor "
        "custom_logit_processor custom_params vllm_xargs",
        "there is no such way to draw",
    ),
    # Where an answer ends, and what is shown of it
    **_all("max_time t_max_predict_ms", "answers are not bounded in time; see `deadline_ms`"),
    **_all("stop_regex", "stops are texts or token ids"),
    **_all("include_stop_str_in_output", "what stops an answer is cut on /v1 and kept on /generate", False),
    **_all("no_stop_trim", "what stops an answer is cut on /v1 and kept on /generate", False),
    **_all("skip_special_tokens", "special tokens are no part of a text", True),
    **_all("return_tokens_as_token_ids", "tokens are told as text", False),
    **_all("prompt_logprobs", "it is `echo` with `logprobs`, or `decoder_input_details`"),
}

HARMLESS: dict[str, str] = {
    **_all_for(
        "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention "
        "prompt_cache_options moderation prediction parallel_tool_calls request_id rid access_programs "
        "max_tool_calls",
        "for OpenAI's books or speed",
    ),
    **_all_for(
        "cache_prompt id_slot use_cache kv_transfer_params mm_processor_kwargs keep_alive options "
        "num_assistant_tokens prompt_lookup_num_tokens timings_per_token",
        "how an engine works, not what it says",
    ),
    **_all_for(
        "details decoder_input_details top_n_tokens logprobs top_logprobs n_probs return_token_ids "
        "include_reasoning separate_reasoning stream_reasoning output_scores return_dict_in_generate "
        "return_hidden_states stream stream_options include",
        "more of an answer than this route tells",
    ),
    **_all_for(
        "add_generation_prompt continue_final_message chat_template_kwargs tool_prompt",
        "of a conversation's template, where there is one",
    ),
    **_all_for(
        "length_penalty early_stopping guided_decoding_backend mirostat_tau "
        "mirostat_eta dry_base dry_allowed_length dry_penalty_last_n dry_sequence_breakers xtc_threshold "
        "dynatemp_exponent repeat_last_n pad_token_id spaces_between_special_tokens",
        "only says more of something that is refused",
    ),
}


def decode_call(body: bytes, dialect: Dialect, kind: type[T]) -> T:
    """The body of a call for text. Raises `Refused`, and `Invalid` for a field that is not supported."""
    asked = decode(body, kind)
    given = _fields.decode(body) or {}
    _check(given, refused_by(dialect.body))
    if dialect.parameters is not None:
        for name in given.keys() & set(dialect.parameters.__struct_fields__):
            if msgspec.json.decode(given[name]) is not None:
                raise Invalid(name, "must stand in `parameters`")
        _check(_fields.decode(given.get("parameters", b"null")) or {}, refused_by(dialect.parameters))
    return asked


@functools.cache
def refused_by(body: type[msgspec.Struct]) -> frozenset[str]:
    """Fields that would change the text and that a body does not declare."""
    return frozenset(REFUSED.keys() - set(body.__struct_fields__))


def _check(given: dict[str, msgspec.Raw], refused: frozenset[str]) -> None:
    for name in sorted(given.keys() & refused):
        if name in TOOLS and _names_no_tool(given):
            continue  # tools beside `tool_choice: none` change nothing
        if not REFUSED[name].accepts(msgspec.json.decode(given[name])):
            raise Invalid(name, f"is not supported: {REFUSED[name].why}")


def _names_no_tool(given: dict[str, msgspec.Raw]) -> bool:
    choices = [given[name] for name in ("tool_choice", "function_call") if name in given]
    return any(msgspec.json.decode(choice) == "none" for choice in choices)
