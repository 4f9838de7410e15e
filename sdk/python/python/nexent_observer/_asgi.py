"""A span for each request of an ASGI application. It carries the peer's address, by which the observer finds the request."""

from __future__ import annotations

from typing import Any, Callable

from nexent_observer import _channel
from nexent_observer._spans import Span

_TRACED = "nexent_observer.traced"
"""In the scope of a request that has its span: an application inside of another may have the middleware, too."""


class TraceMiddleware:
    """ASGI middleware (asgi.readthedocs.io, HTTP connection scope)."""

    def __init__(self, app: Callable[..., Any], manager: Any = None) -> None:
        self.app = app
        self.manager = manager

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Runs one request."""
        if scope.get("type") != "http" or _TRACED in scope or not _channel.is_listening():
            await self.app(scope, receive, send)
            return
        scope[_TRACED] = True
        client = scope.get("client")
        peer = f"{client[0]}:{client[1]}" if client else None
        with Span(f"{scope.get('method', '')} request", "server", peer=peer) as span:
            try:
                await self.app(scope, receive, send)
            finally:
                # The router has put the route into the scope: its template is a name, the path with its ids is none.
                template = getattr(scope.get("route"), "path", None)
                if template:
                    prefix = scope.get("root_path", "")
                    span.update_name(f"{scope.get('method', '')} {prefix}{template}")
