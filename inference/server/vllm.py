"""Releases run by vLLM: a `vllm serve` process on loopback for each, asked over its OpenAI-compatible HTTP.

Prompts go there as token ids and replies come back as token ids with log-probabilities, so that chat
template, stop strings, limits and confidence stay this server's own, and every door answers as it does with
transformers. A process serves one release only: a swap cannot mix two, and an old one's memory is free when
its process is gone. What vLLM cannot do over HTTP is refused: a profile's penalties.

The request and its extra fields (`return_tokens_as_token_ids`, `stop_token_ids`, `skip_special_tokens`,
`add_special_tokens`), the routes `/health` and `/v1/models`, and VLLM_API_KEY are those of vLLM's manual.
Log-probabilities must be the raw ones, its default: `--logprobs-mode raw_logprobs`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import secrets
import socket
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from inference.continuous import Candidate, NextToken
from inference.errors import EngineDown, InferenceError, ReleaseError, RequestRefused, ServerError
from inference.model import TextModel, load_text_model
from inference.sampling import is_drawn
from inference.server.backend import Activity
from inference.server.config import ServerConfig
from inference.server.vllm_process import VllmProcess, wait_for_the_dead
from inference.server.work import Work
from registry.errors import RegistryError

logger = logging.getLogger(__name__)
POLL_SECONDS = 0.2
TOKEN_PREFIX = "token_id:"  # noqa: S105 - of a token of text


@dataclass(frozen=True, kw_only=True)
class VllmModel(TextModel):
    """A release that a process of its own runs. The process ends when nobody holds this any more."""

    process: VllmProcess = field(repr=False, compare=False)

    @property
    def is_alive(self) -> bool:
        """False once the process has ended."""
        return self.process.exit_code is None


class VllmBackend:
    """Starts a vLLM for each release and hands requests on to it, from one thread with its own event loop."""

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._running: dict[int, Work] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._is_closing = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._slots = asyncio.Semaphore(config.max_running)
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(None, connect=5.0), trust_env=False)
        self._dropping = self._run(self._drop_unwanted())

    def load(self, directory: Path) -> VllmModel:
        """Verify every file, start a vLLM on it, and wait until it serves the release under its id."""
        try:
            text = load_text_model(directory)
        except (InferenceError, RegistryError, OSError) as error:
            raise ReleaseError(f"Release {directory.name!r} cannot be served: {error}") from error
        if text.profile.penalties is not None:
            raise ReleaseError(
                f"Release {directory.name!r} was trained with a profile whose penalties vLLM does not apply.",
                remedy="Serve it with engine 'transformers'.",
            )
        wait_for_the_dead()
        process = self._started(directory)
        self._wait_until_it_serves(process, release_id=directory.name)
        return VllmModel(**vars(text), process=process)

    def has_room_for(self, directory: Path) -> bool:
        """Not known: a vLLM takes its share of the GPU beforehand. Say `swap = "beside"` where two fit."""
        del directory
        return False

    def submit(self, work: Work) -> None:
        """Ask the process of the release that the request began with."""
        self._run(self._begin(work))

    def activity(self) -> Activity:
        """The requests that vLLM has."""
        return Activity(tuple(self._running.values()))

    def close(self) -> None:
        """Tell everybody who waits, and stop the thread. The processes end with their models."""
        self._is_closing.set()
        self._run(self._end()).result(timeout=30)
        self._dropping.result(timeout=30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _started(self, directory: Path) -> VllmProcess:
        how, port = self._config.vllm, _free_port()
        command = [
            *how.command,
            str(directory.absolute()),
            *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", directory.name),
            *("--generation-config", "vllm"),
            *how.arguments,
        ]
        try:
            return VllmProcess(command, url=f"http://127.0.0.1:{port}", key=secrets.token_hex(32))
        except OSError as error:
            raise ReleaseError(
                f"vLLM cannot be started: {how.command[0]}: {error.strerror}.",
                remedy="Install vLLM on this host, or set vllm.command to where it is.",
            ) from error

    def _wait_until_it_serves(self, process: VllmProcess, *, release_id: str) -> None:
        deadline = time.monotonic() + self._config.vllm.start_seconds
        while not self._is_closing.is_set() and not _serves(process, release_id=release_id):
            if process.exit_code is not None:
                raise ReleaseError(
                    f"Release {release_id!r} cannot be served: vLLM ended with code {process.exit_code} "
                    "as it started.",
                    remedy="The server's log holds what it said.",
                )
            if time.monotonic() > deadline:
                raise ReleaseError(
                    f"Release {release_id!r} cannot be served: vLLM was not ready in "
                    f"{self._config.vllm.start_seconds:g} s.",
                    remedy="Raise vllm.start_seconds if it still loads.",
                )
            time.sleep(POLL_SECONDS)

    async def _begin(self, work: Work) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(work))
        self._tasks[id(work)] = task
        task.add_done_callback(partial(self._ended, work))

    def _ended(self, work: Work, task: asyncio.Task[None]) -> None:
        self._tasks.pop(id(work), None)
        if task.cancelled() and not work.is_unwanted.is_set():
            work.put(ServerError("The server is shutting down."))

    async def _answer(self, work: Work) -> None:
        assert isinstance(work.loaded, VllmModel)  # noqa: S101 - this backend loads no other
        try:
            async with self._slots:
                self._running[id(work)] = work
                await self._follow(work, process=work.loaded.process)
        except httpx.HTTPError as error:
            logger.warning("vLLM failed for %s: %r", work.release_id, error)
            work.put(EngineDown("vLLM does not answer.", remedy="It is started again; try again shortly."))
        except Exception as error:  # noqa: BLE001 - it is raised again where the request is answered
            work.put(error)
        finally:
            self._running.pop(id(work), None)

    async def _follow(self, work: Work, *, process: VllmProcess) -> None:
        """Give the request its tokens as they come. Leaving early closes the connection: vLLM then stops."""
        async with self._client.stream(
            "POST", f"{process.url}/v1/completions", json=_body(work), headers=process.headers
        ) as answer:
            if answer.status_code != 200:
                raise _refusal(answer.status_code, await answer.aread())
            async for line in answer.aiter_lines():
                for token in _tokens(line, num_likeliest=work.num_likeliest):
                    if work.take(token):
                        return
        raise EngineDown("vLLM ended a reply before its end.", remedy="Try again shortly.")

    async def _drop_unwanted(self) -> None:
        """A client that left while nothing came for it."""
        while not self._is_closing.is_set():
            await asyncio.sleep(POLL_SECONDS)
            self._cancel_unwanted()

    def _cancel_unwanted(self) -> None:
        """A function, so that no frame that sleeps holds a request, and with it a model."""
        for key, work in self._running.items():
            if work.is_unwanted.is_set() and key in self._tasks:
                self._tasks[key].cancel()

    async def _end(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.aclose()

    def _run(self, work: Coroutine[Any, Any, None]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop)


def _body(work: Work) -> dict[str, Any]:
    settings = work.settings
    drawn = {"temperature": settings.temperature, "top_p": settings.top_p, "seed": settings.seed}
    return {
        "model": work.release_id,
        "prompt": list(work.prompt),
        "max_tokens": work.room,
        "stream": True,
        "logprobs": work.num_likeliest,
        "return_tokens_as_token_ids": True,
        "stop_token_ids": sorted(work.loaded.stop_token_ids),
        "skip_special_tokens": False,
        "add_special_tokens": False,
        **(drawn if is_drawn(settings) else {"temperature": 0.0}),
    }


def _tokens(line: str, *, num_likeliest: int) -> Iterator[NextToken]:
    """The tokens of one line of server-sent events."""
    payload = line.removeprefix("data:").strip()
    if not line.startswith("data:") or payload == "[DONE]":
        return
    try:
        told = json.loads(payload)
        if "error" in told:
            raise EngineDown(f"vLLM broke off: {told['error']}")
        for choice in told["choices"]:
            found = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
            rows = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
            for token, logprob, likeliest in rows:
                yield NextToken(
                    0, _token_id(token), _number(logprob), _likeliest(likeliest, count=num_likeliest)
                )
    except (ValueError, KeyError, TypeError) as error:
        raise EngineDown(f"vLLM answered in an unknown form: {payload[:200]!r}") from error


def _likeliest(told: dict[str, float] | None, *, count: int) -> tuple[Candidate, ...]:
    """vLLM puts the chosen token among them, one more than asked."""
    candidates = [Candidate(_token_id(name), _number(logprob)) for name, logprob in (told or {}).items()]
    return tuple(sorted(candidates, key=lambda one: -one.logprob)[:count])


def _token_id(name: str) -> int:
    return int(name.removeprefix(TOKEN_PREFIX))


def _number(logprob: float | None) -> float:
    """JSON has no NaN: it comes as null."""
    return math.nan if logprob is None else float(logprob)


def _refusal(status_code: int, content: bytes) -> Exception:
    try:
        told = json.loads(content)
        message = str(told.get("error", told)["message"])
    except (ValueError, KeyError, TypeError, AttributeError):
        message = content[:200].decode(errors="replace")
    if status_code in (400, 413, 422):
        return RequestRefused(f"vLLM refuses it: {message}")
    return EngineDown(f"vLLM failed ({status_code}): {message}", remedy="Try again shortly.")


def _serves(process: VllmProcess, *, release_id: str) -> bool:
    try:
        with httpx.Client(timeout=5.0, trust_env=False, headers=process.headers) as client:
            if client.get(f"{process.url}/health").status_code != 200:
                return False
            entries = client.get(f"{process.url}/v1/models").json()["data"]
            return any(entry["id"] == release_id for entry in entries)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
