"""Answers under a schema are valid: 300 schemas of all kinds, in every mode, with preemptions."""

import json
import sys
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher
from tokenizers import Tokenizer

from router.grammar.compiling import grammar_of
from shard.engine.grammar import read_vocabulary
from shard.messages import Sampling
from tests.router.grammar.matching import of_schema
from tests.router.grammar.schemas import CASES
from tests.shard.driving import Generation, generate, kv_bytes, make_runner, prompts_of

NUM_SCHEMAS = 30  # at a time
MAX_TOKENS = 90
MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "per_row": {"exit_mode": "per_row", "exit_layers": [1, 2], "exit_threshold": 0.3},
    "capped": {"exit_mode": "capped", "exit_layers": [2], "num_layers": 2},
    "speculative": {"exit_mode": "speculative", "exit_layers": [1, 2], "exit_fallback": False},
}


def finite(number: str) -> float:
    """JSON has numbers that a float has no room for."""
    return max(min(float(number), sys.float_info.max), -sys.float_info.max)


class Checker:
    """Reads answers of one model's vocabulary."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        self._path = folder / "tokenizer.json"
        self._tokenizer = Tokenizer.from_file(str(self._path))
        self._vocabulary = read_vocabulary(self._path, config["vocab_size"], (config["eos_token_id"],))

    def check(self, answer: Generation, schema: dict[str, Any], grammar: str) -> bool:
        """True if it has ended; then it is valid, else the beginning of something that is."""
        assert not answer.error
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0)
        assert matcher.try_consume_tokens(answer.ids) == len(answer.ids)
        if answer.finish == "eos_token":
            text = self._tokenizer.decode(answer.ids)
            jsonschema_rs.validate(schema, json.loads(text, parse_float=finite))
        return answer.finish == "eos_token"


@pytest.mark.parametrize("seed", [None, 7], ids=["greedy", "sampled"])
def test_answers_are_valid_in_every_mode(tiny_model, seed: int | None):
    folder = tiny_model("llama")
    prompts, checker = prompts_of(300, [5 + number % 20 for number in range(NUM_SCHEMAS)]), Checker(folder)
    runners = [
        make_runner(folder, kv_cache_bytes=kv_bytes(60, folder, **mode), max_total_tokens=160, **mode)
        for mode in MODES.values()
    ]
    ended: list[bool] = []
    num_preemptions: list[int] = []

    @settings(
        max_examples=10,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(CASES, min_size=NUM_SCHEMAS, max_size=NUM_SCHEMAS))
    def check_all(cases: list[Any]) -> None:
        schemas = [schema for schema, _ in cases]
        grammars = [grammar_of(of_schema(schema)) for schema in schemas]
        ways = [
            Sampling() if seed is None else Sampling(temperature=0.9, seed=seed + number)
            for number in range(NUM_SCHEMAS)
        ]
        said = []
        for runner in runners:
            answers = generate(runner, prompts, MAX_TOKENS, ways, ignore_eos=False, grammars=grammars)
            for answer, schema, grammar in zip(answers, schemas, grammars, strict=True):
                ended.append(checker.check(answer, schema, grammar))
            num_preemptions.append(sum(answer.num_preemptions for answer in answers))
            said.append([answer.ids for answer in answers])
        assert said[0] == said[-1]  # speculative is full

    check_all()
    assert len(ended) >= 10 * NUM_SCHEMAS * len(MODES)
    assert sum(ended) > len(ended) / 2
    assert sum(num_preemptions) > 0
