"""The text or messages a prompt was encoded from, kept so that another tokenizer can encode it again."""

from typing import Any

import msgspec

from router.text.chat_template import ChatTemplateError
from router.text.prompt_class import PromptClass, classify
from router.text.tokenizer import Tokenizer


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

    @property
    def num_characters(self) -> int:
        """Estimate of the characters to encode."""
        return len(self.text) + len(msgspec.json.encode((self.messages or [], self.template_arguments)))

    @property
    def adds_special_tokens(self) -> bool:
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens

    def written(self, tokenizer: Tokenizer) -> str:
        """The text to encode. Raises ChatTemplateError when the template refuses the conversation."""
        if self.messages is None:
            return self.text
        return tokenizer.apply_chat_template(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_arguments=self.template_arguments,
        )

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
