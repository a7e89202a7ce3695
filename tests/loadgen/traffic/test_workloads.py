from collections import Counter

import pytest

from loadgen.client.answers import NEVER
from loadgen.traffic.datasets import Conversation, shipped
from loadgen.traffic.drift import Phase, Schedule
from loadgen.traffic.filler import Filler
from loadgen.traffic.lengths import Lengths
from loadgen.traffic.traces import BLOCK_TOKENS, TraceRow
from loadgen.traffic.workloads import Job, Manner, PromptWorkload, RandomWorkload, TraceWorkload, Workload

FILLER = Filler(extra_tokens=2, is_exact=True)


def prompts(*groups: str, count: int = 10) -> list[Conversation]:
    return [Conversation(group, (f"{group} {index}",)) for group in groups for index in range(count)]


def draw(workload: Workload, count: int, at_s: float = 0.0) -> list[Job]:
    return [workload.draw(number, at_s) for number in range(count)]


def test_no_prompt_comes_twice_before_all_of_its_class_have_come() -> None:
    workload = PromptWorkload(prompts("a"), Schedule((Phase({"a": 1.0}),)), Manner(seed=1), FILLER)
    said = [job.turns[0] for job in draw(workload, 30)]
    assert [len(set(said[low : low + 10])) for low in (0, 10, 20)] == [10, 10, 10]
    assert said[:10] != said[10:20]


def test_classes_are_mixed_by_weight() -> None:
    schedule = Schedule((Phase({"a": 3.0, "b": 1.0}),))
    jobs = draw(PromptWorkload(prompts("a", "b"), schedule, Manner(seed=1), FILLER), 2000)
    assert Counter(job.group for job in jobs)["a"] / 2000 == pytest.approx(0.75, abs=0.03)


def test_drift_follows_the_intended_start() -> None:
    workload = PromptWorkload(prompts("a", "b"), Schedule.parse("a@10s, b@10s"), Manner(), FILLER)
    assert workload.draw(0, 9.9).group == "a"
    assert workload.draw(1, 10.0).group == "b"


def test_the_same_seed_gives_the_same_jobs() -> None:
    def jobs(seed: int) -> list[Job]:
        manner = Manner(seed=seed, output=Lengths.parse("uniform:5:50"), cancel_share=0.3)
        return draw(PromptWorkload(shipped("chat"), Schedule((Phase({"chat": 1.0}),)), manner, FILLER), 50)

    assert jobs(4) == jobs(4) != jobs(5)


def test_cancellations_come_at_their_share_and_before_the_end() -> None:
    manner = Manner(cancel_share=0.25, output=Lengths("fixed", 40))
    jobs = draw(RandomWorkload(Lengths("fixed", 10), manner, FILLER), 2000)
    after = [job.cancel.after_tokens for job in jobs if job.cancel is not NEVER]
    assert len(after) / 2000 == pytest.approx(0.25, abs=0.03)
    assert all(tokens is not None and 1 <= tokens < 40 for tokens in after)


def test_cancellations_within_a_time() -> None:
    manner = Manner(cancel_share=1.0, cancel_within_s=2.0)
    jobs = draw(RandomWorkload(Lengths("fixed", 10), manner, FILLER), 200)
    assert all(job.cancel.after_s is not None and 0 <= job.cancel.after_s <= 2 for job in jobs)


def test_turns_are_bounded_and_have_pauses() -> None:
    said = [Conversation("a", ("one", "two", "three"))]
    manner = Manner(max_turns=2, think_s=1.5)
    job = PromptWorkload(said, Schedule((Phase({"a": 1.0}),)), manner, FILLER).draw(0, 0.0)
    assert job.turns == ("one", "two")
    assert (len(job.think_s), len(job.max_tokens)) == (1, 2)
    assert job.think_s[0] > 0


def test_answers_of_a_dataset_give_the_length() -> None:
    said = [Conversation("a", ("one", "two"), answer_tokens=(33,))]
    manner = Manner(max_turns=2, uses_answer_lengths=True, output=Lengths("fixed", 7))
    job = PromptWorkload(said, Schedule((Phase({"a": 1.0}),)), manner, FILLER).draw(0, 0.0)
    assert job.max_tokens == (33, 7)


def test_random_prompts_count_the_server_s_own_tokens_and_a_shared_prefix() -> None:
    manner = Manner(prefix_tokens=20, num_prefixes=2)
    jobs = draw(RandomWorkload(Lengths("fixed", 50), manner, FILLER), 100)
    assert {len(job.turns[0].split()) + FILLER.extra_tokens for job in jobs} == {50}
    assert len({tuple(job.turns[0].split()[:20]) for job in jobs}) == 2
    assert len({job.turns[0] for job in jobs}) == 100


def test_a_trace_gives_lengths_and_shares_blocks() -> None:
    rows = [
        TraceRow(0.0, 2 * BLOCK_TOKENS + 100, 7, (1, 2, 3)),
        TraceRow(1.0, 2 * BLOCK_TOKENS + 50, 9, (1, 2, 4)),
        TraceRow(2.0, 10, 3),
    ]
    first, second, third = draw(TraceWorkload(rows, Manner(), FILLER), 3)
    words = [job.turns[0].split() for job in (first, second, third)]
    assert [len(said) + FILLER.extra_tokens for said in words] == [row.input_tokens for row in rows]
    assert words[0][: 2 * BLOCK_TOKENS] == words[1][: 2 * BLOCK_TOKENS]
    assert words[0][2 * BLOCK_TOKENS : -1] != words[1][2 * BLOCK_TOKENS :]
    assert [job.max_tokens for job in (first, second, third)] == [(7,), (9,), (3,)]
