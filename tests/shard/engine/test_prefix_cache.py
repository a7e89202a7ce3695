"""What was computed once is found again, and no answer changes by it."""

import random
from typing import Any

import pytest

from shard.engine.block_pool import BlockPool, Keys
from shard.engine.sequence_table import SequenceTable
from shard.messages import NewSequence, Sampling, Step, TokenOutput, Work
from shard.runner import ModelRunner
from tests.shard.driving import generate, kv_bytes, make_runner, prompts_of
from tests.shard.exit_files import write_exits

MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "per_row": {"exit_mode": "per_row", "exit_layers": [1, 2], "exit_threshold": 0.02},
    "per_row-project": {
        "exit_mode": "per_row",
        "exit_layers": [2],
        "exit_threshold": 0.02,
        "kv_fill": "project",
    },
    "capped": {"exit_mode": "capped", "exit_layers": [2], "num_layers": 2},
    "drafts": {"drafters": ["text"], "drafts_always": True},
    "speculative": {"exit_mode": "speculative", "exit_layers": [1, 2], "exit_fallback": False},
}
MODES["per_row"]["exit_fallback"] = MODES["per_row-project"]["exit_fallback"] = False


def conversations(runner: ModelRunner, seed: int, num_turns: int = 4) -> tuple[list[list[int]], int]:
    """Turns of six chats, three with the same system prompt; the answers, and how many tokens were found."""
    draw = random.Random(seed)
    system = prompts_of(300, [40], seed)[0]
    chats = [list(system) if number < 3 else prompts_of(300, [20], seed + number)[0] for number in range(6)]
    said: list[list[int]] = []
    num_found = 0
    for turn in range(num_turns):
        for chat in chats:
            chat += [draw.randrange(3, 300) for _ in range(draw.randrange(1, 12))]
        ways = [
            Sampling() if number % 2 else Sampling(temperature=0.9, seed=turn * 10 + number)
            for number in range(6)
        ]
        exact = [number == 2 for number in range(6)]
        answers = generate(runner, chats, draw.randrange(4, 18), ways, draw.choice([7, 16, 512]), exact=exact)
        for chat, answer in zip(chats, answers, strict=True):
            said.append(answer.ids)
            num_found += answer.num_cached_tokens
            chat += answer.ids
    return said, num_found


CASES = [(mode, "roomy") for mode in MODES] + [(mode, "tight") for mode in MODES if "project" not in mode]


@pytest.mark.parametrize(("mode", "blocks"), CASES)
def test_answers_are_those_without_it(tiny_model, mode: str, blocks: str):
    """In every mode, through turns, chunks, and preemptions where blocks are few.

    Preempted answers of `project` go on from exact KV, so that theirs depend on when that happens: it has
    no case with few blocks.
    """
    folder = tiny_model("llama")
    config = MODES[mode] | {"max_total_tokens": 224}
    if blocks == "tight":
        config["kv_cache_bytes"] = kv_bytes(24, folder, **MODES[mode])
    for seed in range(3):
        expected, _ = conversations(make_runner(folder, **config), seed)
        found, num_hit = conversations(make_runner(folder, prefix_cache=True, **config), seed)
        assert found == expected
        assert num_hit > (300 if blocks == "roomy" else 30)


def test_answers_of_synchronized_are_those_without_it(tiny_model):
    """One after the other: together, who leaves depends on who else is there."""
    mode = {
        "exit_mode": "synchronized",
        "exit_layers": [1, 3],
        "exit_threshold": 0.02,
        "exit_fallback": False,
    }
    said = []
    for caches in (False, True):
        runner, chat = make_runner(tiny_model("llama"), prefix_cache=caches, **mode), prompts_of(300, [20])[0]
        for turn in range(6):
            chat += [5 + turn] * 3 + generate(runner, [chat], 12)[0].ids
        said.append(chat)
        assert run(runner, 9, chat)[1] >= (64 if caches else 0)
    assert said[0] == said[1]


