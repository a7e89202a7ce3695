"""Every tokenizer class and every key of tokenizer_config.json: as in transformers, or refused.

A key that is passed over in silence is a prompt cut into other ids than the model was trained on.
"""

import inspect
import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer

from router.text.tokenizer import Tokenizer
from tests.router.text.tokenizers_of_families import KINDS, tokenizer_json

TEXTS = [
    "Hello 12345 world's",
    "  two  spaces ",
    "<s>Hello",
    "a</s> b</s>c",
    "\n\nx  y\t z",
    "e\u0301 café naïve",
    "🦊 日本\x00\u00ff",
    "",
    " ",
    "don't I'M 3.14 , so . ",
    "x<|endoftext|> y",
    "▁a ▁▁ b",
    "<s> <s>  a",
    "a <image> b<more>  c<image>d",
]
CLASSES = [
    None,
    "TokenizersBackend",
    "PreTrainedTokenizerFast",
    "PreTrainedTokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "CodeLlamaTokenizer",
    "GPT2Tokenizer",
    "GPT2TokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "BertTokenizer",
    "OfTheirOwn",
]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt2")
TEMPLATE = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}|{{ pad_token }}|{{ image_token }}|{{ messages }}"


def folder_of(path: Path, kind: str, family: str, config: dict[str, Any]) -> Path:
    path.mkdir(exist_ok=True)
    (path / "tokenizer.json").write_text(tokenizer_json(kind))
    (path / "config.json").write_text(json.dumps({"model_type": family}))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE} | config))
    return path


def differences(folder: Path) -> list[str] | str:
    """Where ours and transformers' differ; or the sentence that refuses the folder."""
    try:
        ours = Tokenizer.load(folder)
    except OSError as error:
        return str(error)
    theirs = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in TEXTS:
        for special in (True, False):
            expected = theirs.encode(text, add_special_tokens=special)
            if ours.encode(text, special) != expected:
                found.append(f"{text!r} is {ours.encode(text, special)}, not {expected}")
        ids = ours.encode(text, False)
        if ours.decode(ids) != theirs.decode(ids, skip_special_tokens=True):
            found.append(
                f"{ids} is {ours.decode(ids)!r}, not {theirs.decode(ids, skip_special_tokens=True)!r}"
            )
    added, expected = ours.backend.get_added_tokens_decoder(), theirs.added_tokens_decoder
    if {id: repr(token) for id, token in added.items()} != {
        id: repr(token) for id, token in expected.items()
    }:
        found.append(f"added are {added}, not {expected}")
    talk = [{"role": "user", "content": "x"}]
    if ours.apply_chat_template(talk) != theirs.apply_chat_template(talk, tokenize=False):
        found.append(f"a prompt is {ours.apply_chat_template(talk)!r}")
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_class_is_that_of_transformers_or_refused(tmp_path: Path, kind: str, family: str) -> None:
    wrong, served = {}, []
    for name in CLASSES:
        found = differences(folder_of(tmp_path, kind, family, {"tokenizer_class": name} if name else {}))
        if isinstance(found, str):
            assert "tokenizer_config.json: " in found
            assert "\n" not in found
        elif found:
            wrong[name] = found
        else:
            served.append(name)
    assert not wrong
    if kind.startswith(family) or family in ("llama", "mistral"):
        assert "TokenizersBackend" in served


@pytest.mark.parametrize(
    ("kind", "name", "complaint"),
    [
        ("llama normalised", "CodeLlamaTokenizer", "tokenizer_class 'CodeLlamaTokenizer' is not supported"),
        ("llama normalised", "GPT2Tokenizer", "a GPT2Tokenizer .*has no use for the vocabulary"),
        ("unigram", "LlamaTokenizer", "a LlamaTokenizer .*has no use for the vocabulary"),
    ],
)
def test_a_class_that_cannot_be_followed_is_named(tmp_path: Path, kind, name, complaint) -> None:
    folder = folder_of(tmp_path, kind, "llama", {"tokenizer_class": name})
    with pytest.raises(OSError, match=rf"tokenizer_config\.json: {complaint}"):
        Tokenizer.load(folder)


