"""Decorated functions behave as they did, and their spans last as long as they do."""

import asyncio
import functools
import inspect

import pytest

import nexent_observer
from nexent_observer import MonitoringConfig, _channel, monitoring_manager
from nexent_observer._asgi import TraceMiddleware
from nexent_observer._spans import current


def name():
    """Name of the current span."""
    span = current.get()
    return span and span.name


def test_a_generator_lasts_until_it_is_exhausted(heard):
    @monitoring_manager.monitor_endpoint("numbers")
    def numbers():
        got = yield name()
        assert got == "sent"
        try:
            yield 2
        except KeyError:
            yield name()
        return "value"

    def outer():
        return (yield from numbers())

    generator = outer()
    assert not heard
    assert next(generator) == "numbers"
    assert name() is None, "the consumer is not in the span"
    assert generator.send("sent") == 2
    assert generator.throw(KeyError()) == "numbers"
    assert not heard.of("end")
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "value"
    assert [message.get("e") for message in heard.of("end")] == [None]


def test_a_generator_that_is_closed_early_ends_its_span(heard):
    closed = []

    @monitoring_manager.monitor_endpoint("endless")
    def endless():
        try:
            while True:
                yield name()
        finally:
            closed.append(name())

    generator = endless()
    next(generator)
    generator.close()
    assert closed == ["endless"]
    assert [message.get("e") for message in heard.of("end")] == [None]


def test_what_a_generator_raises_passes_unchanged(heard):
    error = LookupError("secret text")

    @monitoring_manager.monitor_endpoint("bad")
    def bad():
        yield 1
        raise error

    generator = bad()
    next(generator)
    with pytest.raises(LookupError) as raised:
        next(generator)
    assert raised.value is error
    assert [message["e"] for message in heard.of("end")] == ["LookupError"]
    assert "secret" not in str(heard)


def test_an_asynchronous_generator_lasts_until_it_is_exhausted(heard):
    @monitoring_manager.monitor_endpoint("stream")
    async def stream(count):
        for number in range(count):
            await asyncio.sleep(0)
            got = yield (number, name())
            if got:
                yield got

    async def main():
        seen = []
        async for number, inside in stream(3):
            assert name() is None
            seen.append((number, inside))
        assert not any(message for message in heard.of("end") if "e" in message)
        generator = stream(2)
        await generator.__anext__()
        assert await generator.asend("sent") == "sent"
        await generator.aclose()
        return seen

    assert asyncio.run(main()) == [(0, "stream"), (1, "stream"), (2, "stream")]
    assert len(heard.of("begin")) == len(heard.of("end")) == 2
    assert inspect.isasyncgenfunction(stream)


def test_what_an_asynchronous_generator_raises_passes_unchanged(heard):
    @monitoring_manager.monitor_endpoint("bad")
    async def bad():
        try:
            yield 1
        except KeyError as error:
            raise ValueError("x") from error

    async def main():
        generator = bad()
        await generator.__anext__()
        with pytest.raises(ValueError):
            await generator.athrow(KeyError())

    asyncio.run(main())
    assert [message["e"] for message in heard.of("end")] == ["ValueError"]


def test_concurrent_tasks_keep_their_spans_apart(heard):
    @monitoring_manager.monitor_endpoint("outer")
    async def work(number):
        with monitoring_manager.trace_llm_request(f"call-{number}", "m") as span:
            for _ in range(5):
                await asyncio.sleep(0)
                assert current.get() is span
        return name()

    async def main():
        return await asyncio.gather(*(work(number) for number in range(20)))

    assert asyncio.run(main()) == ["outer"] * 20
    begun = {message["s"]: message for message in heard.of("begin")}
    calls = [message for message in begun.values() if message["o"] == "llm"]
    assert len(calls) == 20
    assert all(begun[call["p"]]["t"] == call["t"] for call in calls)
    assert len({call["t"] for call in calls}) == 20


@pytest.mark.parametrize("enabled", [True, False])
def test_the_tracker_goes_only_to_who_takes_it(heard, enabled):
    monitoring_manager.configure(MonitoringConfig(enable_telemetry=enabled))

    @monitoring_manager.monitor_llm_call("m")
    def without(messages):
        return messages

    @monitoring_manager.monitor_llm_call("m")
    def forwards(**kwargs):
        return kwargs

    @monitoring_manager.monitor_llm_call("m")
    def takes(messages, _token_tracker=None):
        return _token_tracker

    assert without("hello") == "hello"
    assert forwards(a=1) == {"a": 1}
    assert takes("hello", _token_tracker="mine") == "mine"
    tracker = takes("hello")
    assert (tracker is not None) == enabled
    if tracker:
        tracker.record_first_token()
        tracker.record_token("text of an answer")
        tracker.record_completion(3, 4)
        assert (tracker.token_count, tracker.input_tokens, tracker.output_tokens) == (1, 3, 4)
        assert "text of an answer" not in str(heard)


