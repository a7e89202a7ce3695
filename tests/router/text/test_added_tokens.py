"""Tokens named beside tokenizer.json get transformers' own ids; files that cannot be read are named."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from router.text.tokenizer import Tokenizer
from tests.tiny_models import write_tiny_tokenizer

TEXT = "a <tool> b<end>c <|im_end|><more> d<last>"
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def folder_with(path: Path, config: dict[str, Any], special: dict[str, Any] | None = None) -> Path:
    write_tiny_tokenizer(path)
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if special is not None:
        (path / "special_tokens_map.json").write_text(json.dumps(special))
    return path


def next_id(path: Path) -> int:
    write_tiny_tokenizer(path)
    return len(AutoTokenizer.from_pretrained(path))


@pytest.mark.parametrize("flags", [{}, {"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_tokens_of_the_configuration_are_transformers_own(tmp_path: Path, flags):
    first = next_id(tmp_path)
    added = {
        str(first): PLAIN | flags | {"content": "<tool>", "special": False},
        str(first + 1): PLAIN | {"content": "<end>", "special": True},
    }
    folder = folder_with(tmp_path, {"added_tokens_decoder": added})
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert {first, first + 1} <= set(ours.encode(TEXT))
    ids = ours.encode("x<tool>y<end>z")
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True) == "x<tool>yz"


@pytest.mark.parametrize(
    ("config", "special"),
    [
        ({"extra_special_tokens": ["<more>", "<last>"]}, None),
        ({"additional_special_tokens": ["<more>"]}, None),
        ({"eos_token": "<last>"}, None),
        ({"extra_special_tokens": {"image_token": "<more>"}}, None),
        ({}, {"additional_special_tokens": ["<more>", "<last>"]}),
    ],
)
def test_special_tokens_that_stand_nowhere_else(tmp_path: Path, config, special):
    folder = folder_with(tmp_path, config, special)
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    assert ours.vocab_size == len(theirs)


@pytest.mark.parametrize("has_decoder", [False, True])
@pytest.mark.parametrize(
    ("older", "special"),
    [
        ({"<tool>": 0, "<end>": 1}, None),
        ({"<tool>": 0, "<end>": 1}, {"eos_token": "<end>"}),
        (None, {"eos_token": "<more>", "bos_token": {"content": "<last>"}}),
    ],
)
def test_older_files_count_where_there_is_no_decoder(tmp_path: Path, older, special, has_decoder) -> None:
    """added_tokens.json and special_tokens_map.json: what tools wrote before version 4.34 of transformers."""
    first = next_id(tmp_path)
    template = {"chat_template": "{{ bos_token }}|{{ eos_token }}|{{ messages[0].content }}"}
    folder = folder_with(tmp_path, template | ({"added_tokens_decoder": {}} if has_decoder else {}), special)
    if older is not None:
        ids = {token: first + place for token, place in older.items()}
        (folder / "added_tokens.json").write_text(json.dumps(ids))
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert ours.encode(TEXT) == theirs.encode(TEXT)
    talk = [{"role": "user", "content": "x"}]
    assert ours.apply_chat_template(talk) == theirs.apply_chat_template(talk, tokenize=False)


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("tokenizer.json", "{", r"tokenizer\.json cannot be read"),
        ("tokenizer.json", "{}", r"tokenizer\.json is no tokenizer"),
        ("tokenizer_config.json", "[", r"tokenizer_config\.json cannot be read"),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"x": 1}}',
            "added_tokens_decoder",
        ),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"9999": {"content": "<z>"}}}', "the id 9999"),
        ("special_tokens_map.json", "7", r"special_tokens_map\.json cannot be read"),
        ("special_tokens_map.json", '{"eos_token": 7}', "a special token is no text"),
        ("tokenizer_config.json", '{"extra_special_tokens": 7}', "a special token is no text"),
        ("tokenizer_config.json", '{"chat_template": 7}', "chat_template is no text"),
        (
            "tokenizer_config.json",
            '{"chat_template": "{% for %}"}',
            r"_config\.json: .*template cannot be read",
        ),
        (
            "chat_template.jinja",
            "{% for %}",
            r"chat_template\.jinja: the model's chat template cannot be read",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named_in_one_sentence(tmp_path: Path, file, text, complaint):
    write_tiny_tokenizer(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(OSError, match=complaint):
        Tokenizer.load(tmp_path)
