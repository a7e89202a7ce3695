"""Answers follow their grammars, whatever draws them, and forced tokens cost no pass."""

import itertools
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import torch
from llguidance import LLMatcher
from tokenizers import Tokenizer

from shard.engine.grammar import MAX_COMPILED, GrammarCompiler, GrammarState
from shard.messages import Grammar, NewSequence, Sampling, Step, TokenOutput, Work
from tests.shard.driving import Generation, generate, kv_bytes, make_runner, prompts_of, score

SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"name": {"type": "string", "maxLength": 5}}, "required": ["name"]},
    {"enum": ["first of all", "first of none", 3, None, {"first": [1, 2]}]},
    {"type": "array", "items": {"type": "integer", "minimum": -3, "maximum": 40}, "maxItems": 4},
    {
        "type": "object",
        "properties": {
            "kind": {"const": "a long constant that nothing has to be asked about"},
            "is_open": {"type": "boolean"},
            "size": {"type": "number", "minimum": 0, "exclusiveMaximum": 2},
        },
        "required": ["kind", "is_open"],
        "additionalProperties": False,
    },
    {
        "$defs": {"node": {"anyOf": [{"const": 1}, {"type": "array", "items": {"$ref": "#/$defs/node"}}]}},
        "type": "array",
        "items": {"$ref": "#/$defs/node"},
        "maxItems": 2,
    },
    {"type": "string", "pattern": "^(ab|cd){1,3}$"},
]
COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
GRAMMARS = [LLMatcher.grammar_from_json_schema({"additionalProperties": False} | s, COMPACT) for s in SCHEMAS]
LENGTHS = [3, 17, 40, 9, 33, 5]
MODES: list[dict[str, Any]] = [
    {},
    {"exit_mode": "per_row", "exit_layers": [1, 2], "exit_threshold": 0.3},
    {"exit_mode": "per_row", "exit_layers": [2], "exit_threshold": 0.3, "kv_fill": "project"},
    {"exit_mode": "synchronized", "exit_layers": [1, 3], "exit_threshold": 0.2},
    {"exit_mode": "capped", "exit_layers": [2], "num_layers": 2},
    {"exit_mode": "speculative", "exit_layers": [1, 2], "exit_fallback": False},
]
WAYS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=1.0, seed=5),
    "filtered": Sampling(temperature=1.2, top_p=0.7, top_k=30, presence_penalty=0.5, seed=6),
}


def text_of(folder: Path, made: Generation) -> str:
    return str(Tokenizer.from_file(str(folder / "tokenizer.json")).decode(made.ids))


def check(folder: Path, made: Generation, schema: dict[str, Any], grammar: str) -> None:
    """Valid if it has ended, else the beginning of something valid."""
    assert made.finish in ("eos_token", "length")
    if made.finish == "eos_token":
        jsonschema_rs.validate({"additionalProperties": False} | schema, json.loads(text_of(folder, made)))
    assert vocabulary(folder).legal_prefix(grammar, made.ids) == len(made.ids)


class Vocabulary(GrammarCompiler):
    """Asked without a model."""

    def legal_prefix(self, grammar: str, ids: list[int]) -> int:
        matcher = self._compile(grammar)
        return int(matcher.try_consume_tokens(ids))


def vocabulary(folder: Path) -> Vocabulary:
    config = json.loads((folder / "config.json").read_text())
    return Vocabulary(folder, config["vocab_size"], [config["eos_token_id"]])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", MODES, ids=lambda mode: f"{mode.get('exit_mode', 'full')}")
def test_answers_follow_their_grammars(tiny_model, mode: dict[str, Any], way: str):
    folder = tiny_model("llama")
    runner = make_runner(folder, **mode)
    prompts = prompts_of(300, LENGTHS)
    made = generate(runner, prompts, 60, [WAYS[way]] * 6, ignore_eos=False, grammars=GRAMMARS)
    for answer, schema, grammar in zip(made, SCHEMAS, GRAMMARS, strict=True):
        check(folder, answer, schema, grammar)
    assert any(token.is_forced for token in made[3].tokens)
    assert sum(answer.finish == "eos_token" for answer in made) >= 3


@pytest.mark.parametrize("drafters", [["exit"], ["text"], ["text", "exit"]], ids="-".join)
@pytest.mark.parametrize("way", WAYS)
def test_speculative_says_what_full_says(tiny_model, way: str, drafters: list[str]):
    folder, prompts = tiny_model("llama"), prompts_of(300, LENGTHS)
    drafting = MODES[-1] | {"drafters": drafters, "drafts_always": True}
    runners = [make_runner(folder), make_runner(folder, **drafting)]
    full, drafted = (
        generate(runner, prompts, 60, [WAYS[way]] * 6, ignore_eos=False, grammars=GRAMMARS)
        for runner in runners
    )
    assert [answer.ids for answer in drafted] == [answer.ids for answer in full]


