"""`python -m tests.hosts.sender SOURCE SUITE`: a candidate sent as `evaluation.send` does, each step told."""

from __future__ import annotations

import sys
from pathlib import Path

from config.settings import load_settings
from registry.files import sha256_file
from registry.manifests import read_manifest
from registry.messages import ArtifactReference, EvaluationRequest
from registry.records import GenerationSettings
from tests.hosts.narration import open_narrated
from workers.candidates import send


def main(source: Path, suite: Path) -> int:
    """Exit 0 where model and suite are there; the last line says why not."""
    request = EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="ckpt-1",
        model=ArtifactReference(path=str(source), sha256=read_manifest(source).weights_sha256),
        suite_id="suite-1",
        suite=ArtifactReference(path=str(suite), sha256=sha256_file(suite)),
        settings=GenerationSettings(max_new_tokens=8),
        device="cpu",
        num_threads=1,
    )
    problem = send(request, settings=load_settings(), open_host=open_narrated)
    print(problem, flush=True)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
