"""The real rsync through the real rrsync, without a network: what is linked, and what a kill leaves."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from deploy.errors import TransferFailed
from deploy.runner import Finished, run_command
from deploy.transfer import Endpoint, Rsync
from deploy.wire import Slot

pytestmark = pytest.mark.integration
NUM_BYTES = 8_000_000


class Near:
    """The far end of the data key, here: rsync's shell runs what sshd's forced command would."""

    def __init__(self, root: Path) -> None:
        self.incoming = root / "incoming"
        self.incoming.mkdir()
        self.ended: list[Finished] = []
        self._shell = root / "shell"
        forced = f'SSH_ORIGINAL_COMMAND="$*" exec setsid -w rrsync -wo {self.incoming}'
        self._shell.write_text(f'#!/bin/sh\nwhile [ "$1" != rsync ]; do shift; done\n{forced}\n')
        self._shell.chmod(0o755)

    def __call__(
        self, command: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str]
    ) -> Finished:
        words = list(command)
        if "-e" in words:
            words[words.index("-e") + 1] = str(self._shell)
        self.ended.append(
            run_command(words, timeout_seconds=timeout_seconds, environment={**os.environ, **environment})
        )
        return self.ended[-1]

    def slot(self, **changes: object) -> Slot:
        fields = {
            "is_present": False,
            "directory": "release-aa",
            "incoming_dir": "/x",
            "path": "/x",
            **changes,
        }
        return Slot.model_validate(fields)

    def rsync(self, **options: object) -> Rsync:
        endpoint = Endpoint("far", port=22, user="tandem", key=Path("/key"), known_hosts=Path("/known"))
        fields = {"transfer_seconds": 60.0, "run": self, "sleep": lambda _: None, **options}
        return Rsync(endpoint, **fields)  # type: ignore[arg-type]


@pytest.fixture
def near(tmp_path: Path) -> Near:
    return Near(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "weights.safetensors").write_bytes(random.Random(1).randbytes(NUM_BYTES))
    (path / "optimizer.bin").write_bytes(b"never sent")
    return path


def test_only_named_files_arrive_and_they_are_read_only(near: Near, source: Path) -> None:
    (near.incoming / "release-aa").mkdir()
    near.rsync().push(source, names=["weights.safetensors"], slot=near.slot(), use_base=True)
    (arrived,) = (near.incoming / "release-aa").iterdir()
    assert arrived.read_bytes() == (source / "weights.safetensors").read_bytes()
    assert arrived.stat().st_mode & 0o777 == 0o444


def test_what_did_not_change_is_linked_to_the_base(near: Near, source: Path) -> None:
    names = ["weights.safetensors"]
    for name in ("base", "release-base", "release-aa"):
        (near.incoming / name).mkdir()
    near.rsync().push(source, names=names, slot=near.slot(directory="release-base"), use_base=False)
    (near.incoming / "release-base").joinpath(*names).rename(near.incoming / "base" / names[0])
    near.rsync().push(source, names=names, slot=near.slot(base="base"), use_base=True)
    files = [near.incoming / directory / names[0] for directory in ("base", "release-aa")]
    assert files[0].stat().st_ino == files[1].stat().st_ino


def test_what_arrived_before_a_kill_is_not_sent_again(near: Near, source: Path) -> None:
    names = ["weights.safetensors"]
    (near.incoming / "release-aa").mkdir()
    with pytest.raises(TransferFailed, match="did not end within"):
        near.rsync(bandwidth_kib=1500, transfer_seconds=3.0).push(
            source, names=names, slot=near.slot(), use_base=False
        )
    left = [path for path in near.incoming.rglob("*") if path.is_file()]
    assert left, "the killed transfer left nothing to go on with"
    near.rsync().push(source, names=names, slot=near.slot(has_partial=True), use_base=False)
    arrived = near.incoming / "release-aa" / names[0]
    assert arrived.read_bytes() == (source / names[0]).read_bytes()
    (literal,) = re.findall(r"Literal data: ([\d,]+)", near.ended[-1].output)
    assert int(literal.replace(",", "")) < NUM_BYTES - 1_000_000
