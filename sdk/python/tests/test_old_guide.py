"""The examples of the guide of the in-process monitoring, as they stand there, with telemetry off, on, and on with a listener."""

import asyncio
import subprocess
import sys
import textwrap

import pytest

import nexent_observer
from nexent_observer import MonitoringConfig

GUIDE = '''
from utils.monitoring import monitoring_manager

# API endpoint monitoring
@monitoring_manager.monitor_endpoint("my_service.my_function")
async def my_api_function():
    return {"status": "ok"}

# LLM call monitoring
@monitoring_manager.monitor_llm_call("gpt-4", "chat_completion")
def call_llm(messages):
    # Automatically get token-level monitoring
    return llm_response

# Manual monitoring events
monitoring_manager.add_span_event("custom_event", {"key": "value"})
monitoring_manager.set_span_attributes(user_id="123", action="process")

from nexent.monitor import get_monitoring_manager

# Get global monitoring manager - already configured in backend
monitor = get_monitoring_manager()

# Use decorators
@monitor.monitor_llm_call("claude-3", "completion")
def my_llm_function():
    return "response"

# Or use directly in business logic
def logic():
    with monitor.trace_llm_request("custom_operation", "my_model") as span:
        # Execute business logic
        result = process_data()
        monitor.add_span_event("processing_completed")
        return result

# Direct usage without checking if enabled
@monitoring_manager.monitor_endpoint("my_function")
def my_function():
    pass

# FastAPI application initialization
monitoring_manager.setup_fastapi_app(app)
'''


class App:
    """What `setup_fastapi_app` is given."""

    def __init__(self):
        self.middleware = []

    def add_middleware(self, middleware, **options):
        """As Starlette has it."""
        self.middleware.append((middleware, options))


def run_guide():
    app = App()
    scope = {"llm_response": "an answer", "process_data": lambda: "a result", "app": app}
    exec(compile(GUIDE, "guide", "exec"), scope)
    assert asyncio.run(scope["my_api_function"]()) == {"status": "ok"}
    assert scope["call_llm"](["hello"]) == "an answer"
    assert scope["my_llm_function"]() == "response"
    assert scope["logic"]() == "a result"
    assert scope["my_function"]() is None
    return app


def test_every_example_runs_with_telemetry_off():
    nexent_observer.monitoring_manager.configure(MonitoringConfig(enable_telemetry=False))
    assert not run_guide().middleware


def test_every_example_runs_with_telemetry_on_and_no_observer(manager):
    assert len(run_guide().middleware) == 1


def test_every_example_is_heard_by_an_observer(heard):
    run_guide()
    begun = [(message["o"], message["n"], message.get("m")) for message in heard.of("begin")]
    assert begun == [
        ("endpoint", "my_service.my_function", None),
        ("llm", "chat_completion", "gpt-4"),
        ("llm", "completion", "claude-3"),
        ("llm", "custom_operation", "my_model"),
        ("endpoint", "my_function", None),
    ]
    assert [message["n"] for message in heard.of("event")] == ["processing_completed"]
    assert len(heard.of("end")) == len(begun)
    assert not any("e" in message for message in heard.of("end"))


@pytest.mark.parametrize("telemetry", ["true", "false", ""])
def test_the_check_of_the_guide_works_in_a_new_interpreter(telemetry):
    command = "from backend.utils.monitoring import MONITORING_AVAILABLE; print(f'Monitoring Available: {MONITORING_AVAILABLE}')"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, env={"ENABLE_TELEMETRY": telemetry}
    )
    assert done.stdout == f"Monitoring Available: {nexent_observer.MONITORING_AVAILABLE}\n"


@pytest.mark.parametrize("telemetry", ["true", "false", None])
def test_every_example_runs_in_a_new_interpreter(telemetry, tmp_path):
    """As a service has it: nothing but the environment says whether telemetry is on. Without a word it is off."""
    script = tmp_path / "service.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio
            class App:
                added = 0
                def add_middleware(self, *_, **__): self.added += 1
            app, llm_response, process_data = App(), "an answer", lambda: "a result"
            """
        )
        + GUIDE
        + textwrap.dedent(
            """
            assert asyncio.run(my_api_function()) == {"status": "ok"}
            assert (call_llm([]), my_llm_function(), logic(), my_function()) == ("an answer", "response", "a result", None)
            print(monitoring_manager.is_enabled, app.added)
            """
        )
    )
    environment = {} if telemetry is None else {"ENABLE_TELEMETRY": telemetry}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    assert (done.stdout, done.stderr) == ("True 1\n" if telemetry == "true" else "False 0\n", "")


@pytest.mark.parametrize("rate", ["1.0", "1.0 # Development environment, production recommended 0.1"])
def test_the_environment_of_the_guide_is_taken(rate, monkeypatch):
    """A comment in a .env file is part of the value for some programs that read such files."""
    environment = {
        "ENABLE_TELEMETRY": "true",
        "SERVICE_NAME": "nexent-backend",
        "JAEGER_ENDPOINT": "http://localhost:14268/api/traces",
        "LLM_SLOW_REQUEST_THRESHOLD_SECONDS": "5.0",
        "LLM_SLOW_TOKEN_RATE_THRESHOLD": "10.0",
        "TELEMETRY_SAMPLE_RATE": rate,
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    config = MonitoringConfig.from_environment()
    assert (config.enable_telemetry, config.service_name, config.telemetry_sample_rate) == (True, "nexent-backend", 1.0)
    assert config.jaeger_endpoint == environment["JAEGER_ENDPOINT"]
    assert (config.llm_slow_request_threshold_seconds, config.llm_slow_token_rate_threshold) == (5.0, 10.0)


def test_names_that_somebody_has_are_left_to_him(tmp_path):
    package = tmp_path / "utils"
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    (package / "monitoring.py").write_text("monitoring_manager = 'his'\n")
    code = textwrap.dedent(
        """
        from utils.monitoring import monitoring_manager
        import utils
        assert utils.mine and monitoring_manager == "his"
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})


def test_a_package_of_his_gets_the_module_that_it_lacks(tmp_path):
    package = tmp_path / "utils"
    package.mkdir()
    (package / "__init__.py").write_text("mine = True\n")
    code = "import utils; assert utils.mine; from utils.monitoring import monitoring_manager; monitoring_manager.is_enabled"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)})


def test_no_package_appears_that_nobody_asked_for():
    code = textwrap.dedent(
        """
        for name in ("utils", "nexent", "backend"):
            try:
                __import__(name)
            except ImportError:
                continue
            raise SystemExit(name)
        """
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={})


def test_the_other_names_can_be_switched_off():
    code = "import utils.monitoring"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env={"NEXENT_OBSERVER_ALIASES": "off"}
    )
    assert b"ModuleNotFoundError" in done.stderr
