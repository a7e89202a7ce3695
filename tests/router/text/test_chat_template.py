"""Chat templates, against transformers' own rendering where it renders them too."""

import json
from pathlib import Path

import pytest

from router.text.chat_template import ChatTemplate, ChatTemplateError
from router.text.tokenizer_files import TokenizerUnreadable

MESSAGES = [{"role": "user", "content": "Hi <there>"}, {"role": "assistant", "content": "Hello"}]
TEMPLATES = {
    "blocks are trimmed": "{% for m in messages %}\n  {% if 1 %}\n{{ m.role }}\n  {% endif %}\n{% endfor %}",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}word{% endfor %}",
    "tojson is not for html": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}",
    "generation tag": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "special tokens": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    "generation prompt": "{{ messages[0].role }}{% if add_generation_prompt %}>{% endif %}",
    "namespace": "{% set n = namespace(x=0) %}{% for m in messages %}{% set n.x = 1 %}{% endfor %}{{ n.x }}",
}
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("source", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_templates_render_as_in_transformers(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    [expected], _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, **SPECIAL
    )
    assert ChatTemplate(source, SPECIAL).render(MESSAGES) == expected


@pytest.mark.parametrize(
    "content", ["Once upon", "Once upon ", "  Once\n", "", "Once Once", "a CONTINUE_FINAL"]
)
@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}{{ add_generation_prompt }}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}",
        "{% for m in messages %}{{ m.content }}{{ m.content.split('x')[-1].lstrip() }}</s>{% endfor %}",
    ],
    ids=["as it is", "trimmed", "twice"],
)
def test_a_message_is_gone_on_with_as_in_transformers(source: str, content: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [*MESSAGES[:1], {"role": "assistant", "content": content}]
    [expected], _ = render_jinja_template([messages], chat_template=source, continue_final_message=True)
    template = ChatTemplate(source, {})
    assert template.render(messages, add_generation_prompt=False, continue_final_message=True) == expected
    assert messages[-1]["content"] == content


def test_what_a_template_does_not_write_cannot_be_gone_on_with() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.content | lower }}{% endfor %}", {})
    with pytest.raises(ChatTemplateError, match="cannot be gone"):
        template.render(MESSAGES, continue_final_message=True)


def test_a_template_gets_variables_of_the_clients_as_in_transformers() -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (
        "{{ bos_token }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    )
    given = {"enable_thinking": False, "bos_token": "<own>"}
    [expected], _ = render_jinja_template([MESSAGES], chat_template=source, **SPECIAL | given)
    assert ChatTemplate(source, SPECIAL).render(MESSAGES, template_arguments=given) == expected


def test_the_date_can_be_asked_for() -> None:
    year = ChatTemplate("{{ strftime_now('%Y') }}", {}).render([])
    assert year.isdecimal()


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0]['content'] + 1 }}", "str"),
        ("{{ messages[9].content.x }}", "no element 9"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe"),
    ],
)
def test_what_a_template_refuses_is_told(source: str, problem: str) -> None:
    with pytest.raises(ChatTemplateError, match=problem):
        ChatTemplate(source, {}).render(MESSAGES)


def test_a_broken_template_is_told_when_it_is_checked() -> None:
    with pytest.raises(ChatTemplateError, match="cannot be read"):
        ChatTemplate("{% for %}", {}).check()


def write(folder: Path, config: object, name: str = "tokenizer_config.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def rendered(template: ChatTemplate | None) -> str:
    assert template is not None
    return template.render(MESSAGES)


def test_the_file_wins_over_the_configuration(tmp_path: Path) -> None:
    write(tmp_path, {"chat_template": "config", "bos_token": {"content": "<b>"}})
    assert rendered(ChatTemplate.load(tmp_path)) == "config"
    (tmp_path / "chat_template.jinja").write_text("file {{ bos_token }}")
    assert rendered(ChatTemplate.load(tmp_path)) == "file <b>"


def test_a_given_configuration_wins_over_both(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    other = write(tmp_path, {"chat_template": "other"}, "other.json")
    assert rendered(ChatTemplate.load(tmp_path, other)) == "other"


def test_a_given_configuration_that_is_missing_is_named(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file")
    with pytest.raises(TokenizerUnreadable, match=r"other\.json is missing"):
        ChatTemplate.load(tmp_path, tmp_path / "other.json")


def test_of_several_templates_the_default_is_taken(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]
    write(tmp_path, {"chat_template": named})
    assert rendered(ChatTemplate.load(tmp_path)) == "plain"


def test_a_folder_may_have_none(tmp_path: Path) -> None:
    assert ChatTemplate.load(tmp_path) is None
