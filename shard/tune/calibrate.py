"""`helios calibrate MODEL --exits DIR`: finds thresholds with a guarantee, and writes them into the folder.

In `per_row` and `synchronized`: with the requested confidence, at most a share `--risk` of generated tokens
leaves early and differs from full depth's choice. In `capped`: a lower bound of each depth's agreement with
full depth.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import Progress

from shard.cli import (
    add_cache_flag,
    add_device_flags,
    add_kv_cache_flags,
    add_quantize_flag,
    add_revision_flag,
    positive,
)
from shard.exits.exit_heads import check_exits, read_exits
from shard.exits.settings import Settings
from shard.fetch.resolve import resolve
from shard.messages import Criterion, Fill, Mode, ShardConfig
from shard.models.checkpoint import digest
from shard.models.model_folder import ModelUnusable
from shard.models.shape import Shape, read_config, shape_of
from shard.precision import Precision, precision_of
from shard.quality.certificate import Basis, Certificate, heads_digest, read_certificate, write_certificate
from shard.quality.weight_format import weight_format
from shard.tune.calibration import Asked, Calibration, Watch, speedup_bound
from shard.tune.calibration_plot import plot
from shard.tune.calibration_prompts import Sample, draw_sample
from shard.tune.calibration_report import Findings, curve_table, depth_table, exit_table, sentences
from shard.tune.closed_loop import Wanted
from shard.tune.learn_then_test import Bound, largest_risk, num_needed
from shard.tune.measurement_cache import MeasurementCache
from shard.tune.trials import BREACH, Trials, write_thresholds

PROGRAM = "helios calibrate"
PLOT = "calibration.png"
MODES = (Mode.PER_ROW, Mode.SYNCHRONIZED, Mode.CAPPED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print tables and sentences, then one JSON line. Exit code 1 with one sentence on failure."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    try:
        _check_provable(options)
        with Progress(console=console, transient=True) as progress:
            result = _run(options, console, _watch(progress))
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(json.dumps(result))
    return 0


def _run(options: argparse.Namespace, console: Console, watch: Watch) -> dict[str, Any]:
    """Measure, write the findings into the exit folder, and report them."""
    folder = resolve(options.model_id, options.revision, options.cache_dir)
    shape = shape_of(read_config(folder))
    layers = _exit_layers(options.exits, shape)
    sample = draw_sample(folder, options.prompts, options.num_survey, options.num_sequences, options.seed)
    basis = _basis(options, folder, sample)
    asked = Asked(
        Settings(Mode(options.mode), Criterion(options.criterion), Fill(options.fill)),
        Bound(options.risk, options.confidence),
        Wanted(options.max_new_tokens, options.batch_size, options.temperature, options.seed),
        layers,
    )
    trials = Trials(_config(options, folder, _longest(sample, options, shape)))
    kept = MeasurementCache(
        options.cache_dir / "calibration", _key(asked, basis, _precision(options, folder).label)
    )
    calibration = Calibration(asked, trials, sample, kept)
    calibrate = _calibrate_depths if asked.settings.mode is Mode.CAPPED else _calibrate_thresholds
    return calibrate(calibration, basis, options, console, watch)


def _calibrate_thresholds(
    calibration: Calibration, basis: Basis, options: argparse.Namespace, console: Console, watch: Watch
) -> dict[str, Any]:
    costs = calibration.costs()
    survey = calibration.survey(watch)
    curve = calibration.walk(survey, costs, watch)
    guarantee = calibration.guarantee(
        curve, lambda thresholds: speedup_bound(thresholds, survey, costs), basis
    )
    known = read_certificate(options.exits) or Certificate()
    write_thresholds(options.exits, calibration.asked.settings.criterion, guarantee.thresholds)
    write_certificate(options.exits, known.with_guarantee(guarantee))
    found = Findings(guarantee, survey, costs)
    try:
        plot(options.plot or options.exits / PLOT, survey, guarantee.criterion, guarantee.thresholds)
    except ModuleNotFoundError as error:
        console.print(f"No plot, for want of {error.name}: pip install 'helios-serve[plots]'", markup=False)
    console.print(curve_table(guarantee), exit_table(found), *sentences(found), sep="\n")
    return {
        "guarantee": msgspec.to_builtins(guarantee, str_keys=True),
        "speedup_bound": round(found.speedup_bound, 3),
    }


def _calibrate_depths(
    calibration: Calibration, basis: Basis, options: argparse.Namespace, console: Console, watch: Watch
) -> dict[str, Any]:
    costs = calibration.costs()
    depths, breach = calibration.depths(basis, watch)
    known = read_certificate(options.exits) or Certificate()
    write_thresholds(options.exits, calibration.asked.settings.criterion, breach, BREACH)
    write_certificate(options.exits, known.with_depths(depths))
    bounds = [costs.capped_speedup_bound(i) for i in range(len(depths))]
    console.print(depth_table(depths, bounds))
    return {
        "depths": msgspec.to_builtins(depths),
        "speedup_bounds": [round(bound, 3) for bound in bounds],
    }


def _exit_layers(folder: Path, shape: Shape) -> list[int]:
    file = read_exits(folder)
    check_exits(file, shape.num_layers, shape.hidden_size)
    return [spec.layer for spec in file.exits]


def _longest(sample: Sample, options: argparse.Namespace, shape: Shape) -> int:
    """Length of the longest possible sequence. Raises `ValueError` if it exceeds the model's limit."""
    longest = sample.longest + int(options.max_new_tokens)
    if longest > shape.max_positions:
        raise ValueError(
            f"The longest prompt has {sample.longest} tokens, and the model holds {shape.max_positions}, "
            f"answer and all: give shorter prompts, or a smaller --max-new-tokens."
        )
    return longest