def test_a_class_that_the_model_names_counts_too(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "llama normalised", "llama", {})
    plain = Tokenizer.load(folder)
    (folder / "config.json").write_text('{"model_type": "llama", "tokenizer_class": "LlamaTokenizer"}')
    assert differences(folder) == []
    assert Tokenizer.load(folder).encode("  a") != plain.encode("  a")
    assert Tokenizer.load(folder).digest != plain.digest


LAYOUTS = [  # kind, family, class
    ("gpt2", "gpt2", None),
    ("gpt2", "llama", "TokenizersBackend"),
    ("qwen2", "qwen3", "Qwen2Tokenizer"),
    ("llama normalised", "llama", "LlamaTokenizer"),
    ("llama by metaspace", "mistral", "LlamaTokenizer"),
    ("unigram", "llama", None),
]
FORCE = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
VALUES: dict[str, list[Any]] = {
    "add_bos_token": [True, False],
    "add_eos_token": [True, False],
    "add_prefix_space": [True, False, None, "yes"],
    "additional_special_tokens": [["<more>"]],
    "auto_map": [{"AutoTokenizer": ["own.Tokenizer", None]}],
    "backend": ["tokenizers"],
    "bos_token": ["<s>", None, "<more>", {"__type": "AddedToken", "content": "<s>"} | PLAIN],
    "chat_control_tokens": [["<s>"]],
    "clean_up_tokenization_spaces": [True, False],
    FORCE: [True],
    "cls_token": ["<more>"],
    "device_map": [None],
    "do_lower_case": [True],
    "eos_token": ["</s>", None, "<more>"],
    "errors": ["strict"],
    "extra_special_tokens": [["<more>"], {"image_token": "<image>"}],
    "fast_tokenizer_files": [["tokenizer.json"], ["tokenizer.4.0.json", "tokenizer.json"]],
    "fix_mistral_regex": [True],
    "image_token": ["<image>"],
    "is_local": [True],
    "legacy": [True, False, None],
    "local_files_only": [True],
    "mask_token": ["<more>"],
    "max_length": [3],
    "merges": [["a b"]],
    "model_input_names": [["input_ids"]],
    "model_max_length": [4, 10**30],
    "model_specific_special_tokens": [{"image_token": "<image>", "other": "<more>"}],
    "name_or_path": ["elsewhere"],
    "pad_token": ["<more>", None],
    "padding_side": ["left"],
    "processor_class": ["Processor"],
    "response_schema": [{}],
    "response_template": ["x"],
    "sep_token": ["<more>"],
    "sp_model_kwargs": [{}],
    "spaces_between_special_tokens": [True],
    "split_special_tokens": [True, 1],
    "stride": [2],
    "tokenizer_file": ["/nowhere"],
    "truncation_side": ["left"],
    "truncation_strategy": ["longest_first"],
    "unk_token": ["<unk>", None, "<more>"],
    "use_default_system_prompt": [True],
    "use_fast": [False],
    "verbose": [True],
    "vocab": [{"a": 1}],
    "vocab_file": ["/nowhere"],
    "merges_file": ["/nowhere"],
}


def test_every_parameter_of_the_classes_is_walked() -> None:
    for known in (GPT2Tokenizer, LlamaTokenizer, Qwen2Tokenizer):
        assert {*inspect.signature(known.__init__).parameters} - {"self", "kwargs"} <= VALUES.keys()


@pytest.mark.parametrize(("kind", "family", "name"), LAYOUTS)
def test_every_key_is_honoured_or_refused(tmp_path: Path, kind: str, family: str, name: str | None) -> None:
    declared = {"tokenizer_class": name} if name else {}
    wrong, refused, num_served = [], set(), 0
    for key, values in VALUES.items():
        for value in values:
            if (family, key, value) == ("gpt2", "add_prefix_space", None):
                continue  # nothing, of which transformers makes an error
            also = {"clean_up_tokenization_spaces": True} if key == FORCE else {}
            found = differences(folder_of(tmp_path, kind, family, declared | also | {key: value}))
            if isinstance(found, str):
                assert "\n" not in found
                refused.add(key)
            elif found:
                wrong.append(f"{key} = {value}: {found}")
            else:
                num_served += 1
    assert not wrong, "\n".join(wrong)
    assert num_served > 50
    always = {"auto_map", "fast_tokenizer_files", "fix_mistral_regex", "add_prefix_space"}
    assert refused == always | {"split_special_tokens", FORCE} | (
        {"clean_up_tokenization_spaces"} if kind == "unigram" else set()
    )


