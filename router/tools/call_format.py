"""Formats of tool calls: the texts around names and arguments, by family of models.

One table serves prompts that describe a format, grammars that force it and the parser that reads it.
"""

from collections.abc import Sequence

import msgspec


class CallFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The texts around the names and arguments of calls."""

    name: str
    trigger: str  # begins the calls of an answer: what stands before is text
    before_first: str = ""
    before_name: str
    after_name: str
    after_arguments: str = ""
    between: str = ""  # calls; where it is empty, an answer has one call only
    after_last: str = ""
    begins_answer: bool = False  # no text stands before calls
    has_short_ids: bool = False  # the template takes ids of nine letters and digits only

    def opening(self, name: str) -> str:
        return f"{self.before_name}{name}{self.after_name}"

    def written(self, calls: Sequence[tuple[str, str]]) -> str:
        """Calls, by name and JSON of the arguments, as an answer has them."""
        each = [self.opening(name) + arguments + self.after_arguments for name, arguments in calls]
        if not self.between:
            return "\n".join(self.trigger + self.before_first + call + self.after_last for call in each)
        return self.trigger + self.before_first + self.between.join(each) + self.after_last


HERMES = CallFormat(  # Hermes, Qwen 2.5 and 3, SmolLM
    name="hermes",
    trigger="<tool_call>",
    before_first="\n",
    before_name='{"name": "',
    after_name='", "arguments": ',
    after_arguments="}\n</tool_call>",
    between="\n<tool_call>\n",
)
MISTRAL = CallFormat(  # tokenizers v3 and v7
    name="mistral",
    trigger="[TOOL_CALLS]",
    before_first="[",
    before_name='{"name": "',
    after_name='", "arguments": ',
    after_arguments="}",
    between=", ",
    after_last="]",
    has_short_ids=True,
)
MISTRAL_SPACED = msgspec.structs.replace(MISTRAL, name="mistral_spaced", before_first=" [")
MISTRAL_NAMED = CallFormat(  # tokenizers v11 and v13
    name="mistral_named",
    trigger="[TOOL_CALLS]",
    before_name="",
    after_name="[ARGS]",
    between="[TOOL_CALLS]",
    has_short_ids=True,
)
LLAMA = CallFormat(  # Llama 3.1, 3.2 and 3.3
    name="llama",
    trigger="{",
    before_name='"name": "',
    after_name='", "parameters": ',
    after_arguments="}",
    begins_answer=True,
)
GENERIC = HERMES  # for models whose templates teach none of these
_OTHERS_THAN_JSON = ("<function=", "<arg_key>")  # between the tags, as of Qwen3-Coder and GLM
MARKS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]")  # which some tokenizers have as tokens


def format_of(template: str) -> CallFormat | None:
    """The format that a chat template's source teaches; None: none of these."""
    if "[TOOL_CALLS]" in template:
        return _mistral(template)
    if "<tool_call>" in template and not any(tag in template for tag in _OTHERS_THAN_JSON):
        return HERMES
    if '"name": function name, "parameters": ' in template:
        return LLAMA
    return None


def _mistral(template: str) -> CallFormat | None:
    if "[CALL_ID]" in template:
        return None  # ids are of the model's own making there
    if "[ARGS]" in template:
        return MISTRAL_NAMED
    return MISTRAL_SPACED if "[TOOL_CALLS] [" in template else MISTRAL
