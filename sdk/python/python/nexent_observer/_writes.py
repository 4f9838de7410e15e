"""Says in which span a connection is about to be written to, so that the calls of tasks that share a thread are told apart.

Right before a write of TLS or of a plain socket the span of the calling task is announced, if it is another than the last one
announced on this connection. The observer gives every request that begins on the connection from then on to that span.
"""

from __future__ import annotations

import concurrent.futures
import functools
import socket
import ssl
import threading
import weakref
from typing import Any, Callable, Optional

from nexent_observer import _channel
from nexent_observer._spans import Span, current

_NO_SPAN = _channel.encode("write", {})

_installed = False
# By the socket itself, not by its descriptor: a new connection may have that of one that was closed. Plain sockets have no room for an attribute.
_by_socket: weakref.WeakKeyDictionary[socket.socket, str] = weakref.WeakKeyDictionary()


def _note(last: Optional[str], span: Optional[Span]) -> None:
    if span is None:
        if last is not None:
            _channel.announce(_NO_SPAN)
    elif span.span_id != last:
        _channel.announce(span.note)


def _tls(connection: Any) -> None:
    span = current.get()
    last = getattr(connection, "_nexent_observer_span", None)
    if span is not None or last is not None:
        _note(last, span)
        connection._nexent_observer_span = span.span_id if span is not None else None


def _plain(connection: Any) -> None:
    span = current.get()
    last = _by_socket.get(connection)
    if span is not None or last is not None:
        _note(last, span)
        if span is None:
            _by_socket.pop(connection, None)
        else:
            _by_socket[connection] = span.span_id


def _announcing(original: Callable[..., Any], about: Callable[[Any], None]) -> Callable[..., Any]:
    """`original`, a method that writes, with its span announced before."""

    @functools.wraps(original)
    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _channel.is_listening():
            try:
                about(self)
            except Exception:  # pylint: disable=broad-exception-caught
                pass  # an odd subclass (without a hash, without room for an attribute) must be able to write all the same
        return original(self, *args, **kwargs)

    return write


def _thread_start(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def start(self: Any, *args: Any, **kwargs: Any) -> Any:
        span = current.get()
        if span is not None and not hasattr(self, "_nexent_observer_run"):
            self._nexent_observer_run = run = self.run

            def inside() -> Any:
                token = current.set(span)
                try:
                    return run()
                finally:
                    current.reset(token)
                    # As threading.Thread.run does: no cycle may keep the thread alive.
                    self.__dict__.pop("run", None)
                    self.__dict__.pop("_nexent_observer_run", None)

            self.run = inside
        return original(self, *args, **kwargs)

    return start


def _submit(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def submit(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        span = current.get()
        if span is None:
            return original(self, fn, *args, **kwargs)

        def inside(*args: Any, **kwargs: Any) -> Any:
            token = current.set(span)
            try:
                return fn(*args, **kwargs)
            finally:
                current.reset(token)

        return original(self, inside, *args, **kwargs)

    return submit


def install() -> None:
    """Begins to announce writes, and gives threads the span in which they were started. Once per process; cannot be undone."""
    global _installed
    if _installed or not _channel.NATIVE:
        return
    _installed = True
    # SSLSocket.sendall calls send.
    ssl.SSLObject.write = _announcing(ssl.SSLObject.write, _tls)  # type: ignore[method-assign]
    ssl.SSLSocket.write = _announcing(ssl.SSLSocket.write, _tls)  # type: ignore[method-assign]
    ssl.SSLSocket.send = _announcing(ssl.SSLSocket.send, _tls)  # type: ignore[method-assign]
    for name in ("send", "sendall", "sendmsg"):
        if hasattr(socket.socket, name):
            setattr(socket.socket, name, _announcing(getattr(socket.socket, name), _plain))
    threading.Thread.start = _thread_start(threading.Thread.start)  # type: ignore[method-assign]
    pool = concurrent.futures.ThreadPoolExecutor
    pool.submit = _submit(pool.submit)  # type: ignore[method-assign]