def test_heads_with_kv_of_their_own_find_theirs(tiny_model, tmp_path):
    folder = tiny_model("qwen3")
    exits = write_exits(tmp_path / "exits", folder, [1, 3], "block")
    config = {"exit_mode": "per_row", "exits": str(exits), "exit_threshold": 0.02, "exit_fallback": False}
    expected, _ = conversations(make_runner(folder, **config), 1)
    found, num_hit = conversations(make_runner(folder, prefix_cache=True, **config), 1)
    assert found == expected
    assert num_hit > 300


def run(runner: ModelRunner, id: int, prompt: list[int], num_new: int = 4, **more: Any) -> tuple[int, int]:
    """Tokens computed for it, and those that were found."""
    new = NewSequence(id, 0, prompt, len(prompt), num_new, ignore_eos=True, **more)
    number, computed, cached = 1000 * id, 0, 0
    while number == 1000 * id or id in runner.table:
        output = runner.run(Step(number, [Work(id, 0, 512)], [new] if number == 1000 * id else []))
        number += 1
        computed += output.num_tokens
        cached += sum(made.num_cached_tokens for made in output.outputs)
    return computed, cached


def test_only_what_is_new_is_computed(tiny_model):
    runner, [prompt] = make_runner(tiny_model("llama"), prefix_cache=True), prompts_of(300, [50])
    assert run(runner, 0, prompt) == (53, 0)
    assert run(runner, 1, prompt) == (5, 48)
    assert run(runner, 2, prompt[:48]) == (19, 32)  # its last token is computed, whatever there is
    assert run(runner, 3, [*prompt[:40], 7, 8, 9]) == (14, 32)
    assert run(runner, 4, [5, *prompt]) == (54, 0)
    new = NewSequence(9, 0, prompt, len(prompt), 4)
    report = runner.run(Step(9, [Work(9, 0, 512)], [new])).cache
    assert report is not None
    assert (report.hit_tokens, report.queried_tokens, report.evicted_blocks) == (48, 49, 0)
    assert report.cached_blocks >= 3


def test_tenants_do_not_share(tiny_model):
    runner, [prompt] = make_runner(tiny_model("llama"), prefix_cache=True), prompts_of(300, [50])
    for id, (salt, found) in enumerate([("", 0), ("a", 0), ("b", 0), ("a", 48), ("", 48)]):
        assert run(runner, id, prompt, cache_salt=salt)[1] == found


def test_a_prompt_that_is_scored_is_computed_and_kept_from_others(tiny_model):
    runner, [prompt] = make_runner(tiny_model("llama"), prefix_cache=True), prompts_of(300, [50])
    scored = Sampling(prompt_logprobs=True)
    assert run(runner, 0, prompt, sampling=scored) == (53, 0)
    assert run(runner, 1, prompt) == (53, 0)
    assert run(runner, 2, prompt, sampling=scored) == (53, 0)


def test_what_left_early_is_found_once_it_is_complete(tiny_model):
    """Never while layers are pending; what was projected never is."""
    folder, [prompt] = tiny_model("llama"), prompts_of(300, [30])
    for fill in ("project", "recompute"):
        mode = {"exit_mode": "per_row", "exit_layers": [1], "exit_fallback": False, "kv_fill": fill}
        runner = make_runner(folder, prefix_cache=True, exit_threshold=0.0, exit_deferral=False, **mode)
        [made] = generate(runner, [prompt], 34)
        assert {token.exit_layer for token in made.tokens[1:]} == {1}
        assert run(runner, 1, prompt + made.ids)[1] == 16
        assert run(runner, 2, prompt + made.ids)[1] == 48  # of the prompt that was computed just now


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "little")


