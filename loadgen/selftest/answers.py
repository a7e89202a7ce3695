"""Answers of the synthetic server: words determined by prompt and model, in every dialect.

The same prompt, model and depth always give the same words, so that lost, repeated or foreign ones show. A
marker in the prompt, such as `[fault:stall]`, requests a fault.
"""

import hashlib
import random
import re
from collections.abc import Iterator
from typing import Any

import msgspec

WORDS = tuple(
    word
    for line in (
        "amber basil cedar delta ember fjord grove harbor island juniper kettle lantern meadow",
        "nectar orchard pebble quartz river saffron timber umber velvet willow yarrow zephyr copper",
    )
    for word in line.split()
)
FAULT = re.compile(r"\[fault:(\w+)\]")


class Model(msgspec.Struct, frozen=True):
    """The served candidate and depth."""

    name: str = "synthetic-large"
    depth: int = 30

    @property
    def version(self) -> str:
        return hashlib.blake2b(f"{self.name}@{self.depth}".encode(), digest_size=4).hexdigest()


class Question(msgspec.Struct, frozen=True):
    """One request of any dialect."""

    dialect: str  # tgi | completions | chat
    prompt: str
    max_tokens: int
    seed: str
    exit_threshold: float = 0.0
    ignore_eos: bool = True

    @property
    def fault(self) -> str:
        found = FAULT.search(self.prompt)
        return found.group(1) if found else ""

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt.split())

    @classmethod
    def read(cls, path: str, body: dict[str, Any], seed: str) -> "Question":
        """Read a request. Raises KeyError without a prompt."""
        if path.endswith("/chat/completions"):
            prompt = "\n".join(message["content"] for message in body["messages"])
            return cls("chat", prompt, body.get("max_tokens") or 100, seed)
        if path.endswith("/completions"):
            return cls("completions", body["prompt"], body.get("max_tokens") or 100, seed)
        settings = body.get("parameters") or {}
        limit, threshold = settings.get("max_new_tokens") or 100, settings.get("exit_threshold") or 0.0
        return cls("tgi", body["inputs"], limit, seed, threshold)


class Said(msgspec.Struct, frozen=True):
    """One token and its exit layer."""

    id: int
    text: str
    exit_layer: int
    confidence: float


def words(question: Question, model: Model) -> Iterator[Said]:
    """The endless answer of a model to a prompt. Easy prompts (by their hash) exit early more often."""
    source = random.Random(f"{question.prompt}|{model.version}")
    ease = source.uniform(0.3, 0.9)
    while True:
        id = source.randrange(len(WORDS))
        layer = 10 if source.random() < ease else source.choice((20, 30))
        layer = 30 if question.exit_threshold == 1 else layer
        yield Said(id, " " + WORDS[id], min(layer, model.depth), round(source.uniform(0.5, 1.0), 3))


def tgi_event(index: int, said: Said, last: dict[str, Any] | None = None) -> bytes:
    """One event; `last` carries `generated_text` and `details` of the final one."""
    end = b'"generated_text":null,"details":null' if last is None else msgspec.json.encode(last)[1:-1]
    return (
        b'data: {"index":%d,"token":{"id":%d,"text":"%b","logprob":-0.5,"special":false,'
        b'"exit_layer":%d,"confidence":%g},%b}\n\n'
    ) % (index, said.id, said.text.encode(), said.exit_layer, said.confidence, end)


def openai_event(question: Question, said: Said | None, finish: str | None = None) -> bytes:
    text = said.text if said is not None else ""
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    choice |= {"text": text} if question.dialect == "completions" else {"delta": {"content": text}}
    chunk = {"id": f"cmpl-{question.seed}", "object": "text_completion", "created": 0, "choices": [choice]}
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def usage_event(question: Question, num_tokens: int) -> bytes:
    usage = {"prompt_tokens": question.num_prompt_tokens, "completion_tokens": num_tokens}
    chunk = {
        "id": f"cmpl-{question.seed}",
        "object": "text_completion",
        "created": 0,
        "choices": [],
        "usage": usage,
    }
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"


def events(question: Question, model: Model) -> Iterator[bytes]:
    """The events of a complete answer without faults."""
    return _tgi_events(question, model) if question.dialect == "tgi" else _openai_events(question, model)


def _openai_events(question: Question, model: Model) -> Iterator[bytes]:
    source = words(question, model)
    for _ in range(question.max_tokens - 1):
        yield openai_event(question, next(source))
    ending = openai_event(question, next(source), "length") + usage_event(question, question.max_tokens)
    yield ending + b"data: [DONE]\n\n"


def _tgi_events(question: Question, model: Model) -> Iterator[bytes]:
    source = words(question, model)
    said: list[Said] = []
    for index in range(1, question.max_tokens):
        said.append(next(source))
        yield tgi_event(index, said[-1])
    said.append(next(source))
    details = {
        "finish_reason": "length",
        "generated_tokens": len(said),
        "seed": None,
        "input_length": question.num_prompt_tokens,
        "mean_exit_layer": sum(token.exit_layer for token in said) / len(said),
        "segments": [{"model": model.name, "version": model.version, "depth": model.depth, "from_token": 0}],
    }
    text = "".join(token.text for token in said)
    yield tgi_event(len(said), said[-1], {"generated_text": text, "details": details})
