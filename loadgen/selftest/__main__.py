"""`python -m loadgen.selftest [BEHAVIOUR as JSON]`: the synthetic server alone; prints its port first.

It ends when its standard input closes, so with its parent.
"""

import asyncio
import contextlib
import sys

import msgspec

from loadgen.selftest.server import Behaviour, Server


async def run(behaviour: Behaviour) -> None:
    server = Server(behaviour)
    await server.start()
    print(server.port, flush=True)
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(sys.stdin, lambda: over.set() if not sys.stdin.read(1) else None)
    await over.wait()
    await server.stop()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        behaviour = sys.argv[1] if len(sys.argv) > 1 else "{}"
        asyncio.run(run(msgspec.json.decode(behaviour, type=Behaviour)))
