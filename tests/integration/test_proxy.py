"""The proxy of `emo chaos`: what it does to a connection, over real sockets."""

import contextlib
import socket
import threading
import time

import pytest

from testbed.chaos.proxy import CLEAR, LinkState, Proxy


@pytest.fixture
def echo():
    """Where everything comes back."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    def answer(connection):
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data)

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.fixture
def link(echo):
    with Proxy() as proxy:
        yield proxy.link("there", echo)


def connect(link):
    return socket.create_connection(("127.0.0.1", link.port), timeout=10)


def asked(connection, data=b"hello"):
    connection.sendall(data)
    return whole(connection, len(data))


def whole(connection, size):
    found = b""
    while len(found) < size and (data := connection.recv(65536)):
        found += data
    return found


def ended(connection):
    with contextlib.suppress(ConnectionError):
        return connection.recv(1) == b""
    return True


def test_it_carries_bytes_both_ways_and_counts_them(link):
    data = bytes(range(256)) * 4096
    with connect(link) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        assert whole(connection, len(data)) == data
        sender.join()
    assert link.passed == 2 * len(data)


def test_a_cut_ends_what_is_open_and_new_ones_work(link):
    with connect(link) as connection:
        assert asked(connection) == b"hello"
        link.cut()
        assert ended(connection)
    with connect(link) as connection:
        assert asked(connection) == b"hello"


def test_refused_until_it_clears_up(link):
    link.set(LinkState(refuse=True))
    with connect(link) as connection:
        assert ended(connection)
    link.set(CLEAR)
    with connect(link) as connection:
        assert asked(connection) == b"hello"


def test_silence_loses_nothing(link):
    with connect(link) as connection:
        assert asked(connection) == b"hello"
        link.set(LinkState(silent=True))
        connection.sendall(b"later")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.set(CLEAR)
        connection.settimeout(10)
        assert whole(connection, 5) == b"later"


def test_in_silence_nobody_learns_that_the_other_has_gone(link):
    link.set(LinkState(silent=True))
    with connect(link) as connection:  # a new one is silent as well
        connection.sendall(b"x")
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        link.cut()


def test_delay_and_throttle_take_their_time(link):
    with connect(link) as connection:
        link.set(LinkState(delay_s=0.15))
        began = time.monotonic()
        assert asked(connection) == b"hello"
        assert time.monotonic() - began >= 0.3  # there and back
        link.set(LinkState(rate=100_000.0))
        began = time.monotonic()
        assert asked(connection, bytes(30_000)) == bytes(30_000)
        assert asked(connection, b"end") == b"end"
        assert time.monotonic() - began >= 0.3


def test_it_leaves_no_thread_and_no_socket(echo):
    with Proxy() as proxy:
        link = proxy.link("there", echo)
        with connect(link) as connection:
            assert asked(connection) == b"hello"
            threads = [thread for thread in threading.enumerate() if thread.name == "proxy"]
            assert len(threads) == 1
    assert not threads[0].is_alive()
    with pytest.raises(OSError):
        connect(link)


def test_where_nobody_listens_it_hangs_up(link):
    link.target = 1
    with connect(link) as connection:
        assert ended(connection)
