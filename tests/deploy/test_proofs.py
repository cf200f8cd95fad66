"""A release that is there is read once, and again only where something was touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from deploy.errors import TransferFailed
from deploy.remote import RemoteTarget
from tests.deploy.far import FarHost

ONE, TWO = "r000001-aaaaaaaa", "r000002-bbbbbbbb"
LATER = datetime(2200, 1, 1, tzinfo=UTC)  # than any change of a file that these tests make


class ReadError(AssertionError):
    """Files were read that should not be."""


@pytest.fixture
def pushed(far: FarHost, seal: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release that arrived; whoever reads its files again fails."""
    far.now = LATER
    path = Path(push(far, seal()))

    def read(*_: object, **__: object) -> None:
        raise ReadError

    monkeypatch.setattr("deploy.target.verify", read)
    return path


def push(far: FarHost, source: Path, *, release_id: str = ONE) -> str:
    return RemoteTarget(far.gateway(), carrier=far.carrier).push(source, release_id=release_id)


def test_what_arrived_and_was_read_is_not_read_again(pushed: Path, far: FarHost, seal) -> None:
    assert push(far, seal("again")) == str(pushed)
    assert far.carrier.num_carried == 1


@pytest.mark.parametrize("harm", ["written", "replaced", "linked", "more", "fewer", "manifest", "noted"])
def test_it_is_read_again_after_any_touch(pushed: Path, far: FarHost, seal, harm: str) -> None:
    weights = pushed / "model.safetensors"
    before = weights.stat()
    content = weights.read_bytes()
    weights.chmod(0o644)
    if harm == "written":
        weights.write_bytes(content[:-1] + b"!")
    elif harm == "replaced":
        weights.unlink()
        weights.write_bytes(content)
    elif harm == "linked":
        other = far.config.incoming_dir / "other"
        os.link(weights, other)
        other.write_bytes(content[:-1] + b"!")
        other.unlink()
    elif harm == "more":
        (pushed / "extra.py").write_text("evil")
    elif harm == "fewer":
        (pushed / "config.json").unlink()
    elif harm == "manifest":
        manifest = pushed / "manifest.json"
        manifest.chmod(0o644)
        manifest.write_text(manifest.read_text() + " ")
    else:
        (far.config.incoming_dir.parent / ".proofs" / ONE).write_bytes(b"\xff")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ReadError):
        push(far, seal("again"))


def test_a_rollback_reads_every_file_whatever_is_noted(pushed: Path, far: FarHost) -> None:
    with pytest.raises(ReadError):
        RemoteTarget(far.gateway(), carrier=far.carrier).verify(ONE)


def test_what_was_written_a_moment_before_it_was_read_is_not_noted(far: FarHost, seal) -> None:
    far.now = datetime.fromtimestamp(0, tz=UTC)
    push(far, seal())
    assert not (far.config.incoming_dir.parent / ".proofs").exists()


def test_notes_of_releases_that_are_gone_go_too(far: FarHost, seal) -> None:
    far.now = LATER
    first = Path(push(far, seal()))
    first.rename(first.with_name("elsewhere"))
    push(far, seal("two"), release_id=TWO)
    assert [path.name for path in (far.config.incoming_dir.parent / ".proofs").iterdir()] == [TWO]


def test_a_damaged_release_is_never_noted(far: FarHost, seal) -> None:
    far.now = LATER
    path = Path(push(far, seal()))
    weights = path / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    again = seal("again")
    for _ in range(2):
        with pytest.raises(TransferFailed, match="is damaged"):
            push(far, again)
