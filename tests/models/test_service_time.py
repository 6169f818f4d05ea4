"""Every request to a server ends, and what may have arrived is told from what has not."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from refusal_nn.backends import Limits, Service
from refusal_nn.backends.ndif._service import UnansweredError
from refusal_nn.errors import BackendError, RequestError, UnavailableError
from tests.patience import limit

Talk = Callable[[socket.socket], None]


@pytest.fixture
def speaking() -> Iterator[Callable[[Talk], str]]:
    """Starts a server that takes connections and does one thing with each."""
    listeners: list[socket.socket] = []
    over = threading.Event()

    def start(talk: Talk) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def one(connection: socket.socket) -> None:
            with connection:
                connection.recv(65536)
                talk(connection)
                over.wait()

        def serve() -> None:
            while not over.is_set():
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    over.set()
    for listener in listeners:
        listener.close()


def silent(connection: socket.socket) -> None:
    pass


def dripping(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    for _ in range(20 * round(limit(4))):  # longer than anyone here waits
        time.sleep(0.1)
        try:
            connection.sendall(b" ")
        except OSError:
            return


def saying(head: str, body: bytes = b"<html>log in</html>") -> Talk:
    def talk(connection: socket.socket) -> None:
        text = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connection.sendall(text + body)

    return talk


@pytest.mark.parametrize("talk", [silent, dripping])
def test_a_server_that_does_not_finish_is_waited_for_until_the_deadline(talk, speaking) -> None:
    service = Service(speaking(talk), deadline=1.5)
    for ask in (service.status, lambda: service.ask("a"), lambda: service.download(service.host)):
        began = time.monotonic()
        with pytest.raises(UnavailableError):
            ask()
        assert 1.0 < time.monotonic() - began < limit(4)


def test_the_time_left_to_a_wait_bounds_its_requests(speaking) -> None:
    service = Service(speaking(dripping))
    began = time.monotonic()
    service.until = began + 1.5
    with pytest.raises(UnavailableError):
        service.ask("a")
    assert time.monotonic() - began < limit(4)


def test_a_job_that_got_no_answer_may_have_arrived(speaking) -> None:
    for talk in (silent, lambda connection: connection.close(), saying("200 OK")):
        with pytest.raises(UnansweredError):
            Service(speaking(talk), deadline=1.2).submit(b"job", "model", {}, True)
    with pytest.raises(UnansweredError, match="HTTP 504"):
        Service(speaking(saying("504 Gateway Timeout"))).submit(b"job", "model", {}, True)


@pytest.mark.parametrize("head", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_job_that_was_refused_has_not_arrived(head, speaking) -> None:
    for host in (speaking(saying(head)), "http://127.0.0.1:9"):
        with pytest.raises(UnavailableError) as caught:
            Service(host).submit(b"job", "model", {}, True)
        assert not isinstance(caught.value, UnansweredError)


@pytest.mark.parametrize("head", ["200 OK", "302 Found\r\nLocation: /login"])
def test_a_question_about_a_job_answered_by_something_else_may_be_asked_again(
    head, speaking
) -> None:
    with pytest.raises(UnavailableError, match="is not an NDIF server"):
        Service(speaking(saying(head))).ask("a")


@pytest.mark.parametrize("head", ["302 Found\r\nLocation: /login", "408 Slow", "503 Away"])
def test_a_result_that_is_not_there_for_now_is_not_gone(head, speaking) -> None:
    with pytest.raises(UnavailableError, match="object store"):
        Service(speaking(saying(head))).download(speaking(saying(head)))
    with pytest.raises(BackendError) as caught:
        Service("http://h").download(speaking(saying("404 Not Found")))
    assert not isinstance(caught.value, UnavailableError)


@pytest.mark.parametrize(
    "wrong",
    [{"deadline": float("nan")}, {"deadline": float("inf")}, {"poll": 0}, {"backoff": -1.0}],
)
def test_a_wait_has_an_end(wrong) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        Limits(**wrong)
