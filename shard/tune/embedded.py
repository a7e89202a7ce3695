"""Tunes the exits that ship with the project: one vocabulary, variants for chat and for code.

First vocabulary and heads are trained on all texts together. Then each variant is trained further on its own
text, with the vocabulary frozen, so that both share it.
"""

from pathlib import Path

import msgspec

from shard.tune.pipeline import Wanted
from shard.tune.progress import Progress
from shard.tune.session import Made, tune_exits
from shard.tune.tune_config import Ask

VARIANTS = ("chat", "code")
VARIANT_RATE = 0.5  # of the first stage's learning rate


def tune_embedded(ask: Ask, progress: Progress) -> list[Made]:
    """Make the shipped folder: OUT/vocabulary.safetensors, OUT/chat and OUT/code; returns new variants."""
    vocabulary = ask.out / "vocabulary.safetensors"
    base = ask.machine.work / "embedded"
    both = msgspec.structs.replace(ask.text, prompts=list(VARIANTS))
    wanted = msgspec.structs.replace(ask.wanted, vocabulary=vocabulary)
    if not (ask.wanted.resume and (base / "tuning.json").exists()):
        tune_exits(msgspec.structs.replace(ask, out=base, text=both, wanted=wanted), progress)
    made = []
    for name in VARIANTS:
        if not (ask.wanted.resume and (ask.out / name / "tuning.json").exists()):
            text = msgspec.structs.replace(ask.text, prompts=[name], compared=list(VARIANTS))
            variant = msgspec.structs.replace(
                ask, out=ask.out / name, text=text, wanted=_variant(wanted, base)
            )
            made.append(tune_exits(variant, progress))
    return made


def _variant(wanted: Wanted, base: Path) -> Wanted:
    plan = msgspec.structs.replace(wanted.plan, rate=VARIANT_RATE * wanted.plan.rate)
    return msgspec.structs.replace(wanted, plan=plan, init=base, freeze_vocabulary=True)
