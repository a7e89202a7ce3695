"""Random small models of every supported family, written as a hub would serve them, with a tiny tokenizer.

Weights are drawn wide, norms and biases are not at their neutral values: a forgotten bias or norm changes the
output, and the two likeliest tokens are rarely close. All in float32.
"""

from pathlib import Path
from typing import Any

NUM_LAYERS = 4
MAX_POSITIONS = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LEARNED_FROM = (
    "The quick brown fox jumps over the lazy dog, and then the dog thinks about the fox for the rest of "
    "the day. It was the best of times, it was the worst of times. Once upon a time there was a small "
    "model of the world."
)

_ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GROUPED = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_POSITIONS,
    "rope_parameters": _ROPE,
}

SHAPES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED | {"model_type": "llama", "tie_word_embeddings": True},
    "llama3-rope": _GROUPED
    | {"model_type": "llama", "rope_parameters": _LLAMA3_ROPE, "attention_bias": True},
    "mistral": _GROUPED | {"model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "qwen2": _GROUPED | {"model_type": "qwen2", "tie_word_embeddings": True},
    "qwen3": _GROUPED | {"model_type": "qwen3", "head_dim": 32},
    "opt": {
        "model_type": "opt",
        "hidden_size": 64,
        "word_embed_proj_dim": 64,
        "ffn_dim": 96,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_POSITIONS,
    },
    "gpt2": {
        "model_type": "gpt2",
        "n_embd": 64,
        "n_inner": 96,
        "n_layer": NUM_LAYERS,
        "n_head": 4,
        "n_positions": MAX_POSITIONS,
    },
}


def write_tiny_model(folder: Path, shape: str, **changes: Any) -> Path:
    """Write the model of `SHAPES[shape]`, its configuration changed by `changes`, into a new folder."""
    folder.mkdir(parents=True)
    vocabulary = write_tiny_tokenizer(folder)
    _write_weights(folder, SHAPES[shape] | vocabulary | changes)
    return folder


def write_tiny_tokenizer(folder: Path) -> dict[str, int | None]:
    """A byte-level BPE tokenizer. Returns what a model's configuration says of it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=384, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([LEARNED_FROM] * 4, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        model_max_length=MAX_POSITIONS,
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(folder, save_jinja_files=False)
    ids = {
        name: tokenizer.token_to_id(token) for name, token in (("bos", "<|im_start|>"), ("eos", "<|im_end|>"))
    }
    return {
        "vocab_size": tokenizer.get_vocab_size(),
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }


def _write_weights(folder: Path, settings: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)
    model.eval().save_pretrained(folder)
