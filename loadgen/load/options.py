"""The load generator's options; command lines are derived from these structs (flags.py)."""

from typing import Annotated, Literal

import msgspec

from loadgen.cli.flags import Flag

SERVER = "server"
PACE = "pace (closed loop by --concurrency, else open loop)"
CONTENT = "content"
MANNER = "manner of asking"
PATIENCE = "patience"
RESULTS = "results"


class LoadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A load and its evaluation, independent of the server."""

    concurrency: Annotated[
        int | None,
        Flag(
            PACE, "so many at a time; with a rate or trace: at most so many (8 if nothing else is said)", "N"
        ),
    ] = None
    rate: Annotated[
        str | None,
        Flag(PACE, "requests per second: 4, rising evenly 2..20, or in equal steps 2,4,8", "R"),
    ] = None
    spacing: Annotated[
        str, Flag(PACE, "gaps at that rate: poisson, constant or gamma:SHAPE (below 1: burstier)", "KIND")
    ] = "poisson"
    bursts: Annotated[str | None, Flag(PACE, "so many at once, every so often: 32/10s", "N/TIME")] = None
    trace: Annotated[
        str | None,
        Flag(PACE, "arrivals and lengths of a trace: Azure LLM or BurstGPT CSV, Mooncake JSONL", "FILE"),
    ] = None
    trace_speed: Annotated[float, Flag(PACE, "play the trace so many times as fast", "X")] = 1.0
    requests: Annotated[int | None, Flag(PACE, "stop after so many requests (or conversations)", "N")] = None
    duration: Annotated[
        str | None,
        Flag(PACE, "start nothing after this long: 30s, 5m (30s if --requests is not given)", "TIME"),
    ] = None

    workload: Annotated[
        str,
        Flag(CONTENT, "shipped prompts by class, mixed by weight (chat=3,code=1), or random", "CLASSES"),
    ] = "chat,story,code,extract"
    dataset: Annotated[
        str | None,
        Flag(CONTENT, "prompts of a file: ShareGPT JSON or JSONL (Spec-Bench, GSM8K, your own)", "FILE"),
    ] = None
    classes: Annotated[
        str | None, Flag(CONTENT, "of the dataset only these, mixed by weight: writing=2,coding", "CLASSES")
    ] = None
    drift: Annotated[
        str | None,
        Flag(CONTENT, "classes over time or requests: 'chat@60s, code@60s, chat+code@60s'", "SCHEDULE"),
    ] = None
    input_tokens: Annotated[
        str | None,
        Flag(CONTENT, "random prompts: 128, uniform:64:512, normal:256:64, lognormal:200:0.8", "LENGTH"),
    ] = None
    output_tokens: Annotated[
        str,
        Flag(CONTENT, "tokens to ask for, likewise; 'dataset': as long as the file's own answers", "LENGTH"),
    ] = "128"
    prefix_tokens: Annotated[int, Flag(CONTENT, "begin prompts with a shared prefix of so many", "N")] = 0
    prefixes: Annotated[int, Flag(CONTENT, "of so many different ones", "N")] = 1
    turns: Annotated[int, Flag(CONTENT, "hold conversations of up to so many turns", "N")] = 1
    think: Annotated[str, Flag(CONTENT, "mean pause before a further turn, exponential", "TIME")] = "0s"
    cancel: Annotated[str, Flag(CONTENT, "hang up on this share of answers: 10%", "SHARE")] = "0%"
    cancel_within: Annotated[
        str | None,
        Flag(CONTENT, "hang up within this time, instead of after some of the tokens", "TIME"),
    ] = None
    seed: Annotated[int, Flag(CONTENT, "the same seed gives the same requests", "N")] = 0

    dialect: Annotated[
        Literal["tgi", "completions", "chat"] | None,
        Flag(MANNER, "route to ask (tgi where the server has it, else completions)"),
    ] = None
    model: Annotated[str | None, Flag(MANNER, "name of the model (the first the server lists)", "NAME")] = (
        None
    )
    temperature: Annotated[float, Flag(MANNER, "0 is greedy", "T")] = 0.0
    eos: Annotated[
        Literal["auto", "ignore", "obey"],
        Flag(MANNER, "whether answers may end by themselves (auto: not for random prompts and traces)"),
    ] = "auto"
    chat_template: Annotated[
        bool, Flag(MANNER, "apply the server's chat template where the route takes plain text")
    ] = False
    exit_threshold: Annotated[float | None, Flag(MANNER, "ask for this exit threshold", "P")] = None
    exact: Annotated[bool, Flag(MANNER, "ask for output equal to the full-depth model's")] = False
    extra_body: Annotated[str | None, Flag(MANNER, "JSON object to add to every request", "JSON")] = None
    api_key: Annotated[str | None, Flag(MANNER, "sent as a bearer token (or set HELIOS_API_KEY)", "KEY")] = (
        None
    )
    admin_key: Annotated[
        str | None, Flag(MANNER, "for /ops of a Helios server (or HELIOS_ADMIN_KEY)", "KEY")
    ] = None

    connect_timeout: Annotated[str, Flag(PATIENCE, "to get a connection", "TIME")] = "10s"
    first_token_timeout: Annotated[str, Flag(PATIENCE, "to get a first token", "TIME")] = "5m"
    stall_timeout: Annotated[str, Flag(PATIENCE, "between two events", "TIME")] = "1m"
    total_timeout: Annotated[str, Flag(PATIENCE, "for a whole answer", "TIME")] = "10m"
    drain: Annotated[str | None, Flag(PATIENCE, "for what is open when nothing more is started", "TIME")] = (
        None
    )

    slo: Annotated[
        tuple[str, ...],
        Flag(RESULTS, "bound of a good request: ttft:500ms, tpot:50ms, gap:1s, e2e:10s", "BOUND"),
    ] = ()
    warmup: Annotated[str, Flag(RESULTS, "cut off the beginning: 10% or 5s", "PART")] = "10%"
    cooldown: Annotated[str, Flag(RESULTS, "cut off the end, before the last start", "PART")] = "0%"
    out: Annotated[
        str | None, Flag(RESULTS, "write summary.json, CSV, requests.jsonl and report.html there", "DIR")
    ] = None
    label: Annotated[str | None, Flag(RESULTS, "name of the run in reports", "NAME")] = None
    quiet: Annotated[bool, Flag(RESULTS, "no live view and no table, only the JSON line")] = False


class ServeOptions(LoadOptions, frozen=True, kw_only=True):
    """One load on one server, or a sweep of loads."""

    url: Annotated[str, Flag(SERVER, "the server to measure", "URL")] = "http://127.0.0.1:3000"
    sweep: Annotated[
        Literal["concurrency", "rate"] | None,
        Flag(PACE, "raise the load step by step until the server is saturated, and stop there"),
    ] = None


class CompareOptions(LoadOptions, frozen=True, kw_only=True):
    """The same load on two servers, in turns."""

    a: Annotated[str, Flag(SERVER, "the server to compare with", "URL")] = ""
    b: Annotated[str, Flag(SERVER, "the server to judge", "URL")] = ""
    names: Annotated[str, Flag(SERVER, "what to call them", "A,B")] = "A,B"
    dialect_b: Annotated[
        Literal["tgi", "completions", "chat"] | None, Flag(MANNER, "another route for B than for A")
    ] = None
    model_b: Annotated[str | None, Flag(MANNER, "another model name for B", "NAME")] = None
    extra_body_b: Annotated[str | None, Flag(MANNER, "another JSON object for B", "JSON")] = None
    rounds: Annotated[int, Flag(PACE, "pairs of rounds A B A B ...; each with its own prompts", "N")] = 5
    same_answers: Annotated[
        str | None,
        Flag(RESULTS, "also ask both the same, greedily, and demand this share of equal answers", "SHARE"),
    ] = None
    same_prompts: Annotated[int, Flag(RESULTS, "so many prompts for that", "N")] = 20


class ScenarioOptions(msgspec.Struct, frozen=True, kw_only=True):
    """A named scenario with promises."""

    name: Annotated[
        str, Flag("scenario", "one of the names below, or 'list'", "NAME", is_positional=True)
    ] = "list"
    url: Annotated[str, Flag(SERVER, "the server to try", "URL")] = "http://127.0.0.1:3000"
    dialect: Annotated[
        Literal["tgi", "completions", "chat"] | None, Flag(SERVER, "route to ask (tgi where there is one)")
    ] = None
    api_key: Annotated[str | None, Flag(SERVER, "sent as a bearer token (or set HELIOS_API_KEY)", "KEY")] = (
        None
    )
    admin_key: Annotated[
        str | None, Flag(SERVER, "for /ops of a Helios server (or HELIOS_ADMIN_KEY)", "KEY")
    ] = None
    scale: Annotated[
        float, Flag("scenario", "stretch or shrink its length and size, 0.1 for a quick look", "X")
    ] = 1.0
    concurrency: Annotated[int | None, Flag("scenario", "streams, where it keeps a number open", "N")] = None
    rate: Annotated[float | None, Flag("scenario", "requests per second, where it has a rate", "R")] = None
    dataset: Annotated[str | None, Flag("scenario", "prompts of a file instead of those shipped", "FILE")] = (
        None
    )
    swaps: Annotated[
        str | None, Flag("scenario", "candidates to swap to, in turn: small@10,large@30", "LIST")
    ] = None
    thresholds: Annotated[
        str, Flag("scenario", "exit thresholds that paper-miao compares with full depth", "LIST")
    ] = "0.8"
    exact_answers: Annotated[
        bool, Flag("scenario", "also promise that equal prompts get equal answers (fp32, greedy)")
    ] = False
    seed: Annotated[int, Flag("scenario", "the same seed gives the same requests", "N")] = 0
    out: Annotated[str | None, Flag(RESULTS, "write the report files there", "DIR")] = None
    quiet: Annotated[bool, Flag(RESULTS, "no live view and no table, only the JSON line")] = False
