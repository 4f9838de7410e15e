"""The way to the observer: one native function, on which a probe may sit. docs/hooks.md tells what is said through it.

Without the native module, or while no probe is there, everything here is silent and next to free.
"""

from __future__ import annotations

import json
from typing import Any, Callable, Optional

MAX_BYTES = 1024
"""Longest announcement that the observer reads, in bytes."""


def _nobody() -> bool:
    return False


def _nothing(_text: bytes) -> None:
    return None


try:
    from nexent_observer._probe import announce, listening

    NATIVE = True
except ImportError:  # no wheel for this platform: the hooks stay silent
    announce = _nothing
    listening = _nobody
    NATIVE = False

is_listening: Callable[[], bool] = listening
"""Whether the observer listens to this process now."""


def encode(kind: str, fields: dict[str, Any], attributes: Optional[dict[str, Any]] = None) -> bytes:
    """One announcement. What does not fit is left out, attributes first."""
    message: dict[str, Any] = {"v": 1, "k": kind}
    message.update((key, value) for key, value in fields.items() if value is not None)
    kept = dict(attributes) if attributes else {}
    while True:
        if kept:
            message["a"] = kept
        else:
            message.pop("a", None)
        text = json.dumps(message, ensure_ascii=False, separators=(",", ":"), default=str).encode("utf-8", "replace")
        if len(text) <= MAX_BYTES or not kept:
            return text[:MAX_BYTES]
        kept.popitem()
        message["cut"] = True


def tell(kind: str, fields: dict[str, Any], attributes: Optional[dict[str, Any]] = None) -> None:
    """Announces, if somebody listens."""
    if is_listening():
        announce(encode(kind, fields, attributes))
