"""The API of `nexent.monitor`: decorators and context managers that give names to what the observer sees.

Everything works the same with telemetry off, without the native module and without an observer: functions run as they are,
exceptions pass unchanged, and nothing here raises.
"""

from __future__ import annotations

import functools
import inspect
import os
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar, Union, cast

from nexent_observer import _channel, _writes
from nexent_observer._asgi import TraceMiddleware
from nexent_observer._drive import drive, drive_async
from nexent_observer._spans import Span, current

F = TypeVar("F", bound=Callable[..., Any])


def _flag(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() == "true"


def _number(name: str, default: float) -> float:
    try:
        return float(os.environ[name])
    except (KeyError, ValueError):
        return default


@dataclass
class MonitoringConfig:
    """Settings, with the names of `nexent.monitor`. The hooks use `enable_telemetry` only: thresholds, sampling and endpoints are
    the observer's own settings and are read from its environment."""

    enable_telemetry: bool = False
    service_name: str = "nexent-sdk"
    jaeger_endpoint: str = "http://localhost:14268/api/traces"
    prometheus_port: int = 8000
    telemetry_sample_rate: float = 1.0
    llm_slow_request_threshold_seconds: float = 5.0
    llm_slow_token_rate_threshold: float = 10.0

    @classmethod
    def from_environment(cls) -> MonitoringConfig:
        """The settings that the environment gives."""
        return cls(
            enable_telemetry=_flag("ENABLE_TELEMETRY"),
            service_name=os.environ.get("SERVICE_NAME") or os.environ.get("OTEL_SERVICE_NAME") or "nexent-backend",
            jaeger_endpoint=os.environ.get("JAEGER_ENDPOINT", "http://localhost:14268/api/traces"),
            prometheus_port=int(_number("PROMETHEUS_PORT", 8000)),
            telemetry_sample_rate=_number("TELEMETRY_SAMPLE_RATE", 1.0),
            llm_slow_request_threshold_seconds=_number("LLM_SLOW_REQUEST_THRESHOLD_SECONDS", 5.0),
            llm_slow_token_rate_threshold=_number("LLM_SLOW_TOKEN_RATE_THRESHOLD", 10.0),
        )


class LLMTokenTracker:
    """Counts the tokens that a caller reports. The observer counts and times by itself; what is reported here becomes attributes of
    the span, beside its numbers."""

    def __init__(self, model_name: str, span: Optional[Span] = None) -> None:
        self.model_name = model_name
        self.span = span
        self.start_time = time.time()
        self.first_token_time: Optional[float] = None
        self.token_count = 0
        self.input_tokens = 0
        self.output_tokens = 0

    def record_first_token(self) -> None:
        """The first token is there; only the first call counts."""
        if self.first_token_time is None:
            self.first_token_time = time.time()

    def record_token(self, token: str) -> None:
        """One piece of output. Its text is not kept."""
        self.record_first_token()
        self.token_count += 1

    def record_completion(self, input_tokens: int = 0, output_tokens: int = 0) -> None:
        """The answer is complete."""
        self.input_tokens, self.output_tokens = input_tokens, output_tokens
        if self.span is not None:
            self.span.set_attributes(
                {"llm.input_tokens": input_tokens, "llm.output_tokens": output_tokens, "llm.pieces": self.token_count}
            )


class MonitoringManager:
    """One per process: `MonitoringManager()` gives always the same."""

    _instance: Optional[MonitoringManager] = None
    _lock = threading.Lock()
    _config: MonitoringConfig
    _enabled: bool

    def __new__(cls) -> MonitoringManager:
        with cls._lock:
            if cls._instance is None:
                instance = super().__new__(cls)
                instance._config = MonitoringConfig()
                instance._enabled = False
                cls._instance = instance
            return cls._instance

    def configure(self, config: MonitoringConfig) -> None:
        """Takes settings over; `enable_telemetry` switches the hooks on and off."""
        self._config = config
        self._enabled = bool(config.enable_telemetry)
        if self._enabled:
            _writes.install()

    @property
    def config(self) -> MonitoringConfig:
        """The settings."""
        return self._config

    @property
    def is_enabled(self) -> bool:
        """Whether telemetry is on. With no observer listening, that still costs next to nothing."""
        return self._enabled

    @property
    def tracer(self) -> None:
        """There is no OpenTelemetry tracer in this process: the observer makes the spans."""
        return None

    def _active(self) -> bool:
        return self._enabled and _channel.is_listening()

    def setup_fastapi_app(self, app: Any) -> bool:
        """Gives each request of a FastAPI or Starlette application its own span, named by its route. Whether it was done."""
        if not self._enabled:
            return False
        try:
            app.add_middleware(TraceMiddleware, manager=self)
        except Exception:  # pylint: disable=broad-exception-caught
            return False
        return True

    @contextmanager
    def trace_llm_request(self, operation_name: str, model_name: str, **attributes: Any) -> Iterator[Optional[Span]]:
        """A span around an LLM call; `None` when telemetry is off. What the block raises passes unchanged."""
        if not self._active():
            yield None
            return
        with Span(operation_name, "llm", attributes, m=model_name) as span:
            yield span

    def get_current_span(self) -> Optional[Span]:
        """The span in which the caller works."""
        return current.get() if self._enabled else None

    def add_span_event(self, name: str, attributes: Optional[dict[str, Any]] = None) -> None:
        """Notes an event on the current span."""
        span = self.get_current_span()
        if span is not None:
            span.add_event(name, attributes)

    def set_span_attributes(self, **attributes: Any) -> None:
        """Sets attributes on the current span."""
        span = self.get_current_span()
        if span is not None:
            span.set_attributes(attributes)

    def create_token_tracker(self, model_name: str, span: Optional[Span] = None) -> LLMTokenTracker:
        """A tracker for a caller that counts tokens itself."""
        return LLMTokenTracker(model_name, span)

    def record_llm_metrics(self, metric_type: str, value: float, attributes: Optional[dict[str, Any]] = None) -> None:
        """Notes a number of the caller's own on the current span. It does not mix with the observer's metrics."""
        span = self.get_current_span()
        if span is not None:
            span.add_event("llm.metric", {"llm.metric.type": metric_type, "llm.metric.value": value, **(attributes or {})})

    def monitor_endpoint(
        self,
        operation_name: Optional[str] = None,
        include_params: bool = True,
        exclude_params: Optional[list[str]] = None,
    ) -> Callable[[F], F]:
        """Decorator: the function is an endpoint of this name (default `module.function`), and LLM calls made in it carry it.

        Works on functions, coroutines, generators and asynchronous generators; the span lasts as long as they do. Numbers and
        booleans among the keyword arguments become attributes; texts do only with NEXENT_OBSERVER_CAPTURE_PARAMS=true, because they
        may be what a user wrote.
        """
        excluded = frozenset(exclude_params or ())

        def attributes(kwargs: dict[str, Any]) -> dict[str, Any]:
            if not include_params:
                return {}
            kinds: tuple[type, ...] = (bool, int, float)
            if _flag("NEXENT_OBSERVER_CAPTURE_PARAMS"):
                kinds += (str,)
            return {f"param.{k}": v for k, v in kwargs.items() if k not in excluded and isinstance(v, kinds)}

        def decorate(function: F) -> F:
            name = operation_name or f"{getattr(function, '__module__', '')}.{getattr(function, '__name__', 'function')}"
            return self._wrap(function, lambda kwargs: Span(name, "endpoint", attributes(kwargs)), None)

        return decorate

    def monitor_llm_call(self, model_name: str, operation: str = "llm_completion") -> Callable[[F], F]:
        """Decorator: the function makes an LLM call. If it has a parameter `_token_tracker`, it is given a tracker (`None` when
        telemetry is off), unless the caller gives one."""

        def decorate(function: F) -> F:
            tracked = _takes_tracker(function)

            def prepare(kwargs: dict[str, Any], span: Optional[Span]) -> None:
                if "_token_tracker" not in kwargs:
                    kwargs["_token_tracker"] = LLMTokenTracker(model_name, span) if span is not None else None

            return self._wrap(function, lambda _kwargs: Span(operation, "llm", m=model_name), prepare if tracked else None)

        return decorate

    def _wrap(
        self,
        function: F,
        begin: Callable[[dict[str, Any]], Span],
        prepare: Optional[Callable[[dict[str, Any], Optional[Span]], None]],
    ) -> F:
        if isinstance(function, (staticmethod, classmethod)):
            return cast(F, type(function)(self._wrap(function.__func__, begin, prepare)))
        target = function
        while isinstance(target, functools.partial):
            target = target.func

        def ready(kwargs: dict[str, Any], span: Optional[Span]) -> dict[str, Any]:
            if prepare is not None:
                prepare(kwargs, span)
            return kwargs

        if inspect.isasyncgenfunction(target):

            def start(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Optional[Span]]:
                span = begin(kwargs) if self._active() else None
                return function(*args, **ready(kwargs, span)), span

            return cast(F, functools.wraps(function)(drive_async(start)))
        if inspect.isgeneratorfunction(target):

            def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
                if not self._active():
                    return (yield from function(*args, **ready(kwargs, None)))
                return (yield from drive(lambda span: function(*args, **ready(kwargs, span)), lambda: begin(kwargs)))

            return cast(F, functools.wraps(function)(generator))
        if inspect.iscoroutinefunction(target):

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                if not (self._enabled and _channel.is_listening()):
                    if prepare is not None:
                        prepare(kwargs, None)
                    return await function(*args, **kwargs)
                with begin(kwargs) as span:
                    return await function(*args, **ready(kwargs, span))

            return cast(F, functools.wraps(function)(coroutine))

        def plain(*args: Any, **kwargs: Any) -> Any:
            # Written out, here and above: when it is off, calls of Python's own are all that this costs.
            if not (self._enabled and _channel.is_listening()):
                if prepare is not None:
                    prepare(kwargs, None)
                return function(*args, **kwargs)
            with begin(kwargs) as span:
                return function(*args, **ready(kwargs, span))

        return cast(F, functools.wraps(function)(plain))


def _takes_tracker(function: Union[Callable[..., Any], staticmethod[..., Any], classmethod[Any, ..., Any]]) -> bool:
    if isinstance(function, (staticmethod, classmethod)):
        function = function.__func__
    try:
        return "_token_tracker" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


monitoring_manager = MonitoringManager()
monitoring_manager.configure(MonitoringConfig.from_environment())

MONITORING_AVAILABLE = _channel.NATIVE
"""Whether the native probe point is there. Without it everything works and stays silent."""


def get_monitoring_manager() -> MonitoringManager:
    """The process's manager, configured from the environment."""
    return monitoring_manager


def is_opentelemetry_available() -> bool:
    """Kept for code that asks: no OpenTelemetry package is needed, so what matters is whether the hooks can speak."""
    return MONITORING_AVAILABLE


__all__ = [
    "MONITORING_AVAILABLE",
    "LLMTokenTracker",
    "MonitoringConfig",
    "MonitoringManager",
    "get_monitoring_manager",
    "is_opentelemetry_available",
    "monitoring_manager",
]
