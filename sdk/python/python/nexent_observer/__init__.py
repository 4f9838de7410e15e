"""Optional in-process hooks for nexent-observer, with the API of `nexent.monitor`.

    from nexent_observer import monitoring_manager

    @monitoring_manager.monitor_endpoint("my_service.my_function")
    async def my_api_function():
        return {"status": "ok"}

Off unless the environment says ENABLE_TELEMETRY=true. No dependency is needed; without an observer everything stays silent.
"""

from nexent_observer._manager import (
    MONITORING_AVAILABLE,
    LLMTokenTracker,
    MonitoringConfig,
    MonitoringManager,
    get_monitoring_manager,
    is_opentelemetry_available,
    monitoring_manager,
)

monitor_endpoint = monitoring_manager.monitor_endpoint
monitor_llm_call = monitoring_manager.monitor_llm_call
trace_llm_request = monitoring_manager.trace_llm_request
add_span_event = monitoring_manager.add_span_event
set_span_attributes = monitoring_manager.set_span_attributes
setup_fastapi_app = monitoring_manager.setup_fastapi_app
get_current_span = monitoring_manager.get_current_span
create_token_tracker = monitoring_manager.create_token_tracker
record_llm_metrics = monitoring_manager.record_llm_metrics

__all__ = [
    "MONITORING_AVAILABLE",
    "LLMTokenTracker",
    "MonitoringConfig",
    "MonitoringManager",
    "add_span_event",
    "create_token_tracker",
    "get_current_span",
    "get_monitoring_manager",
    "is_opentelemetry_available",
    "monitor_endpoint",
    "monitor_llm_call",
    "monitoring_manager",
    "record_llm_metrics",
    "set_span_attributes",
    "setup_fastapi_app",
    "trace_llm_request",
]
