"""What a prompt was made of: kept with a request, for a model with another tokenizer to be given it."""

from typing import Any

import msgspec

from router.text.chat_template import ChatTemplateError
from router.text.prompt_class import PromptClass, classify
from router.text.tokenizer import Tokenizer


class Encoded(msgspec.Struct, frozen=True):
    """A prompt in token ids, and how they were made."""

    token_ids: list[int]
    tokenizer: Tokenizer  # whose ids they are
    prompt: "Prompt | None" = None  # what they were made of; None: the client gave ids


class Prompt(msgspec.Struct, frozen=True):
    """A text, or a conversation that a model's own template makes one of."""

    text: str = ""
    messages: list[dict[str, Any]] | None = None  # a conversation, in place of a text
    add_generation_prompt: bool = True  # to a conversation
    continue_final_message: bool = False  # of a conversation, which ends in the middle of it
    template_arguments: dict[str, Any] = {}  # for a conversation's template
    add_special_tokens: bool | None = None  # None: to a text; a conversation's template writes them itself
    truncate: int | None = None  # keep the last so many tokens

    @property
    def num_characters(self) -> int:
        """About as many are to be encoded."""
        return len(self.text) + len(msgspec.json.encode((self.messages or [], self.template_arguments)))

    @property
    def adds_special_tokens(self) -> bool:
        return self.messages is None if self.add_special_tokens is None else self.add_special_tokens

    def written(self, tokenizer: Tokenizer) -> str:
        """The text that is encoded. Raises ChatTemplateError when the template refuses the conversation."""
        if self.messages is None:
            return self.text
        return tokenizer.apply_chat_template(
            self.messages,
            add_generation_prompt=self.add_generation_prompt,
            continue_final_message=self.continue_final_message,
            template_arguments=self.template_arguments,
        )

    def encoded(self, tokenizer: Tokenizer, answer: str = "") -> tuple[list[int], list[int]]:
        """Token ids of the prompt, and of an answer begun. Safe on any thread. Raises ChatTemplateError.

        They are encoded as one text: a token that spans the seam counts as the prompt's.
        """
        written = self.written(tokenizer)
        prompt = tokenizer.encode(written, self.adds_special_tokens)
        both = tokenizer.encode(written + answer, self.adds_special_tokens) if answer else prompt
        first = 0 if self.truncate is None else max(0, len(prompt) - self.truncate)
        return both[first : len(prompt)], both[len(prompt) :]

    def is_readable(self, tokenizer: Tokenizer) -> bool:
        """The model's template takes the conversation, if it is one."""
        try:
            self.written(tokenizer)
        except ChatTemplateError:
            return False
        return True

    @property
    def prompt_class(self) -> PromptClass:
        """Of what a client sent: its last message, or its text."""
        if self.messages is None:
            return classify(self.text)
        content = self.messages[-1].get("content") if self.messages else None
        return classify(content if isinstance(content, str) else "")

    def reads_alike(self, tokenizer: Tokenizer, other: Tokenizer) -> bool:
        """Both tokenizers make the same token ids of it."""
        if tokenizer is other:
            return True
        same_template = self.messages is None or tokenizer.template_source == other.template_source
        return tokenizer.digest == other.digest and same_template
