"""A model's chat template: Jinja from the hub, so untrusted, rendered in a sandbox.

Templates find the helpers that transformers offers them.
"""

import datetime
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from router.text.added_tokens import named_texts, special_tokens
from router.text.tokenizer_files import TokenizerUnreadable, read_object, tokenizer_config

MAX_RENDERED_CHARACTERS = 4_000_000
RESERVED = ("messages", "tools", "documents", "add_generation_prompt", "continue_final_message")
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "


class ChatTemplateError(ValueError):
    """The conversation does not fit the template, or there is none; the message is for the client."""


class GenerationTag(jinja2.ext.Extension):
    """`{% generation %}`, which marks the assistant's words for training. Rendered as its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A template, the special tokens that it may name, and the file that it is from."""

    def __init__(
        self, source: str, special_tokens: dict[str, str], origin: Path = Path("tokenizer_config.json")
    ):
        self.source = source
        self.special_tokens = special_tokens
        self.origin = origin

    @classmethod
    def load(cls, folder: Path, config_path: Path | None = None) -> Self | None:
        """The template of a model folder, None if it has none.

        A `chat_template.jinja` beside the tokenizer wins over the field of tokenizer_config.json, as in
        transformers; `config_path` names a configuration that wins over both.
        """
        if config_path is not None and not config_path.is_file():
            raise TokenizerUnreadable(f"{config_path} is missing: name a tokenizer_config.json")
        config = read_object(config_path) if config_path else tokenizer_config(folder)
        origin = config_path or folder / "tokenizer_config.json"
        source = _named_default(config.get("chat_template"), origin)
        file = folder / "chat_template.jinja"
        if file.exists() and not (config_path and source):
            source, origin = _read_text(file), file
        if source is None:
            return None
        return cls(source, named_texts(config) if config_path else special_tokens(folder), origin)

    def render(
        self,
        messages: list[dict[str, Any]],
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: list[dict[str, Any]] | None = None,
        template_arguments: Mapping[str, Any] = MappingProxyType({}),
    ) -> str:
        """The prompt text. Has no time limit: a server uses a `Renderer` instead.

        With `continue_final_message` the prompt ends with the last message's content. `template_arguments`
        must not be in `RESERVED`. Raises ChatTemplateError if the template refuses the conversation or its
        output has no end.
        """
        template = self._template
        pieces = template.generate(
            messages=_marked(messages) if continue_final_message else messages,
            tools=tools,
            documents=None,
            add_generation_prompt=add_generation_prompt,
            **{**self.special_tokens, **template_arguments},
        )
        try:
            text = _joined(pieces)
        except MemoryError:
            raise ChatTemplateError("the model's chat template needs too much memory") from None
        except jinja2.TemplateError as error:
            raise ChatTemplateError(f"the model's chat template says: {error}") from error
        except Exception as error:  # any exception of the template's code is a refusal of the messages
            reason = f"{type(error).__name__}: {error}"
            raise ChatTemplateError(f"the model's chat template has no form for them ({reason})") from error
        return _up_to_mark(text) if continue_final_message else text

    def check(self) -> None:
        """Raises ChatTemplateError if the template does not compile. Compiling evaluates its constants."""
        _ = self._template

    @functools.cached_property
    def _template(self) -> jinja2.Template:
        try:
            return _environment().from_string(self.source)
        except MemoryError:
            raise ChatTemplateError("the model's chat template needs too much memory") from None
        except Exception as error:  # as in `render`
            raise ChatTemplateError(f"the model's chat template cannot be read: {error}") from error


def _marked(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages, the last one ending in a mark, as in transformers: templates trim and add text."""
    *others, last = messages
    return [*others, last | {"content": last["content"] + _MARK}]


def _up_to_mark(text: str) -> str:
    """The text before the mark. Raises ChatTemplateError when the mark is missing."""
    before, mark, after = text.rpartition(_MARK.strip())
    if not mark:
        raise ChatTemplateError(
            "the model's chat template does not show where the last message ends, so that it cannot be gone "
            "on with (`add_generation_prompt`: true asks for an answer to it)"
        )
    return before if after.startswith(" ") else before.rstrip()  # the template trims


def _joined(pieces: Iterator[str]) -> str:
    """The pieces as one text. Raises ValueError when it is longer than any prompt may be."""
    kept, num_characters = [], 0
    for piece in pieces:
        kept.append(piece)
        num_characters += len(piece)
        if num_characters > MAX_RENDERED_CHARACTERS:
            raise ValueError(f"more than {MAX_RENDERED_CHARACTERS} characters")
    return "".join(kept)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[GenerationTag, jinja2.ext.loopcontrols],
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Plain JSON: Jinja's own filter escapes for HTML, which a prompt must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _named_default(template: Any, path: Path) -> str | None:
    """A configuration's template; of several named ones, `default`."""
    if isinstance(template, list) and all(isinstance(entry, dict) for entry in template):
        named = (entry.get("template") for entry in template if entry.get("name") == "default")
        template = next(named, None)
    if template is None or isinstance(template, str):
        return template
    raise TokenizerUnreadable(f"{path}: chat_template is no text, and no list of named ones")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerUnreadable(f"{path} cannot be read ({error}): fetch the model again") from None
