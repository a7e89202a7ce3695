"""`helios bench serve`: measures one load on one server."""

from pathlib import Path

from rich.console import Console

from loadgen.commands.sweep import sweep
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen, measure
from loadgen.load.options import ServeOptions
from loadgen.load.plan import Plan, plan_of, settings_of
from loadgen.load.run import Run
from loadgen.load.target import Target, reach
from loadgen.report.export import export
from loadgen.report.tables import json_line, print_summary
from loadgen.results.summary import Summary, summarise


async def serve(options: ServeOptions, console: Console) -> int:
    """Measure and report; returns the exit code. Raises `Unusable`, `BadUrl`, `BadQuantity`, OSError."""
    plan = plan_of(options)
    async with reach(options.url, plan) as target:
        if options.sweep is not None:
            return await sweep(target, plan, options, console)
        run, summary = await measured(
            target, plan, Screen(choose_view(options.quiet), f"load on {options.url}")
        )
    if not options.quiet:
        print_summary(summary, console)
    if options.out:
        paths = export(Path(options.out), summary, run)
        console.print(
            f"Written to {options.out}: {', '.join(path.name for path in paths)}", style="dim", soft_wrap=True
        )
    print(json_line(summary), flush=True)
    return 0


async def measured(target: Target, plan: Plan, screen: Screen, label: str = "") -> tuple[Run, Summary]:
    """Run a plan and compute its figures."""
    options = plan.options
    try:
        run = await measure(target, plan, screen)
    finally:
        screen.view.close()
    run.settings = {"dialect": target.server_info.dialect.value, **settings_of(options)}
    run.label = options.label or label or run.url
    return run, summarise(run, plan.slo, plan.trim)
