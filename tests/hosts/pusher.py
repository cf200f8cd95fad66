"""`python -m tests.hosts.pusher SOURCE GENERATION FENCE`: one deployment over ssh, each step printed."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

from config.settings import load_settings
from deploy.deployer import deploy
from deploy.plan import plan
from registry.manifests import read_manifest
from registry.records import Deployment
from registry.states import CheckpointState
from registry.testing import make_checkpoint
from tests.hosts.narration import open_narrated


def main(source: Path, *, generation: int, fence: int) -> int:
    """Exit 0 where the release is served; the last line says why not."""
    settings = load_settings()
    checkpoint = make_checkpoint(
        state=CheckpointState.ACCEPTED, weights_sha256=read_manifest(source).weights_sha256
    )
    planned = plan(checkpoint, active=None, generation=generation, reason="lab", now=datetime.now(UTC))
    assert planned is not None
    with open_narrated(settings, fence=fence) as remote:
        ended = deploy(
            planned,
            source=source,
            target=remote.target,
            door=remote.door,
            probe_prompt="cat",
            report=report,
            clock=lambda: datetime.now(UTC),
        )
    print(ended.problem, flush=True)
    return 0 if ended.state == "active" else 1


def report(_before: Deployment, after: Deployment) -> Deployment:
    """Say it; a test waits for it."""
    print(f"{after.state} {after.id}", flush=True)
    return after


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), generation=int(sys.argv[2]), fence=int(sys.argv[3])))