@pytest.mark.parametrize(("kind", "family", "name"), LAYOUTS)
@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word", "normalized", "special"])
def test_flags_of_the_configuration_win_over_those_of_the_tokenizer(
    tmp_path: Path, kind: str, family: str, name: str | None, flag: str
) -> None:
    in_file = {token["content"]: token["id"] for token in json.loads(tokenizer_json(kind))["added_tokens"]}
    other = {"content": "</s>"} | PLAIN | {flag: not PLAIN[flag]}
    config = {"tokenizer_class": name} if name else {}
    for named in ({}, {"eos_token": "</s>"}):
        is_named = bool(named) or name == "LlamaTokenizer"  # whose own end token it is
        described = {str(in_file["</s>"]): other}
        folder = folder_of(tmp_path, kind, family, config | named | {"added_tokens_decoder": described})
        assert differences(folder) == []
        tokens = Tokenizer.load(folder).backend.get_added_tokens_decoder()
        if not (is_named and (flag == "special" or name == "Qwen2Tokenizer")):
            assert getattr(tokens[in_file["</s>"]], flag) is other[flag]


NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "image_token")
FILES = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def files_at_random(draw: random.Random, kind: str) -> dict[str, dict[str, Any]]:
    """What the files beside tokenizer.json might say together of one another's tokens."""
    described = json.loads(tokenizer_json(kind))
    size = len(described["model"]["vocab"])

    def flags() -> dict[str, bool]:
        return {flag: draw.random() < 0.3 for flag in PLAIN if draw.random() < 0.8}

    def token(name: str) -> Any:
        own = {"__type": "AddedToken", "content": f"<{name}>"} | flags()
        return draw.choice([None, "<s>", "</s>", "<more>", "<image>", own])

    config: dict[str, Any] = {"tokenizer_class": draw.choice(CLASSES[1:6] + CLASSES[7:11])}
    config |= {name: token(name) for name in NAMES if draw.random() < 0.4}
    for key, values in {
        "legacy": [True, False],
        "add_prefix_space": [True, False],
        "split_special_tokens": [True],
        "extra_special_tokens": [["<more>", "</s>"], {"own": "<more>", "image_token": "<image>"}, []],
        "additional_special_tokens": [["<added>"]],
    }.items():
        if draw.random() < 0.3:
            config[key] = draw.choice(values)
    if draw.random() < 0.5:
        known = {token["id"]: token["content"] for token in described["added_tokens"]} | {size: "<image>"}
        kept = {id: content for id, content in known.items() if draw.random() < 0.7}
        config["added_tokens_decoder"] = {
            str(id): {"content": content} | flags() for id, content in kept.items()
        }
    older = {name: draw.choice(["<s>", "<more>", {"content": "</s>"} | flags()]) for name in NAMES[:2]}
    lists = {"additional_special_tokens": ["<old>"], "extra_special_tokens": ["<older>"]}
    older |= {key: value for key, value in lists.items() if draw.random() < 0.4}
    files = [config, older, {"<image>": size, "<bos_token>": size + 1}]
    return {
        name: said for name, said in zip(FILES, files, strict=True) if said is config or draw.random() < 0.4
    }


@pytest.mark.parametrize("seed", range(12))
def test_files_that_speak_of_one_anothers_tokens(tmp_path: Path, seed: int) -> None:
    draw, num_served = random.Random(seed), 0
    for number in range(15):
        kind = draw.choice(KINDS)
        said = files_at_random(draw, kind)
        folder = folder_of(tmp_path / str(number), kind, draw.choice(FAMILIES), said.pop(FILES[0]))
        for name, content in said.items():
            (folder / name).write_text(json.dumps(content))
        found = differences(folder)
        num_served += found == []
        assert isinstance(found, str) or not found, f"{(folder / FILES[0]).read_text()}, {said}: {found}"
    assert num_served > 3
