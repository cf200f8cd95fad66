"""Sending over a real Redis: one that says nothing is noticed, and Flower hears of it when there is time."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import Redis
from redis.exceptions import RedisError

from config.settings import Settings, load_settings, setting_names
from registry.messages import SubmittedJob, TrainingSubmission
from registry.states import Priority
from registry.store import Registry
from tasks.api import ANSWER_SECONDS, ask
from tasks.testing import free_port, wait_for
from tests.integration.black_hole import BlackHole
from workers.app import TRUSTED_SECONDS, SettingsLoader, TandemCelery
from workers.celery_settings import celery_settings
from workers.context import Context, Message
from workers.errors import BrokerUnavailable, TaskFailed
from workers.pipeline import bell
from workers.sent_events import told_at_the_end
from workers.stack.redis_server import find_redis_server, write_redis_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
Start = Callable[..., None]
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


@pytest.fixture
def work_around(settings: Settings, redis: "subprocess.Popen[bytes]") -> Iterator[BlackHole]:
    with BlackHole(port=settings.redis.port) as found:
        yield found


@pytest.fixture
def detoured(settings: Settings, work_around: BlackHole) -> Iterator[Context]:
    """One who reaches Redis by the way that can be closed."""
    application = TandemCelery("detoured", set_as_current=False)
    application.config_from_object(celery_settings(around(settings, by=work_around)))
    yield Context(settings=settings, registry=Registry(settings.database_url), celery=application)
    application.close()


@pytest.fixture
def started(settings: Settings, work_around: BlackHole) -> Iterator[Start]:
    """Starts a part of the stack that reaches Redis by the way that can be closed, if it is to."""
    with ExitStack() as stack:

        def start(*arguments: str, goes_around: bool = True) -> None:
            environment = {**os.environ, "TANDEM_SCHEDULE__INBOX_SECONDS": "1"}
            if goes_around:
                environment["TANDEM_REDIS__URL"] = around(settings, by=work_around).redis_url
                del environment["TANDEM_REDIS__PORT"]
            command = [sys.executable, "-m", "celery", "-A", "workers.app", *arguments]
            log = stack.enter_context((settings.paths.logs / "part.log").open("wb"))
            process = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
            )
            stack.callback(process.kill)

        yield start


def around(settings: Settings, *, by: BlackHole) -> Settings:
    """The same, with Redis where the way begins that can be closed."""
    url = settings.redis_url.replace(f":{settings.redis.port}/", f":{by.port}/")
    redis = settings.redis.model_copy(update={"url": SecretStr(url)})
    return settings.model_copy(update={"redis": redis})


def is_there(context: Context) -> bool:
    return bool(context.celery.control.ping(timeout=2.0))


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


def test_what_is_sent_over_connections_that_died_without_a_word_arrives(
    settings: Settings, detoured: Context, work_around: BlackHole
) -> None:
    application = detoured.celery
    with Redis.from_url(settings.redis_url) as client:
        for end in (work_around.swallow, work_around.reset):
            application.send_task(BELL.task, kwargs={"job_id": "job-aaaaaaaa"}, queue="high")
            application.send_task("inbox.scan", queue="control")
            end()
            time.sleep(TRUSTED_SECONDS)  # until then Redis is not asked
            application.send_task("inbox.scan", queue="control")
            application.send_task(BELL.task, kwargs={"job_id": "job-aaaaaaaa"}, queue="high")
        assert (client.llen("high"), client.llen("control")) == (4, 4)


def test_an_answer_is_had_though_the_connections_to_hear_it_by_died_without_a_word(
    settings: Settings, detoured: Context, work_around: BlackHole, started: Start
) -> None:
    started("worker", "-Q", "control", "-c", "1", "-n", "control@here", goes_around=False)
    wait_for(lambda: is_there(detoured), seconds=60, message="the worker answers")
    for _ in range(2):
        assert_answered(detoured)
    work_around.swallow()
    for _ in range(3):  # Celery notices those that it sends by, not the one that it listens to
        assert_answered(detoured)


def assert_answered(context: Context) -> None:
    began = time.monotonic()
    with pytest.raises(TaskFailed, match="outside the allowed roots"):
        ask(context, "training.submit", fields={"dataset": "/nowhere.jsonl"}, answer=SubmittedJob)
    assert time.monotonic() - began < ANSWER_SECONDS / 2


def test_a_worker_whose_connections_died_without_a_word_makes_others(
    context: Context, started: Start, work_around: BlackHole
) -> None:
    started(
        "worker", "-Q", "control", "-c", "1", "-n", "control@here", "--without-gossip", "--without-mingle"
    )
    wait_for(lambda: is_there(context), seconds=60, message="the worker answers")
    work_around.swallow()
    assert not is_there(context)
    wait_for(lambda: is_there(context), seconds=60, message="it answers again")


def test_beat_whose_connection_died_without_a_word_makes_another(
    context: Context, started: Start, work_around: BlackHole
) -> None:
    with Redis.from_url(context.settings.redis_url) as client:

        def num_sent() -> int:
            return int(str(client.llen("control")))

        started("beat")
        wait_for(lambda: num_sent() >= 2, seconds=60, message="it ticks")
        work_around.swallow()
        before = num_sent()
        wait_for(lambda: num_sent() >= before + 2, seconds=60, message="it ticks again")


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
