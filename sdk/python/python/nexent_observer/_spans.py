"""Spans of the hooks: names and attributes of what the process does. Their times are the observer's, taken in the kernel."""

from __future__ import annotations

import random
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Optional, Union

from nexent_observer import _channel

Attribute = Union[str, bool, int, float]

MAX_NAME = 200
"""Longest name of a span, an event or an attribute, in characters."""
MAX_VALUE = 256
"""Longest text of an attribute, in characters."""

_ids = random.SystemRandom()

current: ContextVar[Optional["Span"]] = ContextVar("nexent_observer_span", default=None)
"""The span in which this task or thread works."""


def clean(attributes: Optional[dict[str, Any]]) -> dict[str, Attribute]:
    """Attributes of types that a span may have; long texts are cut, everything else is told by its type only."""
    kept: dict[str, Attribute] = {}
    for key, value in (attributes or {}).items():
        if isinstance(value, (bool, int, float)):
            kept[str(key)[:MAX_NAME]] = value
        elif isinstance(value, str):
            kept[str(key)[:MAX_NAME]] = value[:MAX_VALUE]
        elif value is not None:
            kept[str(key)[:MAX_NAME]] = f"<{type(value).__name__}>"
    return kept


class Span:
    """A piece of work under a name. Has the methods of an OpenTelemetry span that code is likely to call."""

    __slots__ = ("trace_id", "span_id", "parent_id", "name", "kind", "endpoint", "note", "_ended", "_token")

    def __init__(self, name: str, kind: str, attributes: Optional[dict[str, Any]] = None, **fields: Any) -> None:
        # A request belongs to nobody. The task that serves it may all the same begin in the context of the one before it: a server that
        # paused a connection goes on reading from inside the task that answered last.
        parent = None if kind == "server" else current.get()
        self.name = name[:MAX_NAME]
        self.kind = kind
        self.trace_id = parent.trace_id if parent else f"{_ids.getrandbits(128):032x}"
        self.span_id = f"{_ids.getrandbits(64):016x}"
        self.parent_id = parent.span_id if parent else None
        # Calls are labelled with the outermost name that a person gave; a request's own name serves until there is one.
        inherited = parent.endpoint if parent and parent.kind != "server" else None
        self.endpoint = inherited or (None if kind == "llm" else self.name) or (parent.endpoint if parent else None)
        self.note = _channel.encode("write", {"s": self.span_id, "t": self.trace_id, "n": self.endpoint})
        self._ended = False
        self._token: Any = None
        _channel.tell(
            "begin",
            {"s": self.span_id, "t": self.trace_id, "p": self.parent_id, "n": self.name, "o": kind, **fields},
            clean(attributes),
        )

    def __enter__(self) -> "Span":
        self._token = current.set(self)
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        token, self._token = self._token, None
        if token is not None:
            current.reset(token)
        self.end(error)

    def end(self, error: Optional[BaseException] = None) -> None:
        """Ends the span; only the first call counts. `error` gives its type, not its text, which may hold content."""
        if self._ended:
            return
        self._ended = True
        _channel.tell("end", {"s": self.span_id, "e": type(error).__name__ if error is not None else None})

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets one attribute."""
        _channel.tell("set", {"s": self.span_id}, clean({key: value}))

    def set_attributes(self, attributes: dict[str, Any]) -> None:
        """Sets attributes."""
        _channel.tell("set", {"s": self.span_id}, clean(attributes))

    def add_event(self, name: str, attributes: Optional[dict[str, Any]] = None, timestamp: Optional[int] = None) -> None:
        """Notes an event. Its time is the observer's; `timestamp` is accepted and not used."""
        _channel.tell("event", {"s": self.span_id, "n": name[:MAX_NAME]}, clean(attributes))

    def record_exception(self, exception: BaseException, *_args: Any, **_kwargs: Any) -> None:
        """Notes an exception by its type."""
        self.add_event("exception", {"exception.type": type(exception).__name__})

    def update_name(self, name: str) -> None:
        """Gives the span another name."""
        self.name = name[:MAX_NAME]
        _channel.tell("set", {"s": self.span_id, "n": self.name})

    def set_status(self, *_args: Any, **_kwargs: Any) -> None:
        """Accepted and not used: a span fails when its function raises."""

    def is_recording(self) -> bool:
        """Whether the span has not ended."""
        return not self._ended
