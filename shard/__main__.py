"""`python -m shard`: one shard process. It inherits a socket from its router, or listens for a router."""

import argparse
import logging
import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from shard.cli import add_log_level_flag, set_up_logging
from shard.messages import Hello
from shard.server import Connection, Refused, Server


def main(argv: list[str] | None = None) -> NoReturn:
    """Serve one router, then end. Over TCP, restart in a fresh process for the next router."""
    parser = _parser()
    options = parser.parse_args(argv)
    set_up_logging(options.log_level)
    if options.fd is not None:
        _end(_serve(socket.socket(fileno=options.fd), secret=""))
    if options.secret_file is None:
        parser.error("--listen needs --secret-file: whoever can connect could use the device")
    try:
        connection, hello = _await_router(options.listen, Path(options.secret_file).read_text().strip())
    except OSError as error:
        parser.error(str(error))
    Server(connection, hello.config).run()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "helios shard", description="Run one shard for a router on another host."
    )
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument(
        "--listen", type=_address, metavar="tcp://HOST:PORT", help="where the router may connect"
    )
    way.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument(
        "--secret-file", metavar="FILE", help="file with the secret that the router must know"
    )
    add_log_level_flag(parser)
    return parser


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.removeprefix("tcp://").rpartition(":")
    if not text.startswith("tcp://") or not host or not port.isdecimal():
        raise argparse.ArgumentTypeError("must be tcp://HOST:PORT")
    return host.strip("[]"), int(port)


def _serve(sock: socket.socket, secret: str) -> int:
    connection = Connection(sock)
    try:
        hello = connection.receive_hello(secret)
    except Refused:
        return 1
    return Server(connection, hello.config).run()


def _await_router(address: tuple[str, int], secret: str) -> tuple[Connection, Hello]:
    """Accept the first connection with the secret, and no further one. Raises `OSError`."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.create_server(address, family=family) as listener:
        while True:
            sock, _ = listener.accept()
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(sock)
            try:
                return connection, connection.receive_hello(secret)
            except Refused:
                logging.warning("Someone without the right secret was turned away.")


def _end(status: int) -> NoReturn:
    """Exit at once: the interpreter's normal exit could wait for a running step."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # the parent may have closed it
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
