"""TANDEM_HOME: where runtime data lies, never beside code."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from config.errors import SettingsError
from registry.states import Priority

SECRET_MODE = 0o600
PRIVATE_DIRECTORY_MODE = 0o700


@dataclass(frozen=True)
class Home:
    """The directories and files below TANDEM_HOME, by what they hold."""

    root: Path

    @cached_property
    def inbox(self) -> Path:
        """Files dropped here become jobs; `inbox/high`, `inbox/normal`, `inbox/low` set the priority."""
        return self.root / "inbox"

    @cached_property
    def control(self) -> Path:
        """Commands by file: `control/pause` pauses the job that runs."""
        return self.root / "control"

    @cached_property
    def queue(self) -> Path:
        """A folder a queue, and what runs, failed and succeeded: a file a job, for people, never read."""
        return self.root / "queue"

    @cached_property
    def refused(self) -> Path:
        """Inbox files that could not become a job, each with its reason beside it."""
        return self.queue / "failed"

    @cached_property
    def datasets(self) -> Path:
        """Immutable copies of submitted files, named by content."""
        return self.root / "data" / "datasets"

    @cached_property
    def evaluations(self) -> Path:
        """Every answered evaluation as a Parquet file, written from the registry."""
        return self.root / "data" / "evaluations"

    @cached_property
    def suites(self) -> Path:
        """Validation suites, named by content."""
        return self.root / "data" / "validation"

    @cached_property
    def base_model(self) -> Path:
        """The model that training starts from."""
        return self.root / "models" / "base"

    @cached_property
    def checkpoints(self) -> Path:
        """One directory a job, one below it a checkpoint."""
        return self.root / "models" / "checkpoints"

    @cached_property
    def releases(self) -> Path:
        """What the inference server may serve; `current` points at the active one."""
        return self.root / "models" / "releases"

    @cached_property
    def answers(self) -> Path:
        """What models said to suites, so that a killed evaluation goes on: made again where it is missing."""
        return self.root / "cache" / "answers"

    @cached_property
    def token_cache(self) -> Path:
        """Tokenised datasets: made again where they are missing."""
        return self.root / "cache" / "tokens"

    @cached_property
    def incoming(self) -> Path:
        """Where another host's files arrive; the only place its data key may write to."""
        return self.root / "models" / "incoming"

    @cached_property
    def cache(self) -> Path:
        """Candidates and suites that another host sent, by content hash."""
        return self.root / "models" / "cache"

    @cached_property
    def status(self) -> Path:
        """Projections for people and `jq`."""
        return self.root / "status"

    @cached_property
    def reliability(self) -> Path:
        """Reliability diagrams, a checkpoint's as SVG and as PNG."""
        return self.status / "reliability"

    @cached_property
    def logs(self) -> Path:
        """One log a process."""
        return self.root / "logs"

    @cached_property
    def run(self) -> Path:
        """Process ids, job files, Redis data: what a running stack needs."""
        return self.root / "run"

    @cached_property
    def secrets(self) -> Path:
        """Generated passwords and keys, readable by their owner only."""
        return self.root / "secrets"

    @cached_property
    def signing(self) -> Path:
        """What signs messages here: `key.pem`, `certificate.pem`, and whose are taken: `trusted/`."""
        return self.secrets / "signing"

    @cached_property
    def database(self) -> Path:
        """The registry, unless TANDEM_REGISTRY_URL names another."""
        return self.root / "tandem.db"

    def prepare(self) -> None:
        """Make the directories; `SettingsError` where that is not possible."""
        private = (self.run, self.secrets)
        public = (
            *(self.inbox / priority for priority in Priority),
            self.control,
            self.refused,
            self.datasets,
            self.suites,
            self.checkpoints,
            self.releases,
            self.incoming,
            self.cache,
        )
        try:
            for directory in (self.root, *public, self.status, self.logs, *private):
                directory.mkdir(parents=True, exist_ok=True)
            for directory in private:
                directory.chmod(PRIVATE_DIRECTORY_MODE)
        except OSError as error:
            raise SettingsError(
                f"TANDEM_HOME={self.root} cannot be used: {error.strerror} ({error.filename}).",
                remedy="Name a directory that you may write to.",
            ) from None

    def secret(self, name: str) -> str:
        """The named secret, made at first use."""
        path = self.secrets / name
        if not path.exists():
            self.secrets.mkdir(parents=True, exist_ok=True, mode=PRIVATE_DIRECTORY_MODE)
            _make_secret(path)
        return path.read_text().strip()


def _make_secret(path: Path) -> None:
    try:
        with path.open("x") as stream:
            path.chmod(SECRET_MODE)
            stream.write(secrets.token_urlsafe(32) + "\n")
    except FileExistsError:
        return
