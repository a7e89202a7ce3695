"""A model trained for exits: a small one, on a small language, with LayerSkip's losses, in seconds.

A sentence is a dictionary of pairs (key value), then questions (`#` key value), whose value takes layers of
attention to find, and runs of rising letters, which any layer can continue.
"""

import random
from pathlib import Path

import torch

LETTERS, KEYS, VALUES, MARK = range(16), range(16, 24), range(24, 32), 32
VOCAB, NUM_LAYERS, RUN = 40, 4, 6
STEPS, BATCH = 260, 48


def sentence(draw: random.Random) -> tuple[list[int], list[bool]]:
    """Tokens, and which of them are easy: letters inside a run."""
    keys, values = draw.sample(KEYS, 3), [draw.choice(VALUES) for _ in range(3)]
    tokens = [token for pair in zip(keys, values, strict=True) for token in pair]
    easy = [False] * len(tokens)
    for _ in range(3):
        asked = draw.randrange(3)
        first = draw.choice(LETTERS)
        tokens += [MARK, keys[asked], values[asked], *((first + i) % len(LETTERS) for i in range(RUN))]
        easy += [False] * 4 + [True] * (RUN - 1)
    return tokens, easy


def train(folder: Path) -> Path:
    """Write the model into a folder, with a tokenizer.

    Every layer's state learns to predict through the shared norm and head; deep layers drop out more.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    for index, layer in enumerate(model.model.layers):
        rate = 0.1 * index / (NUM_LAYERS - 1)
        layer.register_forward_hook(
            lambda _, given, made, rate=rate: given[0] if random.random() < rate else made
        )
    draw = random.Random(1)
    random.seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = torch.tensor([sentence(draw)[0] for _ in range(BATCH)])
        *states, last = model.model(batch, output_hidden_states=True).hidden_states[1:]  # the last is normed
        logits = [model.lm_head(model.model.norm(state)) for state in states] + [model.lm_head(last)]
        losses = [
            torch.nn.functional.cross_entropy(each[:, 6:-1].flatten(0, 1), batch[:, 7:].flatten())
            for each in logits
        ]
        loss = 0.2 * sum(losses[:-1]) + losses[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    _write_tokenizer(folder)
    return folder


def text_of(tokens: list[int]) -> str:
    """What the tokenizer reads as these tokens."""
    return " ".join(f"t{token}" for token in tokens)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({f"t{token}": token for token in range(VOCAB)}, unk_token="t39"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
