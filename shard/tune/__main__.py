"""`helios tune MODEL --out DIR`: exit heads for any model, by self-distillation; the model stays as it is.

The model generates the training text from prompts, unless a file is given. Text and hidden states are kept in
the cache folder; an interrupted tuning continues with --resume, and ends in the same heads.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from shard.cli import add_cache_flag, add_device_flags, add_revision_flag, positive
from shard.exits.exit_heads import HeadKind
from shard.fetch.resolve import resolve
from shard.models.model_folder import ModelUnusable
from shard.models.shape import read_config, shape_of
from shard.precision import precision_of
from shard.tune.drafter import depths_of, tune_drafter
from shard.tune.embedded import tune_embedded
from shard.tune.heads import HeadSpec
from shard.tune.layerskip import tune_layerskip
from shard.tune.pipeline import Wanted
from shard.tune.progress import Progress
from shard.tune.session import Made, measure, tune_exits
from shard.tune.summary import print_acceptance, print_summary
from shard.tune.training import Plan
from shard.tune.tune_config import Ask, Machine, Text

PROGRAM = "helios tune"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 with one sentence on failure."""
    given = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        ask = _ask(given)
        with Progress(console) as progress:
            made = _run(given.recipe, ask, progress)
        for each in made:
            print_summary(console, each, measure(each.ask))
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: stopped; the same command with --resume goes on from here.", file=sys.stderr)
        return 130
    print(ask.out)
    return 0


def _run(recipe: str, ask: Ask, progress: Progress) -> list[Made]:
    if recipe == "exits":
        return [tune_exits(ask, progress)]
    if recipe == "drafter":
        print_acceptance(progress.console, tune_drafter(ask, progress))
        return []
    if recipe == "embedded":
        return tune_embedded(ask, progress)
    tune_layerskip(ask, progress)
    return []


def _ask(given: argparse.Namespace) -> Ask:
    model = resolve(given.model_id, given.revision, given.cache_dir)
    plan = Plan(given.steps, given.batch_tokens, given.rate, seed=given.seed)
    vocabulary = given.vocabulary or given.out / "vocabulary.safetensors"
    layers = given.exit_layers or _default_layers(given.recipe, model)
    spec = HeadSpec(layers, HeadKind(given.head), given.head_rank, given.head_rerank)
    wanted = Wanted(
        spec,
        plan,
        vocabulary,
        given.vocabulary_steps,
        given.init,
        given.freeze_vocabulary,
        given.resume,
        given.seconds,
    )
    dtype = precision_of(given.device, given.dtype).dtype
    machine = Machine(
        given.device, dtype, given.num_threads, given.work or given.cache_dir / "tune" / model.name
    )
    file = None if given.data == "self" else Path(given.data)
    text = Text(file, given.prompts, given.compare, given.num_answers, given.max_new_tokens, given.seed)
    return Ask(model, given.out, machine, text, wanted)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("model_id", metavar="MODEL", help="as for `helios serve`: embedded, a folder, a .gguf file, a hub id")
    add("--out", type=Path, required=True, metavar="DIR", help="the exit folder to write")
    add("--recipe", default="exits", choices=["exits", "embedded", "layerskip"], help="[%(default)s]")
    add(
        "--drafter",
        dest="recipe",
        action="store_const",
        const="drafter",
        help="make a draft head instead, which reads hidden states behind --exit-layers",
    )
    add(
        "--exit-layers",
        type=_layers,
        metavar="L,L,...",
        help="[15,20,25; with --drafter a quarter, half and three quarters of the layers]",
    )
    add("--head", default="block", choices=list(HeadKind), help="[%(default)s]")
    add("--head-rank", type=positive, metavar="R", help="of a low-rank vocabulary [the model's LM head]")
    add("--head-rerank", type=positive, metavar="K", help="of so many likely tokens the LM head decides")
    add("--vocabulary", type=Path, metavar="FILE", help="where that goes [DIR/vocabulary.safetensors]")
    add("--vocabulary-steps", type=int, default=200, help="at full depth, before exits learn [%(default)s]")
    add("--init", type=Path, metavar="DIR", help="a folder of exits, or of a draft head, to go on from")
    add("--freeze-vocabulary", action="store_true", help="that of --init, as it is")
    add("--data", default="self", metavar="FILE", help="text to learn on, or self: the model's own [self]")
    add("--prompts", nargs="+", default=["chat"], metavar="LIST", help="for self: chat, code, files [chat]")
    add("--compare", nargs="*", default=[], metavar="LIST", help="others, to be measured on alone")
    add("--num-answers", type=positive, default=2560, help="to each list of prompts [%(default)s]")
    add("--max-new-tokens", type=positive, default=256, help="of an answer [%(default)s]")
    add("--steps", type=positive, default=2000, help="[%(default)s]")
    add("--seconds", type=positive, help="of training a drafter at most [all steps]")
    add("--batch-tokens", type=positive, default=2048, help="learned from in a step, about [%(default)s]")
    add("--rate", type=float, default=2e-3, help="learning rate at its height [%(default)s]")
    add("--seed", type=int, default=0, help="[%(default)s]")
    add("--resume", action="store_true", help="go on where the same command was stopped")
    add_device_flags(parser, ["auto", "float32", "bfloat16"])
    add("--work", type=Path, metavar="DIR", help="for text and hidden states [CACHE_DIR/tune/MODEL]")
    add_cache_flag(parser)
    add_revision_flag(parser)
    return parser


def _default_layers(recipe: str, model: Path) -> list[int]:
    if recipe == "drafter":
        return depths_of(shape_of(read_config(model)).num_layers)
    return [15, 20, 25]


def _layers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be layers such as 15,20,25, not {text!r}") from None


if __name__ == "__main__":
    sys.exit(main())
