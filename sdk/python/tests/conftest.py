"""An observer that is not there: announcements are collected instead of being probed."""

import json

import pytest

import nexent_observer
from nexent_observer import MonitoringConfig, _channel


class Heard(list):
    """Announcements, decoded."""

    def of(self, kind):
        """Those of one kind."""
        return [message for message in self if message["k"] == kind]


@pytest.fixture
def manager():
    """The manager, switched on; off again afterwards."""
    chosen = nexent_observer.monitoring_manager
    chosen.configure(MonitoringConfig(enable_telemetry=True))
    yield chosen
    chosen.configure(MonitoringConfig(enable_telemetry=False))


@pytest.fixture
def heard(monkeypatch, manager):
    """What an observer would hear."""
    messages = Heard()

    def announce(text):
        assert len(text) <= _channel.MAX_BYTES
        messages.append(json.loads(text))

    monkeypatch.setattr(_channel, "is_listening", lambda: True)
    monkeypatch.setattr(_channel, "announce", announce)
    return messages
