"""Every key of every family's configuration, said otherwise: honoured as transformers does, or refused.

A key of `config.json` that is passed over in silence is text that is wrong without a word. Here each key of a
family's configuration class, and some that only others have, gets other values in turn. What is served must
then say what transformers says of the same folder; where that cannot be, one sentence says why.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.models.model_folder import ModelUnusable
from shard.models.shape import UnsupportedModelError
from tests.shard.driving import generate, make_runner

PROMPT = list(range(5, 29))
ROPE = {"rope_theta": 500.0, "original_max_position_embeddings": 16}
OTHER: dict[str, list[Any]] = {  # where a value of the same type would say little
    "hidden_act": ["gelu", "relu"],
    "activation_function": ["gelu", "relu", "silu", "gelu_new"],
    "rope_theta": [500.0],
    "rope_parameters": [
        {"rope_type": "default", "rope_theta": 500.0},
        {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
        {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 3.0},
        {"rope_type": "yarn", "factor": 4.0, **ROPE},
        {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7, **ROPE},
        {"rope_type": "yarn", "factor": 4.0, "mscale": 0.5, "mscale_all_dim": 0.8, **ROPE},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ROPE},
        {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 4.0, **ROPE},
        {"rope_type": "unheard_of", "rope_theta": 500.0},
        {"full_attention": {"rope_type": "default", "rope_theta": 500.0}},
        {"type": "linear", "factor": 3.0, "rope_theta": 500.0},
    ],
    "rope_scaling": [
        {"type": "linear", "factor": 3.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "su"},
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    "partial_rotary_factor": [0.5],
    "sliding_window": [3],
    "layer_types": [
        ["sliding_attention"] * 4,
        ["full_attention"] * 4,
        ["full_attention", "sliding_attention"] * 2,
    ],
    "no_rope_layers": [[0, 1, 0, 1]],
    "quantization_config": [{"quant_method": "bitsandbytes", "load_in_4bit": True}],
}
FOREIGN = (  # of other families: numbers
    "attention_multiplier",
    "embedding_multiplier",
    "final_logit_softcapping",
    "logits_scaling",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "scale_emb",
)
NOT_OF_THE_MODEL = {  # what is about tokens, files, training, or transformers' own calls
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "chunk_size_feed_forward",
    "dtype",
    "eos_token_id",
    "id2label",
    "initializer_range",
    "init_std",
    "label2id",
    "model_type",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "torch_dtype",
    "transformers_version",
    "vocab_size",
}


def others(key: str, value: Any) -> list[Any]:
    """Values that a key does not have."""
    if key in OTHER:
        return OTHER[key]
    if key in FOREIGN:
        return [3.0]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1 if value else 1]
    if isinstance(value, float):
        return [0.5 if value < 0.5 else value * 10]
    return [True, 2] if value is None else []


def said_otherwise(folder: Path) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(key, value, config.json) for every key of a model's configuration."""
    from transformers import AutoConfig

    known = AutoConfig.from_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    keys = {*known.to_dict(), *known.attribute_map, *FOREIGN, *OTHER} - NOT_OF_THE_MODEL
    for key in sorted(keys):
        for value in others(key, getattr(known, key, None)):
            config = written | {key: value}
            if key == "rope_scaling":
                config.pop("rope_parameters", None)
            if key == "sliding_window" and known.model_type.startswith("qwen"):
                config |= {"use_sliding_window": True, "max_window_layers": 0, "layer_types": None}
            if key == "layer_types":
                config |= {"sliding_window": 3, "use_sliding_window": True}
            yield key, value, config


def served(folder: Path) -> list[tuple[int, float]] | str:
    """What follows the prompt, with log-probabilities; or the sentence that refuses the folder."""
    try:
        runner = make_runner(folder)
    except (UnsupportedModelError, ModelUnusable, ValueError, OSError) as error:
        return str(error)
    [made] = generate(runner, [PROMPT], 3)
    return [(token.id, token.logprob) for token in made.tokens]


def expected(folder: Path, ids: list[int]) -> list[float]:
    """Log-probabilities that transformers gives these tokens after the prompt."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([PROMPT + ids[:-1]])).logits[0, len(PROMPT) - 1 :]
    found = logits.float().log_softmax(-1)
    return [float(found[at, id]) for at, id in enumerate(ids)]


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "opt", "gpt2"])
def test_every_key_is_honoured_or_refused(family: str, tiny_model: Any, tmp_path: Path) -> None:
    folder = tiny_model(family)
    plain = served(folder)
    assert not isinstance(plain, str)
    num_served, wrong = 0, []
    for key, value, config in said_otherwise(folder):
        changed = tmp_path / "changed"
        shutil.copytree(folder, changed)
        (changed / "config.json").write_text(json.dumps(config))
        made = served(changed)
        if isinstance(made, str):
            if "\n" in made or not made.strip():
                wrong.append(f"{key} = {value}: refused by {made!r}")
        else:
            num_served += 1
            try:
                theirs = expected(changed, [id for id, _ in made])
            except Exception as error:
                wrong.append(f"{key} = {value}: served, where transformers says {error}")
            else:
                if [logprob for _, logprob in made] != pytest.approx(theirs, abs=1e-3):
                    same = "as if it were not said" if made == plain else "otherwise"
                    wrong.append(f"{key} = {value}: served {same}")
        shutil.rmtree(changed)
    assert not wrong, "\n".join(wrong)
    assert num_served > 10