def test_company_memory_and_steps_of_any_size_change_nothing(tiny_model):
    """Preempted answers find their place again, and a router that asks for one token gets the forced ones."""
    folder, prompts = tiny_model("llama"), prompts_of(300, LENGTHS)
    grammars = [*GRAMMARS[:5], ""]
    alone = [
        generate(make_runner(folder), [prompt], 60, [WAYS["sampled"]], 512, False, grammars=[grammar])[0].ids
        for prompt, grammar in zip(prompts, grammars, strict=True)
    ]
    tight = make_runner(folder, kv_cache_bytes=kv_bytes(11, folder), max_total_tokens=128)
    for runner, chunk in ((tight, 512), (make_runner(folder), 1), (make_runner(folder), 7)):
        made = generate(runner, prompts, 60, [WAYS["sampled"]] * 6, chunk, False, grammars=grammars)
        assert [answer.ids for answer in made] == alone
        assert runner is not tight or sum(answer.num_preemptions for answer in made) > 0


def test_draws_are_those_of_masked_logits(tiny_model):
    """Only illegal draws are drawn again; the outcome is that of a mask on every row."""
    folder = tiny_model("llama")
    runner, prompt = make_runner(folder), prompts_of(300, [9])[0]
    for sampling in (WAYS["greedy"], WAYS["sampled"]):
        [made] = generate(runner, [prompt], 40, [sampling], ignore_eos=False, grammars=[GRAMMARS[2]])
        constraint = constraint_of(vocabulary(folder), GRAMMARS[2], len(prompt))
        for at, token in enumerate(made.tokens):
            before = prompt + made.ids[:at]
            illegal = constraint.illegal(before, len(before))
            assert illegal is not None and not illegal[token.id]
            allowed = Sampling(
                sampling.temperature,
                seed=sampling.seed,
                allowed_token_ids=(~illegal).nonzero()[:, 0].tolist(),
            )
            [again] = generate(runner, [before], 1, [allowed], ignore_eos=True)
            if not token.is_forced:
                assert again.ids == [token.id]


def constraint_of(compiler: GrammarCompiler, grammar: str, num_prompt: int, **begun: Any) -> GrammarState:
    new = NewSequence(0, 0, [1] * num_prompt, num_prompt, 9, grammar=Grammar(grammar, **begun))
    constraint = compiler.constrain(new)
    assert constraint is not None
    return constraint


