"""Answers to a suite that are kept as they are made, so that a killed evaluation goes on where it was.

A question is this model, file by file, this suite and these settings, on this kind of device with these
versions: the same question finds its answers, any other finds none. What is kept is what the model said,
never how it was judged, so that a scorer that was mended judges anew.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from inference.generation import Generated
from inference.model import LoadedModel
from inference.scoring import Score
from registry.errors import RegistryError
from registry.files import sha256_text
from registry.manifests import read_manifest
from registry.records import TEMPERATURES, GenerationSettings

log = logging.getLogger(__name__)

# Whole evaluations of a few thousand rows are some megabytes each.
MAX_QUESTIONS = 50
VERSIONED = ("tandem", "torch", "transformers")


@dataclass(frozen=True)
class Said:
    """What a model said to one row: the loss of the expected answer, and its own."""

    score: Score
    reply: Generated | None

    @property
    def is_whole(self) -> bool:
        """False where something was not finite or did not fit: that is asked again."""
        has_reply = self.reply is not None and self.reply.finish_reason != "error"
        return has_reply and not self.score.problem and self.score.loss is not None


class KeptAnswers:
    """The answers to one question, a line of JSON each, in a file that only grows."""

    def __init__(self, directory: Path, *, key: str) -> None:
        self._path = directory / f"{key}.jsonl"

    def load(self) -> dict[str, Said]:
        """By row id. A line that a kill cut off, or that is none of ours, is passed over."""
        try:
            lines = self._path.read_bytes().split(b"\n")
        except FileNotFoundError:
            return {}
        except OSError as error:
            log.warning("kept answers are not used: %s: %s", self._path, error)
            return {}
        return dict(found for line in lines for found in _parsed(line))

    def add(self, said: Mapping[str, Said]) -> None:
        """Keep what is whole. A disk that takes no more costs the keeping, not the evaluation."""
        lines = [
            json.dumps({"row_id": row_id, **asdict(one)}, allow_nan=False, ensure_ascii=False)
            for row_id, one in said.items()
            if one.is_whole
        ]
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as stream:
                # A line that was cut off before must not swallow the next one.
                stream.write(("\n" + "\n".join(lines) + "\n").encode())
        except OSError as error:
            log.warning("answers are not kept: %s: %s", self._path, error)

    def forget_older(self) -> None:
        """Leave the newest questions, this one among them."""
        try:
            files = sorted(self._path.parent.glob("*.jsonl"), key=lambda path: path.stat().st_mtime)
            for path in files[:-MAX_QUESTIONS]:
                path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("old answers are not removed: %s", error)


def question_key(loaded: LoadedModel, *, suite_sha256: str, settings: GenerationSettings) -> str | None:
    """What is asked, as a hash; None for a model without a manifest, whose files nothing vouches for."""
    try:
        manifest = read_manifest(loaded.directory)
    except RegistryError:
        return None
    parts = {
        "files": {name: entry.sha256 for name, entry in sorted(manifest.files.items())},
        "profile": loaded.profile.name,
        "suite": suite_sha256,
        "settings": settings.model_dump(mode="json"),
        "temperatures": TEMPERATURES,
        "device": loaded.device.type,
        "versions": {name: version(name) for name in VERSIONED},
    }
    return sha256_text(json.dumps(parts, sort_keys=True))[:32]


def _parsed(line: bytes) -> Iterator[tuple[str, Said]]:
    if not line.strip():
        return
    try:
        value: dict[str, Any] = json.loads(line)
        reply = value["reply"]
        generated = Generated(
            **{
                **reply,
                "token_ids": tuple(reply["token_ids"]),
                "tempered_logprobs": tuple(reply["tempered_logprobs"]),
            }
        )
        yield str(value["row_id"]), Said(score=Score(**value["score"]), reply=generated)
    except (ValueError, KeyError, TypeError, AttributeError):
        return
