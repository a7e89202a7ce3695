"""Response headers of generations: TGI's times and counts, in milliseconds and tokens, and ours."""

from collections.abc import Sequence
from urllib.parse import quote

from aiohttp import web

from router.api.service import Answer, Service
from router.scheduling.request import Request

REQUEST_ID = "x-request-id"
_MAX_LABEL_CHARACTERS = 128
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


def start_headers(service: Service, request: Request) -> dict[str, str]:
    """Headers known once an answer has begun; a stream carries the rest in its details."""
    ready = service.dispatcher.limits
    begun = request.segments[:1]
    return {
        "x-compute-type": "" if ready is None else ready.device,
        "x-helios-model": begun[0].model if begun else service.target.name,
        "x-helios-version": begun[0].version if begun else service.version,
        "x-cached-tokens": str(request.num_cached_tokens),
        REQUEST_ID: request.spec.label or str(request.id),
        **{f"x-helios-{mark}": "true" for mark in service.config.marks},
    }


def label_of(http: web.Request) -> str:
    """The client's own id of the call, "" without one; bytes that are no UTF-8 are percent-encoded."""
    label = http.headers.get(REQUEST_ID, "")[:_MAX_LABEL_CHARACTERS]
    is_text = not any(0xD800 <= ord(character) < 0xE000 for character in label)
    return label if is_text else header_value(label)


def header_value(text: str) -> str:
    """The text in printable ASCII: other characters as percent-encoded UTF-8."""
    return quote(text, safe=_PRINTABLE, errors="surrogateescape")


def total_headers(answers: Sequence[Answer], arrived: float, now: float) -> dict[str, str]:
    """Times of the slowest of the answers, counts of all of them. `arrived` and `now` are loop times."""
    lines = [answer.request.timeline for answer in answers]
    queued = max((line.started or now) - line.arrived for line in lines)
    inference = max((line.finished or now) - (line.started or now) for line in lines)
    num_generated = sum(len(answer.tokens) for answer in answers)
    longest = max(len(answer.tokens) for answer in answers)
    headers = {
        "x-total-time": _ms(now - arrived),
        "x-validation-time": _ms(min(line.arrived for line in lines) - arrived),
        "x-queue-time": _ms(queued),
        "x-inference-time": _ms(inference),
        "x-time-per-token": _ms(inference / max(1, longest)),
        "x-prompt-tokens": str(sum(answer.request.num_prompt_tokens for answer in answers)),
        "x-generated-tokens": str(num_generated),
    }
    mean = mean_exit_layer(answers)
    return headers if mean is None else headers | {"x-helios-mean-exit-layer": f"{mean:.3f}"}


def mean_exit_layer(answers: Sequence[Answer]) -> float | None:
    """Mean exit layer of the tokens drawn; None if none was."""
    layers = [token.exit_layer for answer in answers for token in answer.tokens if token.exit_layer]
    return sum(layers) / len(layers) if layers else None


def _ms(seconds: float) -> str:
    """Whole milliseconds, as TGI gives them."""
    return str(max(0, round(seconds * 1000)))
