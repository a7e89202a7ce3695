"""The status routes: `/info`, health, liveness, readiness, metrics."""

from aiohttp import web

from router.api.errors import TgiError
from router.api.respond import json_response
from router.api.service import Service
from router.api.tgi_structs import Info
from router.api.validation import TGI, allowance_of
from shard.quality.agreement import Report
from telemetry.prometheus import CONTENT_TYPE, Metrics

_MAX_CLIENT_BATCH_SIZE = 4  # TGI's; on its routes a call has one prompt here
VERSION = "0.1.0"


class StatusApi:
    """Handlers of the status routes. Health, liveness and readiness differ."""

    def __init__(self, service: Service, metrics: Metrics):
        self._service = service
        self._metrics = metrics

    async def info(self, http: web.Request) -> web.Response:
        return json_response(self._info())

    async def health(self, http: web.Request) -> web.Response:
        """Health as in TGI: 200 if the server can generate, also while it drains."""
        shards = self._service.dispatcher.state().shards
        if any(shard.state in ("serving", "draining") for shard in shards):
            return web.Response()
        return json_response(TgiError("unhealthy", "healthcheck"), status=503)

    async def livez(self, http: web.Request) -> web.Response:
        """Liveness: 200 whenever the process answers."""
        return web.Response()

    async def readyz(self, http: web.Request) -> web.Response:
        """Readiness: 200 if new requests are welcome, so not while loading or draining."""
        if self._service.dispatcher.is_ready:
            return web.Response()
        return json_response(TgiError("not ready", "healthcheck"), status=503)

    async def metrics(self, http: web.Request) -> web.Response:
        self._set_gauges()
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})

    def _set_gauges(self) -> None:
        """Set the gauges, which show states rather than events."""
        state = self._service.dispatcher.state()
        tgi, helios, model = self._metrics.tgi, self._metrics.helios, self._service.model
        tgi.queue_size.set(state.waiting)
        tgi.batch_current_size.set(state.running)
        tgi.batch_current_max_tokens.set(self._service.dispatcher.max_running_tokens)
        helios.requests_waiting.labels(model).set(state.waiting)
        helios.requests_running.labels(model).set(state.running)
        helios.queued_tokens.labels(model).set(state.queued_tokens)
        helios.shards_serving.labels(model).set(sum(shard.state == "serving" for shard in state.shards))
        for shard in state.shards:
            helios.depth.labels(model, str(shard.id)).set(shard.depth)
            helios.loaded_models.labels(model, str(shard.id)).set(shard.num_models)
        self._show_agreement(state.agreement)

    def _show_agreement(self, report: Report) -> None:
        helios, model = self._metrics.helios, self._service.model
        if report.overall is not None:
            helios.agreement.labels(model).set(report.overall.agreement)
            helios.agreement_low.labels(model).set(report.overall.low)
            helios.agreement_high.labels(model).set(report.overall.high)
        if report.perplexity is not None:
            helios.perplexity.labels(model).set(report.perplexity)

    def _info(self) -> Info:
        config, dispatcher = self._service.config, self._service.dispatcher
        ready = dispatcher.limits
        limits = None if ready is None else self._service.limits()
        allowed = allowance_of(config, TGI)
        return Info(
            model_id=self._service.model,
            model_sha=config.revision,
            model_dtype=None if ready is None else ready.dtype,
            model_device_type=None if ready is None else ready.device,
            max_concurrent_requests=allowed.max_concurrent_requests or 0,
            max_best_of=config.max_best_of,
            max_stop_sequences=allowed.max_stop_sequences,
            max_input_tokens=None if limits is None else limits.max_input_tokens,
            max_input_length=None if limits is None else limits.max_input_tokens,
            max_total_tokens=None if limits is None else limits.max_total_tokens,
            max_batch_total_tokens=None if ready is None else ready.num_blocks * ready.block_size,
            max_batch_size=config.max_batch_size,
            max_client_batch_size=config.max_client_batch_size or _MAX_CLIENT_BATCH_SIZE,
            version=VERSION,
            deployment=config.deployment,
            model_version=None if ready is None else ready.version,
            num_layers=None if ready is None else ready.num_layers,
            depth=None if ready is None else ready.depth,
            weight_bytes=None if ready is None else ready.weight_bytes,
            compute_dtype=None if ready is None else ready.compute_dtype,
            weights=None if ready is None else ready.weights,
            kv_dtype=None if ready is None else ready.kv_dtype,
            kernels=None if ready is None else ready.kernels,
            dtype_reason=None if ready is None else ready.dtype_reason,
            supports_exact=dispatcher.supports_exact,
            supports_chat=self._service.target.tokenizer.chat_template is not None,
            exit_thresholds=self._exit_thresholds(),
            num_shards=config.num_replicas,
            is_ready=dispatcher.is_ready,
            exit_mode=self._service.target.config.exit_mode,
            exit_replay="exit-replay" in config.marks,
            random_weights="random-weights" in config.marks,
            warnings=[] if ready is None else ready.warnings,
        )

    def _exit_thresholds(self) -> dict[int, float]:
        """By exit layer: those of requests that give none."""
        ready, for_all = self._service.dispatcher.limits, self._service.dispatcher.exit_threshold
        if ready is None or for_all is None:
            return {} if ready is None else ready.exit_thresholds
        return dict.fromkeys(ready.exit_thresholds, for_all)
