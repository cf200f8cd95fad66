"""A loaded release answers a few fixed prompts through its own HTTP door before it answers anybody else.

What is judged is whether it can answer at all; whether its answers are right was judged by its evaluation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from starlette.types import ASGIApp

from inference.detokenize import UNFINISHED
from inference.errors import ReleaseError
from inference.server.swap import ServedRelease

PROMPTS = ("Say yes.", "Spell this word backward (example: sun -> nus): cat", "What is two and three?")
MAX_TOKENS = 16
# The application is called in this process: no socket, but every layer of it.
BASE_URL = "http://127.0.0.1"
TIMEOUT_SECONDS = 60.0


class SmokeTest:
    """Asks by the id of the release, with a key that opens the door. The application is made after it."""

    def __init__(self, app: Callable[[], ASGIApp], *, key: str) -> None:
        self._app = app
        self._key = key

    def __call__(self, served: ServedRelease) -> None:
        """`ReleaseError` names the prompt and what was wrong with its answer."""
        try:
            asyncio.run(asyncio.wait_for(self._ask_all(served), TIMEOUT_SECONDS))
        except TimeoutError:
            raise ReleaseError(
                f"Release {served.release_id!r} cannot be served: it did not answer in {TIMEOUT_SECONDS:g} s."
            ) from None

    async def _ask_all(self, served: ServedRelease) -> None:
        transport = httpx.ASGITransport(self._app())
        headers = {"Authorization": f"Bearer {self._key}"}
        async with httpx.AsyncClient(transport=transport, base_url=BASE_URL, headers=headers) as client:
            texts = [await _text(client, prompt, served=served) for prompt in PROMPTS]
        faults = [fault_of(text, tokenizer=served.loaded.tokenizer) for text in texts]
        # A model may well have nothing to say to one of them: to each, it is mute.
        if all(faults):
            raise _unfit(served, prompt=PROMPTS[0], fault=faults[0])


async def _text(client: httpx.AsyncClient, prompt: str, *, served: ServedRelease) -> str:
    """The answer; `ReleaseError` where there is none."""
    body = {
        "model": served.release_id,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": MAX_TOKENS,
        "temperature": 0,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    content: Any = answer.json()
    if answer.status_code != 200:
        fault = f"it failed with {answer.status_code}: {content['error']['message']}"
        raise _unfit(served, prompt=prompt, fault=fault)
    if content["model"] != served.release_id:
        raise _unfit(served, prompt=prompt, fault=f"{content['model']} answered.")
    return str(content["choices"][0]["message"]["content"])


def fault_of(text: str, *, tokenizer: Any) -> str:
    """Why a reply is none: it is empty, or holds what no reply holds."""
    if not text.strip():
        return "it answered nothing."
    found = [token for token in (UNFINISHED, *tokenizer.all_special_tokens) if token in text]
    return f"it answered {found[0]!r}, which is no text." if found else ""


def _unfit(served: ServedRelease, *, prompt: str, fault: str) -> ReleaseError:
    return ReleaseError(f"Release {served.release_id!r} cannot be served: asked {prompt!r}, {fault}")