def test_content_is_lost_only_when_it_must_be():
    """Blank blocks go first, then the least recently used, ends before beginnings."""
    pool = BlockPool(8)
    first, second = pool.take(3), pool.take(2)
    for number, block in enumerate(first + second):
        pool.enter(block, key_of(number))
    pool.give_back(first)
    pool.give_back(second)
    assert (pool.num_free, pool.num_cached) == (8, 5)
    assert set(pool.take(3)).isdisjoint(first + second)
    assert pool.take(1) == [first[2]]
    assert [pool.find(key_of(number)) for number in range(3)] == [*first[:2], None]
    pool.share(first[:2])
    assert pool.take(2) == second[::-1]
    assert (pool.num_free, pool.usage.evicted_blocks) == (0, 3)
    pool.give_back(first[:2])
    assert pool.clear() == 2
    assert pool.find(key_of(0)) is None
    assert pool.num_free == 2


def test_limits_take_content_along():
    pool = BlockPool(6)
    blocks = pool.take(4)
    for number, block in enumerate(blocks):
        pool.enter(block, key_of(number))
    pool.give_back(blocks)
    beyond = pool.limit(3)
    assert len(beyond) == 3
    assert not {pool.find(key_of(number)) for number in range(4)} & set(beyond)
    assert not set(pool.take(3)) & set(beyond)
    assert pool.num_free == 0


def test_keys_are_of_all_that_stands_before():
    keys = Keys(4)

    def of(salt: str, tokens: list[int]) -> list[bytes]:
        return list(keys.follow(keys.first(salt), tokens, 0, len(tokens) // 4))

    own = of("", [1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert len(own) == 2
    assert list(keys.follow(own[0], [1, 2, 3, 4, 5, 6, 7, 8, 9], 1, 2)) == own[1:]
    for salt, tokens in (("", [1, 2, 3, 5, 5, 6, 7, 8]), ("x", [1, 2, 3, 4, 5, 6, 7, 8])):
        assert not set(of(salt, tokens)) & set(own)
    others = Keys(4)
    assert list(others.follow(others.first(""), [1, 2, 3, 4], 0, 1)) != own[:1]


def test_blocks_are_neither_lost_nor_given_twice():
    """Random arrivals of a few texts, ends, drops, preemptions, limits and repacks."""
    draw = random.Random(2)
    shard = SequenceTable(12, 4, [2], 24, caches_prefixes=True)
    texts = [[draw.randrange(3, 99) for _ in range(20)] for _ in range(3)]
    live: set[int] = set()
    num_hit = 0
    for number in range(4000):
        drops = [(id, 0) for id in sorted(live) if draw.random() < 0.03]
        fresh = []
        if len(live) < 6 and draw.random() < 0.5:
            prompt = draw.choice(texts)[: draw.randint(1, 14)]
            fresh = [NewSequence(number, 0, prompt, len(prompt), draw.randint(1, 10))]
            live.add(number)
        work = [Work(id, 0, draw.randint(1, 8)) for id in sorted(live) if draw.random() < 0.9]
        chunks, preempted = shard.plan(Step(number, work, fresh, drops))
        live -= {id for id, _ in preempted} | {id for id, _ in drops}
        for chunk in chunks:
            tokens = [TokenOutput(draw.choice([2, 7, 8, 9]), -1.0, 4)] if chunk.samples else []
            made = shard.finish(chunk, tokens)
            num_hit += made.num_cached_tokens
            if made.finish:
                live.discard(made.id)
        if draw.random() < 0.02:
            shard.pool.limit(draw.randint(max(6, shard.pool.num_taken), 12))
        elif draw.random() < 0.02:
            shard.repack(12)
        held = {block for sequence in shard.sequences.values() for block in sequence.blocks}
        assert not held & set(shard.pool.free)
        assert sorted([*held, *shard.pool.free]) == list(range(12))
        assert 0 <= shard.pool.num_free <= shard.pool.num_blocks
        for sequence in shard.sequences.values():
            assert len(sequence.blocks) * 4 >= sequence.num_computed_tokens
            assert sequence.num_keyed_blocks <= len(sequence.blocks)
    assert num_hit > 1000
