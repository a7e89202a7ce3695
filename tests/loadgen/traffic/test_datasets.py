import json
from pathlib import Path

import pytest

from loadgen.cli.units import BadQuantity
from loadgen.traffic.datasets import SHIPPED, read_dataset, shipped

SHARE_GPT = [
    {
        "id": "a1",
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "How far is the moon?"},
            {"from": "gpt", "value": "About 384,000 kilometres on average."},
            {"from": "human", "value": "And the sun?"},
            {"from": "gpt", "value": "About 150 million kilometres."},
        ],
    },
    {"id": "a2", "conversations": [{"from": "gpt", "value": "(an answer without a question)"}]},
]
SPEC_BENCH = {"question_id": 81, "category": "writing", "turns": ["Compose a post.", "Rewrite it."]}
GSM8K = {"question": "What is 3 + 4?", "answer": "3 + 4 = <<3+4=7>>7\n#### 7"}
MESSAGES = {
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, friend."}]
}


def written(tmp_path: Path, value: object, name: str = "file.jsonl") -> Path:
    path = tmp_path / name
    lines = value if isinstance(value, list) and name.endswith("jsonl") else [value]
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def test_share_gpt_gives_what_people_said_and_the_length_of_answers(tmp_path: Path) -> None:
    (only,) = read_dataset(written(tmp_path, SHARE_GPT, "share.json"))
    assert only.turns == ("How far is the moon?", "And the sun?")
    assert only.system == "Be brief."
    assert only.answer_tokens == (9, 7)
    assert only.group == "share"


def test_spec_bench_keeps_turns_and_category(tmp_path: Path) -> None:
    (only,) = read_dataset(written(tmp_path, [SPEC_BENCH]))
    assert (only.group, only.turns) == ("writing", ("Compose a post.", "Rewrite it."))


def test_gsm8k_is_a_question_with_an_answer(tmp_path: Path) -> None:
    (only,) = read_dataset(written(tmp_path, [GSM8K], "gsm8k.jsonl"))
    assert (only.group, only.turns) == ("gsm8k", ("What is 3 + 4?",))
    assert len(only.answer_tokens) == 1


def test_messages_and_plain_prompts_are_understood(tmp_path: Path) -> None:
    plain = {"prompt": "Say hi", "class": "greeting"}
    first, second, third = read_dataset(written(tmp_path, [MESSAGES, plain, "", {"text": "Once"}]))
    assert (first.turns, second.group, third.turns) == (("Hi",), "greeting", ("Once",))


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["{broken"], "line 1"),
        ([GSM8K, '{"id": 3}'], "entry 2"),
        (['{"messages": []}'], "no prompt"),
        (["[1, 2]"], "entry 1"),
    ],
)
def test_what_cannot_be_read_is_a_sentence_that_names_the_place(
    tmp_path: Path, lines: list[object], words: str
) -> None:
    with pytest.raises(BadQuantity, match=words):
        read_dataset(written(tmp_path, lines))


@pytest.mark.parametrize("group", SHIPPED)
def test_every_shipped_class_has_many_different_prompts(group: str) -> None:
    prompts = shipped(group)
    assert len({prompt.turns for prompt in prompts}) == len(prompts) >= 60
    assert {prompt.group for prompt in prompts} == {group}


def test_an_unknown_class_is_a_sentence_with_those_there_are() -> None:
    with pytest.raises(BadQuantity, match="chat, story, code, extract"):
        shipped("poetry")