def _config(options: argparse.Namespace, folder: Path, max_total_tokens: int) -> ShardConfig:
    return ShardConfig(
        model=str(folder),
        device=options.device,
        dtype=options.dtype,
        quantize=_weights(options, folder),
        kv_cache_dtype=options.kv_cache_dtype,
        kv_cache_bytes=options.kv_cache_bytes,
        max_total_tokens=max_total_tokens,
        max_batch_size=options.batch_size,
        num_threads=options.num_threads,
        exit_criterion=options.criterion,
        kv_fill=options.fill,
        exits=str(options.exits),
    )


def _basis(options: argparse.Namespace, folder: Path, sample: Sample) -> Basis:
    return Basis(
        model=digest(folder),
        heads=heads_digest(options.exits),
        dtype=_precision(options, folder).certified,
        prompts=sample.name,
        prompts_digest=sample.digest,
        num_sequences=len(sample.for_test),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )


def _precision(options: argparse.Namespace, folder: Path) -> Precision:
    weights = _weights(options, folder)
    return precision_of(options.device, options.dtype, weights, options.kv_cache_dtype)


def _weights(options: argparse.Namespace, folder: Path) -> str:
    """The format in which exits of the mode will be served, for full depth's answers too."""
    return weight_format(options.quantize, folder, options.device, Mode(options.mode))


def _key(asked: Asked, basis: Basis, precision: str) -> list[object]:
    """The cache key of a measurement: all that it depends on except thresholds and depth."""
    return [asked.settings, asked.wanted, msgspec.structs.replace(basis, date=""), precision]


def _check_provable(options: argparse.Namespace) -> None:
    """Raises `ValueError` if the number of sequences is too small to prove anything."""
    bound = Bound(options.risk, options.confidence)
    if options.mode != Mode.CAPPED and largest_risk(options.num_sequences, bound) is None:
        raise ValueError(
            f"{options.num_sequences} sequences allow no exit at risk {bound.risk:g}, even if no early token "
            f"is wrong: at least {num_needed(0.0, bound)} are needed (--num-sequences)."
        )


def _watch(progress: Progress) -> Watch:
    def begin(name: str, total: int) -> Callable[[], object]:
        task = progress.add_task(name, total=total)
        return lambda: progress.advance(task)

    return Watch(begin, progress.console.print)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__)
    add = parser.add_argument
    add("model_id", metavar="MODEL", help="as for `helios serve`: embedded, a folder, a .gguf file, a hub id")
    add("--exits", type=Path, required=True, metavar="DIR", help="folder with exits.json; written to")
    add("--risk", type=_share, default=0.05, help="share of tokens that may be early and wrong [%(default)s]")
    add("--confidence", type=_share, default=0.9, help="of the promise [%(default)s]")
    add("--mode", default="per_row", choices=MODES, help="that will be served [%(default)s]")
    add("--fill", default="recompute", choices=list(Fill), help="that will be served [%(default)s]")
    add("--criterion", default="softmax", choices=list(Criterion), help="that will be served [%(default)s]")
    add("--prompts", default="chat", help="chat, code, or a file with a prompt a line [%(default)s]")
    add("--num-sequences", type=positive, default=400, help="answers that the promise rests on [%(default)s]")
    add("--num-survey", type=positive, default=100, help="others that the path is drawn from [%(default)s]")
    add("--max-new-tokens", type=positive, default=64, help="of an answer [%(default)s]")
    add("--temperature", type=float, default=0.0, help="of the answers; 0: greedy [%(default)s]")
    add("--batch-size", type=positive, default=64, help="answers generated at once [%(default)s]")
    add("--seed", type=int, default=0, help="chooses the prompts, and the noise [%(default)s]")
    add("--plot", type=Path, metavar="FILE", help=f"agreement and coverage, a PNG [DIR/{PLOT}]")
    add_revision_flag(parser)
    add_device_flags(parser)
    add_quantize_flag(parser)
    add_kv_cache_flags(parser)
    add_cache_flag(parser)
    return parser


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1, not {text}")
    return share


if __name__ == "__main__":
    sys.exit(main())
