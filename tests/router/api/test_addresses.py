"""A server is where its name says, and without one on IPv4 and IPv6 alike."""

import errno
import socket

import pytest

from router.api import addresses
from router.api.addresses import listen_at
from tests.router.http_fakes import serving


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


async def test_by_default_both_families_are_answered_on_one_port() -> None:
    async with serving(hostname=None) as client:
        port = client.url.rpartition(":")[2]
        hosts = ["127.0.0.1", "localhost", *(["[::1]"] if has_ipv6() else [])]
        for host in hosts:
            async with client.session.get(f"http://{host}:{port}/livez") as response:
                assert response.status == 200


@pytest.mark.skipif(not has_ipv6(), reason="there is no IPv6 here")
@pytest.mark.parametrize(("hostname", "families"), [("127.0.0.1", 1), ("::1", 1), (None, 2)])
def test_a_socket_is_of_one_family(hostname: str | None, families: int) -> None:
    sockets = listen_at(hostname, 0)
    assert len({sock.family for sock in sockets}) == len(sockets) == families
    assert len({sock.getsockname()[1] for sock in sockets}) == 1
    for sock in sockets:
        sock.close()


def test_without_ipv6_there_is_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = addresses.open_socket

    def lacking(family: int, address: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no such family")
        return real(family, address)

    monkeypatch.setattr(addresses, "open_socket", lacking)
    [sock] = listen_at(None, 0)
    sock.close()
    with pytest.raises(OSError, match="no such family"):
        listen_at("::1", 0)


def test_a_taken_port_is_an_error_and_leaves_no_socket_open(recwarn: pytest.WarningsRecorder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        with pytest.raises(OSError, match="in use"):
            listen_at("127.0.0.1", other.getsockname()[1])
        with pytest.raises(OSError, match="in use"):
            listen_at(None, other.getsockname()[1])
    assert not recwarn.list


def test_a_port_that_is_taken_in_one_family_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    real, tries = addresses.open_socket, 0

    def unlucky(family: int, address: object) -> socket.socket:
        nonlocal tries
        if family == socket.AF_INET6:
            tries += 1
            if tries < 3:
                raise OSError(errno.EADDRINUSE, "taken")
            raise OSError(errno.EAFNOSUPPORT, "no such family")
        return real(family, address)

    monkeypatch.setattr(addresses, "open_socket", unlucky)
    [sock] = listen_at(None, 0)
    sock.close()
    assert tries == 3
