"""Right before a write the span of its task is announced, once per change on a connection."""

import concurrent.futures
import socket
import threading

import pytest

from nexent_observer import _channel, monitoring_manager
from nexent_observer._spans import current

pytestmark = pytest.mark.skipif(not _channel.NATIVE, reason="without the native module writes are not announced")


@pytest.fixture
def pair():
    """Two ends of a connection."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def test_a_change_of_the_span_is_announced_before_the_write(heard, pair):
    left, _ = pair
    left.sendall(b"nobody's")
    with monitoring_manager.trace_llm_request("a", "m") as first:
        left.sendall(b"1")
        left.send(b"2")
    with monitoring_manager.trace_llm_request("b", "m") as second:
        left.sendmsg([b"3"])
    left.sendall(b"nobody's again")
    left.sendall(b"and again")
    assert [message.get("s") for message in heard.of("write")] == [first.span_id, second.span_id, None]


def test_a_new_connection_on_a_descriptor_that_was_used_is_announced_anew(heard):
    descriptors = []
    with monitoring_manager.trace_llm_request("a", "m") as span:
        for _ in range(2):
            left, right = socket.socketpair()
            descriptors.append(left.fileno())
            left.sendall(b"x")
            left.close()
            right.close()
    assert descriptors[0] == descriptors[1]
    assert [message["s"] for message in heard.of("write")] == [span.span_id] * 2


def test_an_odd_socket_can_be_written_to_all_the_same(heard):
    class Unhashable(socket.socket):
        """No key of any dictionary."""

        __hash__ = None

    left, right = socket.socketpair()
    with Unhashable(fileno=left.detach()) as odd, monitoring_manager.trace_llm_request("a", "m"):
        odd.sendall(b"x")
    assert right.recv(1) == b"x"
    right.close()


def test_the_endpoint_goes_with_the_write(heard, pair):
    left, _ = pair

    @monitoring_manager.monitor_endpoint("service.run")
    def endpoint():
        with monitoring_manager.trace_llm_request("call", "m"):
            left.sendall(b"x")

    endpoint()
    assert [message["n"] for message in heard.of("write")] == ["service.run"]


def test_a_thread_works_in_the_span_in_which_it_was_started(heard):
    seen = {}

    def work():
        seen["thread"] = current.get()

    with monitoring_manager.trace_llm_request("a", "m") as span:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            assert pool.submit(current.get).result() is span
    assert seen["thread"] is span
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        assert pool.submit(current.get).result() is None


def test_a_thread_of_a_subclass_runs_its_own_run(heard):
    class Worker(threading.Thread):
        """Overrides `run`, as much code does."""

        def run(self):
            self.span = current.get()

    with monitoring_manager.trace_llm_request("a", "m") as span:
        worker = Worker()
        worker.start()
        worker.join()
    assert worker.span is span
