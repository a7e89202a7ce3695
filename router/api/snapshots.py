"""A router's snapshot for other processes, from what `/ops` reports, without what clients have written."""

import time
from collections.abc import Sequence

import msgspec

from router.api.ops_structs import RequestReport, StateReport
from telemetry.snapshot import MAX_EXIT_LAYERS, MAX_MOMENTS, RequestView, Snapshot


def snapshot_of(router: str, state: StateReport, reports: Sequence[RequestReport]) -> Snapshot:
    """The snapshot of a router."""
    fields = {name: getattr(state, name) for name in Snapshot.__struct_fields__ if hasattr(state, name)}
    requests = [_request_view(report) for report in reports]
    told = fields | {"router": router, "at": time.time(), "requests": requests}
    return msgspec.convert(told, Snapshot, from_attributes=True)


def _request_view(report: RequestReport) -> RequestView:
    row = report.request
    fields = {name: getattr(row, name) for name in RequestView.__struct_fields__ if hasattr(row, name)}
    return RequestView(
        **fields,
        mean_exit_layer=report.mean_exit_layer,
        exit_layers=report.exit_layers[-MAX_EXIT_LAYERS:],
        timeline=report.timeline[-MAX_MOMENTS:],
    )
