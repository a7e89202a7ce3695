"""What a prompt was made of, encoded again: as a text, as a conversation, with an answer begun."""

import pytest

from router.text.chat_template import ChatTemplateError
from router.text.prompt import Prompt
from tests.router.http_fakes import byte_tokenizer

BYTES = byte_tokenizer()
SHOUTING = byte_tokenizer("{% for m in messages %}{{ m['content'] | upper }}!{% endfor %}")
SILENT = byte_tokenizer(template=None)
TALK = [{"role": "user", "content": "Hi"}]


def test_prompt_and_answer_are_encoded_as_one_text() -> None:
    prompt, answer = Prompt("Hello").encoded(BYTES, " world")
    assert (BYTES.decode(prompt), BYTES.decode(answer)) == ("Hello", " world")
    assert Prompt("Hello").encoded(BYTES) == (prompt, [])


def test_a_conversation_is_written_by_the_models_own_template() -> None:
    prompt = Prompt(messages=TALK)
    assert BYTES.decode(prompt.encoded(BYTES)[0]) == "user: Hi\nbot: "
    assert SHOUTING.decode(prompt.encoded(SHOUTING)[0]) == "HI!"
    assert BYTES.decode(Prompt(messages=TALK, add_generation_prompt=False).encoded(BYTES)[0]) == "user: Hi\n"
    with pytest.raises(ChatTemplateError):
        prompt.encoded(SILENT)


def test_only_conversations_depend_on_the_template() -> None:
    assert BYTES.digest == SHOUTING.digest == SILENT.digest
    assert Prompt("Hi").reads_alike(BYTES, SHOUTING)
    assert not Prompt(messages=TALK).reads_alike(BYTES, SHOUTING)
    assert Prompt(messages=TALK).reads_alike(BYTES, byte_tokenizer())
