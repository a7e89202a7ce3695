"""The text or messages a prompt was encoded from, kept so that another tokenizer can encode it again."""

from typing import Any

import msgspec

from router.text.chat_template import ChatTemplateError
from router.text.prompt_class import PromptClass, classify
from router.text.tokenizer import Tokenizer
from router.tools.call_format import GENERIC, CallFormat
from router.tools.conversation import (
    description_of,
    with_calls_as_text,
    with_description,
    with_description_in_user_message,
    with_names,
    with_short_ids,
)
from router.tools.grammar import grammar_of
from router.tools.tools import Tools


class Encoded(msgspec.Struct, frozen=True):
    """A prompt's token ids, and their source."""

    token_ids: list[int]
    tokenizer: Tokenizer  # that made the ids
    prompt: "Prompt | None" = None  # their source; None: the client gave ids


class Prompt(msgspec.Struct, frozen=True):
    """A text, or a conversation that the model's template turns into one."""

    text: str = ""
    messages: list[dict[str, Any]] | None = None  # a conversation, in place of a text
    add_generation_prompt: bool = True  # to a conversation
    continue_final_message: bool = False  # of a conversation, which ends in the middle of it
    template_arguments: dict[str, Any] = {}  # for a conversation's template
    add_special_tokens: bool | None = None  # None: to a text; a conversation's template writes them itself
    truncate: int | None = None  # keep the last so many tokens
    tools: Tools | None = None  # that a conversation may call
    call_format: CallFormat | None = None  # in which it does so; None: the template's own

    @property
    def num_characters(self) -> int:
        """Estimate of the characters to encode."""
        parts = (self.messages or [], self.template_arguments, self.tools)
        return len(self.text) + len(msgspec.json.encode(parts))

    @property
    def adds_special_tokens(self) -> bool:
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens

    def written(self, tokenizer: Tokenizer) -> str:
        """The text to encode. Raises ChatTemplateError when the template refuses the conversation."""
        if self.messages is None:
            return self.text
        own, tools = tokenizer.call_format, self.tools
        if own is not None and self.call_format in (None, own):
            messages = with_names(self.messages)
            messages = with_short_ids(messages) if own.has_short_ids else messages
            return self._rendered(tokenizer, messages, None if tools is None else tools.described)
        return self._written_without_template(tokenizer)

    def _written_without_template(self, tokenizer: Tokenizer) -> str:
        """The text to encode if the template does not support tools: they are described as text."""
        assert self.messages is not None
        calls, messages = self.call_format or GENERIC, self.messages
        if self.tools is not None or "tool_calls" not in (tokenizer.template_source or ""):
            messages = with_calls_as_text(messages, calls)
        if self.tools is None:
            return self._rendered(tokenizer, messages)
        description = description_of(self.tools.described, calls)
        try:
            return self._rendered(tokenizer, with_description(messages, description))
        except ChatTemplateError:
            if messages[0]["role"] == "system":
                raise
            return self._rendered(tokenizer, with_description_in_user_message(messages, description))

    def _rendered(
        self, tokenizer: Tokenizer, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None
    ) -> str:
        return tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_arguments=self.template_arguments,
            tools=tools,
        )

    def with_call_format(self, tokenizer: Tokenizer) -> "Prompt":
        """The same for an answer that calls tools as this tokenizer's model does, whoever goes on with it."""
        if self.tools is None or self.call_format is not None:
            return self
        return msgspec.structs.replace(self, call_format=tokenizer.call_format or GENERIC)

    def grammar(self, tokenizer: Tokenizer, answer: str = "", vocab_size: int | None = None) -> str:
        """Grammar of the answer, in this tokenizer's tokens; "" is anything. `answer` is that of no call.

        `vocab_size` is the model's, which may not have all of the tokens.
        """
        if self.tools is None:
            return answer
        calls = self.call_format or tokenizer.call_format or GENERIC
        return grammar_of(self.tools, calls, tokenizer.special_tokens.within(vocab_size), answer)

    def encoded(self, tokenizer: Tokenizer, answer: str = "") -> tuple[list[int], list[int]]:
        """Token ids of the prompt and of an unfinished answer. Safe on any thread. Raises ChatTemplateError.

        Both are encoded as one text: a token that spans the seam counts as the prompt's.
        """
        written = self.written(tokenizer)
        prompt = tokenizer.encode(written, self.adds_special_tokens)
        both = tokenizer.encode(written + answer, self.adds_special_tokens) if answer else prompt
        first = 0 if self.truncate is None else max(0, len(prompt) - self.truncate)
        return both[first : len(prompt)], both[len(prompt) :]

    def is_readable(self, tokenizer: Tokenizer) -> bool:
        """True for a text, and for a conversation that the model's template accepts."""
        try:
            self.written(tokenizer)
        except ChatTemplateError:
            return False
        return True

    @property
    def prompt_class(self) -> PromptClass:
        """Class of the last message, or of the text."""
        if self.messages is None:
            return classify(self.text)
        content = self.messages[-1].get("content") if self.messages else None
        return classify(content if isinstance(content, str) else "")

    def reads_alike(self, tokenizer: Tokenizer, other: Tokenizer) -> bool:
        """True if both tokenizers encode it alike."""
        if tokenizer is other:
            return True
        same_template = self.messages is None or tokenizer.template_source == other.template_source
        return tokenizer.digest == other.digest and same_template
