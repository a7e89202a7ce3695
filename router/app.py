"""The wiring of the router, and its life: start, serve until told to stop, drain, end."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from router.api.addresses import listen_at
from router.api.auth import Keys
from router.api.browser import Pages
from router.api.commands import CommandsApi
from router.api.connections import Bounds, Patience, Runner
from router.api.docs import DocsApi
from router.api.middleware import Middleware
from router.api.openai import OpenAIApi
from router.api.ops import OpsApi
from router.api.responses import ResponsesApi
from router.api.route import Route
from router.api.routes import (
    command_routes,
    invocation_routes,
    openai_routes,
    ops_routes,
    page_routes,
    responses_routes,
    status_routes,
    text_routes,
    tgi_routes,
    windows_routes,
)
from router.api.service import Service
from router.api.status import VERSION, StatusApi
from router.api.text import TextApi
from router.api.tgi import TgiApi
from router.api.windows import WindowsApi
from router.catalog.catalog import Catalog
from router.catalog.read_profile import profile_of
from router.control.loop import ReassessmentLoop
from router.control.swap_controller import SwapController
from router.fleet.dispatcher import Dispatcher
from router.fleet.swap import Inflight, SwapOptions
from router.observers.metrics import GrammarMetrics, MetricsObserver, watch_store
from router.observers.recorder import Recorder
from router.processes import processes
from router.scheduling.observer import Observer
from router.settings.config import Config
from telemetry import tasks
from telemetry.prometheus import Metrics
from telemetry.store import Store

_BACKLOG = 2048  # connections that may wait to be accepted: a burst is refused in JSON, not by the kernel
_LAST_WRITES_S = 5.0  # to send complete answers when the server ends


async def serve(
    config: Config,
    catalog: Catalog,
    stop: asyncio.Event,
    announce: Callable[[str], None],
    store: Store,
) -> None:
    """Serve what the catalog has until `stop` is set, then finish what runs and end the shards.

    It listens at once, and is ready when `announce` gets the address. Raises what `Dispatcher.start` raises,
    OSError if it cannot listen or the folder has no tokenizer.
    """
    target = catalog.first()
    dispatcher = Dispatcher(config, target, catalog.max_total_tokens)
    metrics = Metrics()
    dispatcher.add_observer(MetricsObserver(metrics, config.model_name))
    dispatcher.add_observer(Recorder(store, num_waiting=lambda: dispatcher.num_waiting))
    watch_store(metrics.helios, store, config.model_name)
    metrics.helios.agreement_floor.labels(config.model_name).set(catalog.repository.floor.agreement)
    service = Service(
        config, dispatcher, target, catalog.names, GrammarMetrics(metrics.helios, config.model_name)
    )
    controller = SwapController(dispatcher, catalog, store.audit)
    profiles = {entry.candidate.name: profile_of(config, entry) for entry in catalog.entries}
    options = SwapOptions(Inflight(config.swap_inflight), config.swap_drain_ms / 1000)
    loop = ReassessmentLoop(
        catalog.repository, profiles, dispatcher, controller, store, options, config.watts
    )
    dispatcher.add_observer(loop.observer)
    await asyncio.to_thread(processes().start)
    app = build_app(service, controller, loop, metrics, store)
    async with _tracing(config) as traces, listening(app, config) as address:
        for observer in traces:
            dispatcher.add_observer(observer)
        try:
            if await _starts(dispatcher, stop):
                gc.freeze()  # objects made at start-up stay; the collector need not scan them again
                announce(address)
                loop.start()
                await stop.wait()
        finally:
            await dispatcher.stop(drain=True)
            await loop.stop()
            await controller.stop()


@contextlib.asynccontextmanager
async def _tracing(config: Config) -> AsyncIterator[list[Observer]]:
    """The observer that sends traces, if they are asked for: only then OpenTelemetry is loaded."""
    if config.otlp_endpoint is None:
        yield []
        return
    from router.observers.traces import observer_for

    observer = observer_for(config.otlp_endpoint, config.otlp_service_name)
    try:
        yield [observer]
    finally:
        await observer.stop()


def build_app(
    service: Service, controller: SwapController, loop: ReassessmentLoop, metrics: Metrics, store: Store
) -> web.Application:
    """The HTTP side alone, for a dispatcher that someone else starts and stops."""
    app = web.Application(client_max_size=service.config.payload_limit)
    pages = Pages()
    routes = _routes(service, controller, loop, metrics, store, pages)
    Middleware(service, routes, metrics.tgi).install(app)
    app.on_cleanup.append(service.end)
    app.add_routes([_definition(route) for route in routes])
    app.add_routes([web.get("/assets/{name}", pages.asset)])
    return app


def _routes(
    service: Service,
    controller: SwapController,
    loop: ReassessmentLoop,
    metrics: Metrics,
    store: Store,
    pages: Pages,
) -> list[Route]:
    tgi, openai = TgiApi(service), OpenAIApi(service)
    routes = [
        *tgi_routes(tgi),
        *openai_routes(openai),
        *responses_routes(ResponsesApi(service, openai)),
        *invocation_routes(tgi, openai),
        *text_routes(TextApi(service)),
        *status_routes(StatusApi(service, metrics), pages),
        *page_routes(pages),
        *ops_routes(OpsApi(service, controller, loop, store, metrics.tgi)),
        *command_routes(CommandsApi(service, controller, store)),
        *windows_routes(WindowsApi(store)),
    ]
    keys = Keys(service.config.api_key, service.config.admin_key)
    return routes + DocsApi(routes, VERSION, keys.asked_for).routes


def _definition(route: Route) -> web.RouteDef:
    make = web.get if route.method == "GET" else web.post
    return make(route.pattern, route.handler)


@contextlib.asynccontextmanager
async def listening(app: web.Application, config: Config) -> AsyncIterator[str]:
    """Accept connections; yields the address. A client that goes away cancels its handler."""
    runner = Runner(app, _bounds(config), _patience(config), _LAST_WRITES_S)
    await runner.setup()
    watching = asyncio.create_task(runner.connections.watch())
    try:
        for sock in listen_at(config.hostname, config.port):
            await web.SockSite(runner, sock, backlog=_BACKLOG).start()
        host, port = runner.addresses[0][:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        watching.cancel()
        await runner.cleanup()


def _bounds(config: Config) -> Bounds:
    total = config.max_connections or Bounds().total
    return Bounds(total, config.max_connections_per_address or total)


def _patience(config: Config) -> Patience:
    return Patience(config.client_timeout_ms / 1000, config.keep_alive_ms / 1000)


async def _starts(dispatcher: Dispatcher, stop: asyncio.Event) -> bool:
    """Start the shards. False if `stop` is set before one of them serves."""
    if stop.is_set():
        return False
    starting = asyncio.create_task(dispatcher.start())
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        return starting.done()
    finally:
        await tasks.cancel(starting, stopping)
