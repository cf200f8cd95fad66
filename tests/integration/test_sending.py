"""Sending over a real Redis: one that says nothing is noticed, and Flower hears of it when there is time."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings, load_settings, setting_names
from registry.messages import TrainingSubmission
from registry.states import Priority
from registry.store import Registry
from tasks.testing import free_port, wait_for
from workers.app import SettingsLoader, TandemCelery
from workers.context import Context, Message
from workers.errors import BrokerUnavailable
from workers.pipeline import bell
from workers.sent_events import told_at_the_end
from workers.stack.redis_server import find_redis_server, write_redis_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

BELL = bell("job-aaaaaaaa", priority=Priority.HIGH)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name in setting_names():
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TANDEM_REDIS__PORT", str(free_port()))
    found = load_settings()
    found.paths.prepare()
    return found


@pytest.fixture
def redis(settings: Settings) -> Iterator["subprocess.Popen[bytes]"]:
    command = [str(find_redis_server()), str(write_redis_config(settings))]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with Redis.from_url(settings.redis_url) as client:
                wait_for(lambda: answers(client), seconds=30, message="Redis answers")
            yield process
        finally:
            process.kill()


@pytest.fixture
def context(settings: Settings, redis: "subprocess.Popen[bytes]") -> Iterator[Context]:
    application = TandemCelery("sending", loader=SettingsLoader, set_as_current=False)
    yield Context(settings=settings, registry=Registry(settings.database_url), celery=application)
    application.close()


def answers(client: "Redis") -> bool:
    try:
        return bool(client.ping())
    except RedisError:
        return False


def test_a_redis_that_says_nothing_any_more_is_noticed_and_used_again(
    context: Context, redis: "subprocess.Popen[bytes]"
) -> None:
    context.send(BELL)
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        with pytest.raises(BrokerUnavailable, match="does not answer"):
            context.send(BELL)
    finally:
        os.kill(redis.pid, signal.SIGCONT)
    context.send(BELL)


def test_a_redis_that_is_gone_is_noticed(context: Context, redis: "subprocess.Popen[bytes]") -> None:
    context.send(BELL)
    redis.kill()
    redis.wait(timeout=10)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        context.send(BELL)
    with pytest.raises(BrokerUnavailable, match="does not answer"):
        context.send(Message("training.submit", TrainingSubmission(dataset="rows.jsonl")))  # has a result


def test_flower_hears_of_a_message_behind_the_block_that_sends_it(context: Context) -> None:
    heard: list[dict[str, Any]] = []
    application = context.celery
    with (
        application.connection_for_read() as connection,
        Redis.from_url(context.settings.redis_url) as client,
    ):

        def hear(event: dict[str, Any]) -> None:
            heard.append(event)
            receiver.should_stop = True

        receiver = application.events.Receiver(connection, handlers={"task-sent": hear})
        listens = threading.Thread(
            target=receiver.capture, kwargs={"limit": None, "timeout": 30}, daemon=True
        )
        listens.start()
        wait_for(
            lambda: client.pubsub_channels() or client.pubsub_numpat(), seconds=30, message="one listens"
        )
        with told_at_the_end(application):
            context.send(BELL)
            assert client.llen("high") == 1
            listens.join(timeout=1.0)
            assert heard == []
        listens.join(timeout=20.0)
    assert [(event["name"], event["queue"]) for event in heard] == [("training.run", "high")]
