"""A training host and a further one, each prepared by `tandem init-host` as a stranger would.

They share `data` and `models` at the same path, and the registry, which is a PostgreSQL behind a password.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from registry.store import Registry
from tests.hosts.lab import REDIS_PORT
from tests.hosts.several import TRAIN, SeveralHosts

FURTHER = "train-2"
SHARED = ("data", "models")
# Laid over the first one's home, as the further host sees the file system.
MOUNT = (
    'mount --bind "$1/data" "$2/data" && mount --bind "$1/models" "$2/models" && mount --rbind "$2" "$1" '
    '&& shift 2 && exec "$@"'
)


@dataclass
class TwoTrainers(SeveralHosts):
    """`url` names the database and a user, `password` is that user's."""

    url: str = ""
    password: str = ""

    def __post_init__(self) -> None:
        """One registry for all questions: each has connections of its own."""
        super().__post_init__()
        self._registry = Registry(self.url.replace("tandem@", f"tandem:{self.password}@"))

    def start(self) -> None:
        """Prepare both, then bring everything up."""
        self.star.start()
        try:
            self._prepare()
            self._start_redis()
            self.start_role(TRAIN, role="train")
            self.start_role(FURTHER, role="further")
        except BaseException:
            self.stop()
            raise

    def registry(self) -> Registry:
        """Of both."""
        return self._registry

    def stop(self) -> None:
        """Everything down, connections too."""
        self._registry.engine.dispose()
        super().stop()

    def _prepare(self) -> None:
        for host in (TRAIN, FURTHER):
            (self.root / host).mkdir(parents=True)
        password = self.root / "registry_password"
        password.write_text(self.password)
        meeting = ("--redis", self.star.address, "--redis-port", str(REDIS_PORT))
        registry = ("--registry", self.url, "--registry-password-file", str(password))
        self.tandem(TRAIN, "init-host", "--role", "train", "--name", TRAIN, *meeting, *registry)
        for name in SHARED:
            (self.home(FURTHER) / name).mkdir(parents=True)
        # Copied as REMOTE_INFERENCE.md has it: the further host does not see the first one's secrets.
        copied = self.root / "redis_password"
        copied.write_text((self.home(TRAIN) / "secrets" / "redis_password").read_text())
        how = ("--join", "--name", FURTHER, "--home", str(self.home(TRAIN)))
        told = ("--redis-password-file", str(copied), *meeting, *registry)
        self.tandem(FURTHER, "init-host", "--role", "train", *how, *told)

    def _environment(self, host: str) -> dict[str, str]:
        return {
            **super()._environment(host),
            "TANDEM_HOME": str(self.home(TRAIN)),
            "TANDEM_TRAINING__LEASE_SECONDS": "20",
            "TANDEM_TRAINING__NUM_CHECKPOINTS": "1",
            "TANDEM_TRAINING__HYPERPARAMETERS": json.dumps({"tokens_per_batch": 1280}),
        }

    def _inside(self, host: str) -> list[str]:
        there = super()._inside(host)
        if host == TRAIN:
            return there
        return [*there, "sh", "-c", MOUNT, host, str(self.home(TRAIN)), str(self.home(host))]


def drop_into_inbox(file: Path, *, home: Path) -> None:
    """Whole at once, as `mv` does it."""
    file.rename(home / "inbox" / file.name)
