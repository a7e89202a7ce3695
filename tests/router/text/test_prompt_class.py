"""Prompts are told apart by a few words; what shows no sign is chat."""

import pytest

from router.text.prompt import Prompt
from router.text.prompt_class import PromptClass, classify

PROMPTS = {
    PromptClass.CODE: [
        "Write a Python function to reverse a string.",
        "Develop a C++ program that reads all files under a directory.",
        "What is wrong here?\n```\nx = [1, 2\n```",
        "How do I merge two sorted lists in JavaScript?",
        "Write a simple website in HTML. When a user clicks the button, it shows a random joke.",
    ],
    PromptClass.MATHS: [
        "Jen buys 4 tickets at $12 each and 3 drinks at $5 each. How much does she spend in total?",
        "What is the area of the triangle with vertices (0, 0), (-1, 1) and (3, 3)?",
        "Solve the equation 3x + 5 = 20.",
    ],
    PromptClass.STORY: ["Tell me a story about a brave little mouse.", "Write a poem about the sea."],
    PromptClass.SUMMARY: ["Summarize: Hillary Clinton's security detail arrived on Tuesday."],
    PromptClass.TRANSLATION: ["Translate German to English: Pfandhäuser boomen in Singapur."],
    PromptClass.CHAT: [
        "What is the capital of France?",
        "How are you today?",
        "Who played Anna in the film?",
        "I feel tired. What should I do?",
        "Où est la gare ?",
        "",
    ],
}


@pytest.mark.parametrize(("kind", "prompt"), [(kind, text) for kind in PROMPTS for text in PROMPTS[kind]])
def test_an_ordinary_prompt_of_each_class(kind: PromptClass, prompt: str) -> None:
    assert classify(prompt) is kind


def test_an_instruction_is_found_at_either_end_of_a_long_prompt() -> None:
    text = "The council met on Tuesday and spoke of the bridge. " * 200
    for prompt in (f"Summarize this:\n{text}", f"{text}\nSummarize the above."):
        assert classify(prompt) is PromptClass.SUMMARY
    assert classify(text) is PromptClass.CHAT


def test_saying_a_word_often_makes_it_no_heavier() -> None:
    assert classify("list list list list list list list") is PromptClass.CHAT


def test_a_conversation_is_of_the_class_of_its_last_message() -> None:
    messages = [
        {"role": "user", "content": "Tell me a story about a mouse."},
        {"role": "assistant", "content": "Once upon a time"},
        {"role": "user", "content": "Now write a Python program instead."},
    ]
    assert Prompt(messages=messages).prompt_class is PromptClass.CODE
    picture = Prompt(messages=[{"role": "user", "content": [{"type": "text"}]}])
    assert picture.prompt_class is PromptClass.CHAT
