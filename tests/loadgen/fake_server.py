"""A small server of completions, a child process of tests. Arguments: port, and behaviour as JSON."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from loadgen.servers.process import ServerCommand

BEHAVIOUR: dict[str, Any] = {
    "itl_s": 0.002,
    "answer_tokens": None,
    "refuses_long": False,
    "spins": False,
    "stubborn_child": False,
    "dies": "",
}
KEY = web.AppKey("behaviour", dict)


def fake(**behaviour: Any) -> ServerCommand:
    """The command of this server."""

    def command(port: int) -> Sequence[str]:
        return (sys.executable, __file__, str(port), json.dumps(behaviour))

    return ServerCommand("fake", command, "/health")


async def completions(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    behaviour = request.app[KEY]
    if behaviour["refuses_long"] and len(asked["prompt"].split()) == 64:
        return web.json_response({"error": "too long"}, status=422)
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    num_tokens = min(asked["max_tokens"], behaviour["answer_tokens"] or asked["max_tokens"])
    for index in range(num_tokens):
        await asyncio.sleep(behaviour["itl_s"])
        reason = "length" if index == num_tokens - 1 else None
        choice = {"text": " word", "index": 0, "finish_reason": reason}
        await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
    usage = {"prompt_tokens": len(asked["prompt"].split()), "completion_tokens": num_tokens}
    await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
    return response


async def healthy(request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def _spin() -> None:
    while True:
        sum(range(10_000))


def main(port: int, behaviour: dict[str, Any]) -> None:
    if behaviour["stubborn_child"]:
        words = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", words])
    if behaviour["spins"]:
        threading.Thread(target=_spin, daemon=True).start()
    if behaviour["dies"]:
        sys.exit(behaviour["dies"])
    app = web.Application()
    app[KEY] = behaviour
    app.router.add_get("/health", healthy)
    app.router.add_post("/v1/completions", completions)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), BEHAVIOUR | json.loads(sys.argv[2]))