def test_what_is_legal_depends_on_the_tokens_alone(tiny_model):
    """Asked in any order, also behind drafts that came to nothing and behind the end."""
    folder = tiny_model("llama")
    compiler, tokenizer = vocabulary(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    prompt = [5, 6, 7]
    texts = ["[1, 2, 33]", "[1, 2]", "[-3, 40, 7, 1]", "[1, 29]"]
    sequences = [prompt + tokenizer.encode(text).ids + [ends] for text in texts for ends in (260, 9)]
    asked = [(ids, n) for ids in sequences for n in range(3, len(ids) + 1)]
    fresh = [constraint_of(compiler, GRAMMARS[2], 3).illegal(ids, n) for ids, n in asked]
    constraint = constraint_of(compiler, GRAMMARS[2], 3)
    for at in [*range(0, len(asked), 3), *range(len(asked) - 1, 0, -2), *range(len(asked))]:
        (ids, n), expected = asked[at], fresh[at]
        if expected is None:
            continue  # behind a token that is not legal
        found = constraint.illegal(ids, n)
        if constraint.error:
            constraint = constraint_of(compiler, GRAMMARS[2], 3)
            continue
        assert found is not None and torch.equal(found, expected)
        assert [id for id in range(300) if constraint.permits(ids, n, id)] == [
            id for id in range(300) if not expected[id]
        ]


def test_an_answer_begun_in_another_vocabulary_goes_on(tiny_model):
    """A token that spans the seam may be the prompt's: the text says where the answer stands."""
    folder = tiny_model("llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    runner, prompt = make_runner(folder), prompts_of(300, [9])[0]
    begun = '{"kind": "a long constant that nothing has to'
    ids = tokenizer.encode(begun).ids[1:]  # the first is the prompt's
    new = NewSequence(
        0, 0, prompt + ids, len(prompt), 60 + len(ids), grammar=Grammar(GRAMMARS[3], begun, len(ids))
    )
    tokens = run(runner, new)
    whole = begun + tokenizer.decode([token.id for token in tokens])
    jsonschema_rs.validate(SCHEMAS[3], json.loads(whole))
    assert tokens[0].is_forced


def run(runner, new: NewSequence) -> list[TokenOutput]:
    tokens: list[TokenOutput] = []
    for number in range(200):
        output = runner.run(Step(number, [Work(new.id, 0, 512)], [] if number else [new]))
        for part in output.outputs:
            assert not part.error, part.error
            tokens += part.tokens
            if part.finish:
                return tokens
    raise AssertionError("it never ended")


def test_a_grammar_that_cannot_be_used_ends_its_own_sequence(tiny_model):
    folder, prompts = tiny_model("llama"), prompts_of(300, [4, 4, 4])
    runner = make_runner(folder)
    bad = ["start: <|no_such_token|>", "", "this is no grammar {"]
    made = generate(runner, prompts, 12, grammars=bad)
    assert made[1].finish == "length" and not made[1].error
    assert all("grammar cannot be used" in made[i].error and "\n" not in made[i].error for i in (0, 2))
    assert not made[0].tokens


def test_a_grammar_that_is_being_compiled_holds_nobody_up(tiny_model):
    folder = tiny_model("llama")
    runner = make_runner(folder)
    slow: Future[Any] = Future()
    constraint = GrammarState(Grammar("start: /x/"), 20, runner.grammars, slow)
    runner.table = type(runner.table)(
        64, 16, runner.model.eos_token_ids, 256, lambda new: constraint if new.grammar else None
    )
    prompts = prompts_of(300, [20, 6])
    new = [
        NewSequence(0, 0, prompts[0], 20, 8, grammar=Grammar("start: /x/")),
        NewSequence(1, 0, prompts[1], 6, 8),
    ]
    output = runner.run(Step(0, [Work(0, 0, 20), Work(1, 0, 6)], new))
    assert [(o.id, o.num_computed_tokens, len(o.tokens)) for o in output.outputs] == [(0, 19, 0), (1, 6, 1)]
    output = runner.run(Step(1, [Work(0, 0, 1), Work(1, 0, 1)]))
    assert [o.id for o in output.outputs] == [1]
    slow.set_exception(ValueError("too large"))
    output = runner.run(Step(2, [Work(0, 0, 1), Work(1, 0, 1)]))
    assert [(o.id, o.error) for o in output.outputs] == [
        (0, "The answer's grammar cannot be used: too large"),
        (1, ""),
    ]


def test_scoring_draws_under_the_grammar(tiny_model):
    folder, [prompt] = tiny_model("llama"), prompts_of(300, [9])
    runner = make_runner(folder)
    [made] = generate(runner, [prompt], 40, [WAYS["sampled"]], ignore_eos=False, grammars=[GRAMMARS[3]])
    scores = score(runner, prompt, made.ids, WAYS["sampled"], grammar=Grammar(GRAMMARS[3]))
    assert [found.choice for found in scores] == made.ids


def test_an_exit_is_surer_where_little_is_legal(tiny_model):
    """The mask stands before the question: two words to choose from are likelier than one of a vocabulary."""
    folder, prompts = tiny_model("llama"), prompts_of(300, LENGTHS)
    grammar = LLMatcher.grammar_from_lark('start: ("yes" | "no" | "maybe")+')
    runner = make_runner(folder, exit_mode="per_row", exit_layers=[1], exit_threshold=0.15)
    free = generate(runner, prompts, 10)
    bound = generate(runner, prompts, 10, grammars=[grammar] * 6)

    def share_early(answers: list[Generation]) -> float:
        drawn = [token for answer in answers for token in answer.tokens[1:] if not token.is_forced]
        return sum(token.exit_layer == 1 for token in drawn) / len(drawn)

    assert share_early(bound) > share_early(free) + 0.3


def test_forced_tokens_run_no_layer(tiny_model):
    """A constant is computed in one chunk with what follows, and said in the step before."""
    runner, [prompt] = make_runner(tiny_model("llama")), prompts_of(300, [9])
    grammar = LLMatcher.grammar_from_json_schema(SCHEMAS[3], COMPACT)
    new = NewSequence(0, 0, prompt, 9, 60, grammar=Grammar(grammar))
    runner.grammars.constrain(new)
    runner.grammars.wait(60)
    steps, number, finish = [], 0, None
    while finish is None:
        output = runner.run(Step(number, [Work(0, 0, 9 if number == 0 else 1)], [] if number else [new]))
        number += 1
        for part in output.outputs:
            finish = part.finish
            steps.append((output.num_tokens, len(part.tokens)))
    assert steps[0][1] > 10  # from the first token on
    assert all(later[0] == earlier[1] for earlier, later in itertools.pairwise(steps))
    assert len(steps) < 10


def test_compiled_grammars_are_bounded_and_counted(tiny_model):
    compiler = vocabulary(tiny_model("llama"))
    for number in range(MAX_COMPILED + 5):
        constraint_of(compiler, f'start: "{number}"', 1).illegal([1], 1)
    constraint_of(compiler, f'start: "{MAX_COMPILED}"', 1)
    report = compiler.take_report()
    assert report is not None
    assert (report.compiled, report.reused) == (MAX_COMPILED + 5, 1)
    constraint_of(compiler, 'start: "0"', 1).illegal([1], 1)
    report = compiler.take_report()
    assert report is not None and report.compiled == 1
    assert compiler.take_report() is None