def test_methods_and_partials_can_be_decorated(heard):
    class Service:
        """A class with every kind of method."""

        @monitoring_manager.monitor_endpoint("method")
        def method(self):
            return name()

        @monitoring_manager.monitor_endpoint("static")
        @staticmethod
        def static():
            return name()

        @classmethod
        @monitoring_manager.monitor_endpoint("class")
        def klass(cls):
            return name()

    assert (Service().method(), Service.static(), Service.klass()) == ("method", "static", "class")
    partial = monitoring_manager.monitor_endpoint("partial")(functools.partial(lambda a: (a, name()), 1))
    assert partial() == (1, "partial")


def test_an_exception_passes_unchanged_and_is_told_by_its_type(heard):
    error = RuntimeError("what the user wrote")

    @monitoring_manager.monitor_endpoint()
    def bad():
        raise error

    with pytest.raises(RuntimeError) as raised:
        bad()
    assert raised.value is error
    assert [message["e"] for message in heard.of("end")] == ["RuntimeError"]
    assert heard.of("begin")[0]["n"].endswith(".bad")
    assert "what the user wrote" not in str(heard)


def test_texts_among_the_parameters_stay_in_the_process(heard, monkeypatch):
    @monitoring_manager.monitor_endpoint("e", exclude_params=["token"])
    def endpoint(**_kwargs):
        return None

    endpoint(query="what the user wrote", agent_id=7, debug=False, token=1)
    assert heard.of("begin")[0]["a"] == {"param.agent_id": 7, "param.debug": False}
    monkeypatch.setenv("NEXENT_OBSERVER_CAPTURE_PARAMS", "true")
    endpoint(query="asked for", token="no")
    assert heard.of("begin")[1]["a"] == {"param.query": "asked for"}


def test_an_announcement_never_grows_over_its_limit(heard):
    with monitoring_manager.trace_llm_request("x" * 5000, "m" * 200) as span:
        span.set_attributes({f"key-{number}": "é" * 500 for number in range(50)})
        span.add_event("event", {"nested": {"a": [1]}, "none": None})
    assert heard.of("set")[0]["cut"] is True
    assert heard.of("event")[0]["a"] == {"nested": "<dict>"}


def test_off_it_does_nothing(monkeypatch):
    monitoring_manager.configure(MonitoringConfig(enable_telemetry=False))
    said = []
    monkeypatch.setattr(_channel, "is_listening", lambda: True)
    monkeypatch.setattr(_channel, "announce", said.append)

    @monitoring_manager.monitor_endpoint("e")
    def endpoint():
        monitoring_manager.add_span_event("x")
        monitoring_manager.set_span_attributes(a=1)
        monitoring_manager.record_llm_metrics("ttft", 0.1)
        with monitoring_manager.trace_llm_request("o", "m") as span:
            return span, monitoring_manager.get_current_span()

    assert endpoint() == (None, None)
    assert not said
    assert nexent_observer.create_token_tracker("m").record_token("x") is None


def test_the_manager_is_one():
    assert nexent_observer.MonitoringManager() is monitoring_manager
    assert nexent_observer.get_monitoring_manager() is monitoring_manager


def test_odd_settings_in_the_environment_do_no_harm(monkeypatch):
    monkeypatch.setenv("PROMETHEUS_PORT", "x")
    monkeypatch.setenv("ENABLE_TELEMETRY", " TRUE ")
    config = MonitoringConfig.from_environment()
    assert (config.enable_telemetry, config.prometheus_port) == (True, 8000)


def test_each_request_of_a_connection_is_a_trace_of_its_own_and_has_one_span(heard):
    async def app(_scope, _receive, _send):
        assert current.get() is not None

    served = TraceMiddleware(TraceMiddleware(app))

    async def connection():
        await served({"type": "http", "method": "GET", "client": ("10.0.0.7", 41234)}, None, None)
        # The next one begins inside of the task that answers this one.
        with nexent_observer._spans.Span("GET request", "server"):
            await served({"type": "http", "method": "GET", "client": ("10.0.0.7", 41234)}, None, None)

    asyncio.run(connection())
    begun = [message for message in heard if message["k"] == "begin"]
    assert len(begun) == 3
    assert len({message["t"] for message in begun}) == 3
    assert not any("p" in message for message in begun)
    assert begun[0]["peer"] == "10.0.0.7:41234"
