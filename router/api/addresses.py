"""Where the server listens: at what a name resolves to, or at every address of IPv4 and IPv6."""

import contextlib
import errno
import socket
from collections.abc import Iterator
from typing import Any

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT)
_TRIES = 10  # for a port that is free in both families


def listen_at(hostname: str | None, port: int) -> list[socket.socket]:
    """Sockets bound to one port; 0 takes a free port. No hostname: every address, IPv6 where available.

    Raises OSError.
    """
    for tries_left in reversed(range(_TRIES)):
        try:
            return _bound(hostname, port)
        except OSError as error:
            if port or not tries_left or error.errno != errno.EADDRINUSE:
                raise
    raise AssertionError("the last try raises")


def _bound(hostname: str | None, port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as opened:
        sockets: list[socket.socket] = []
        for family, address in _addresses(hostname):
            taken = port or (sockets[0].getsockname()[1] if sockets else 0)
            try:
                sock = opened.enter_context(open_socket(family, (address[0], taken, *address[2:])))
            except OSError as error:
                if hostname is None and sockets and error.errno in _NO_IPV6:
                    continue
                raise
            sockets.append(sock)
        opened.pop_all()
        return sockets


def _addresses(hostname: str | None) -> Iterator[tuple[int, Any]]:
    """Each family with its address. A name may stand for several."""
    if hostname is None:
        yield socket.AF_INET, ("0.0.0.0", 0)
        yield socket.AF_INET6, ("::", 0, 0, 0)
        return
    found = socket.getaddrinfo(hostname, 0, type=socket.SOCK_STREAM)
    yield from dict.fromkeys((int(family), address) for family, _, _, _, address in found)


def open_socket(family: int, address: Any) -> socket.socket:
    """A socket bound to an address of one family. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock
