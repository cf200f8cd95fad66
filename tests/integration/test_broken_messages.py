"""Entries in Redis's lists that no sender of ours wrote: the workers live, and go on taking messages."""

# ruff: noqa: E501 - messages read best as tables
import base64
import copy
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from tasks.testing import Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WORKERS = {"control": "control", "high": "train", "intelligence": "intelligence"}
NUM_MUTATED = 200
JUNK: list[Any] = [
    None, True, 0, -1, 5, 1e308, "", "x", "5", "\0", "é" * 500, "tomorrow", "9999-12-31T23:59:59+00:00", [], [1],
    ["x"], ["x", "y"], [1, 2, 3], [-1, None], {}, {"a": 1}, {"x": {"y": []}}, "9" * 400, [[]], "os.system",
]  # fmt: skip


def message(**changes: Any) -> dict[str, Any]:
    """As Celery writes one; its task refuses the field, so that nothing is done."""
    body = [[], {"nonsense": 1}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    whole = {
        "body": encoded(body),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": "training.run", "id": "broken-1", "shadow": None, "eta": None, "expires": None,
            "group": None, "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": "broken-1",
            "parent_id": None, "argsrepr": "()", "kwargsrepr": "{}", "origin": "test", "ignore_result": True,
            "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
        },
        "properties": {
            "correlation_id": "broken-1", "reply_to": "", "delivery_mode": 2, "priority": 0, "body_encoding": "base64",
            "delivery_info": {"exchange": "", "routing_key": "control"}, "delivery_tag": "broken-1",
        },
    }  # fmt: skip
    return {**whole, **changes}


def encoded(body: Any) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


def mutated(dice: random.Random) -> bytes:
    """One to three parts of a message replaced by junk, or left out."""
    whole = copy.deepcopy(message())
    for _ in range(dice.randint(1, 3)):
        part: Any = dice.choice([whole, whole["headers"], whole["properties"]])
        if not isinstance(part, dict) or not part:
            continue
        name = dice.choice(sorted(part))
        if dice.random() < 0.2:
            del part[name]
        else:
            part[name] = encoded(dice.choice(JUNK)) if name == "body" else copy.deepcopy(dice.choice(JUNK))
        if not all(isinstance(whole.get(key), dict) for key in ("headers", "properties")):
            break
    return json.dumps(whole).encode()


def broken(seed: int) -> Iterator[bytes]:
    """Bytes of every kind."""
    yield from [
        b"",
        b"garbage{",
        bytes(range(256)),
        b"[" * 100_000,
        b"{" * 100,
        b"[1, 2]",
        b"null",
        b"1",
        b'"x"',
        b"{}",
    ]
    yield from (json.dumps(message(body=encoded(body))).encode() for body in JUNK)
    yield from (json.dumps(message(body=body)).encode() for body in ("@@@", 5, None, [], "gA=="))
    dice = random.Random(seed)
    yield from (mutated(dice) for _ in range(NUM_MUTATED))


def start_times(stack: Stack) -> dict[str, tuple[int, float]]:
    """Which process plays each part, and since when."""
    parts = {name: stack.part(name) for name in WORKERS.values()}
    return {name: (process.pid, process.create_time()) for name, process in parts.items()}


@pytest.mark.parametrize("queue", sorted(WORKERS))
def test_no_broken_message_ends_a_worker_or_makes_it_deaf(stack: Stack, queue: str) -> None:
    before = start_times(stack)
    with Redis.from_url(stack.settings.redis_url) as client:
        for entry in broken(seed=len(queue)):
            client.lpush(queue, entry)
        good = json.dumps(message()).encode()
        for _ in range(5):  # more than any worker has processes: a deaf one would leave some
            client.lpush(queue, good)
        wait_for(lambda: client.llen(queue) == 0, seconds=40, message=f"all of {queue} is taken")
    assert start_times(stack) == before
    log = (stack.settings.paths.logs / f"{WORKERS[queue]}.log").read_text(errors="replace")
    assert "was dropped, since it cannot be read" in log
    assert "Unrecoverable error" not in log
