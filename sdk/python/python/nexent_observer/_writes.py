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
from typing import Any, Callable, Optional

from nexent_observer import _channel
from nexent_observer._spans import Span, current

_NO_SPAN = _channel.encode("write", {})

_installed = False
_by_descriptor: dict[int, Optional[str]] = {}


def _note(last: Optional[str], span: Optional[Span]) -> None:
    if span is None:
        if last is not None:
            _channel.announce(_NO_SPAN)
    elif span.span_id != last:
        _channel.announce(span.note)


def _tls(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _channel.is_listening():
            span = current.get()
            last = getattr(self, "_nexent_observer_span", None)
            if span is not None or last is not None:
                _note(last, span)
                self._nexent_observer_span = span.span_id if span is not None else None
        return original(self, *args, **kwargs)

    return write


def _plain(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _channel.is_listening():
            span = current.get()
            if span is not None or _by_descriptor:
                descriptor = self.fileno()
                last = _by_descriptor.get(descriptor)
                if span is not None or last is not None:
                    _note(last, span)
                    if span is None:
                        _by_descriptor.pop(descriptor, None)
                    else:
                        _by_descriptor[descriptor] = span.span_id
        return original(self, *args, **kwargs)

    return send


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
    ssl.SSLObject.write = _tls(ssl.SSLObject.write)  # type: ignore[method-assign]
    ssl.SSLSocket.write = _tls(ssl.SSLSocket.write)  # type: ignore[method-assign]
    ssl.SSLSocket.send = _tls(ssl.SSLSocket.send)  # type: ignore[method-assign]
    for name in ("send", "sendall", "sendmsg"):
        if hasattr(socket.socket, name):
            setattr(socket.socket, name, _plain(getattr(socket.socket, name)))
    threading.Thread.start = _thread_start(threading.Thread.start)  # type: ignore[method-assign]
    pool = concurrent.futures.ThreadPoolExecutor
    pool.submit = _submit(pool.submit)  # type: ignore[method-assign]
