"""A host behind ssh as a place for releases, for candidates, and as the server it runs.

Data goes by rsync with one key, commands go to the gate with another; see `deploy.access`.
"""

from __future__ import annotations

import shutil
from base64 import b64encode
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import ValidationError

from deploy.cache import SUITE_NAME
from deploy.errors import DeployError, HostUnreachable, NotDeployable, ServerFailed, TransferFailed
from deploy.sftp import Sftp
from deploy.target import NO_FILES, ExtraFiles, check_release_id, entries_of, model_files, source_manifest
from deploy.transfer import Endpoint, Rsync, has_rsync
from deploy.wire import (
    Activate,
    Begin,
    Current,
    Health,
    Hello,
    HelloAnswer,
    Parcel,
    Probe,
    Prune,
    Request,
    Seal,
    SetActive,
    Slot,
    Verify,
)
from registry.files import sha256_file
from registry.manifests import FileEntry, Manifest
from registry.serving import ServerHealth, SetActiveAnswer
from registry.values import Record

R = TypeVar("R", bound=Record)


class Asks(Protocol):
    """A gateway, or a fake of one."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it leads."""

    def ask(self, request: Request) -> object:
        """The gate's answer, or its error."""


class Carrier(Protocol):
    """Brings files into a slot; what arrived is proved by the gate, not believed of the carrier."""

    def carry(self, source: Path, *, names: Iterable[str], slot: Slot, use_base: bool) -> None:
        """`TransferFailed` where they could not be brought."""


class FileCarrier:
    """rsync where both hosts have it, else SFTP."""

    def __init__(self, rsync: Rsync, *, sftp: Sftp) -> None:
        self._rsync = rsync
        self._sftp = sftp

    def carry(self, source: Path, *, names: Iterable[str], slot: Slot, use_base: bool) -> None:
        """Either way resumes what a killed transfer left."""
        if has_rsync() and slot.has_rsync:
            self._rsync.push(source, names=names, slot=slot, use_base=use_base)
            return
        side = "the other host, or no rrsync beside it" if has_rsync() else "this host"
        try:
            self._sftp.push(source, names=names, slot=slot)
        except DeployError as error:
            raise TransferFailed(
                f"There is no rsync on {side}, and SFTP failed too: {error.message}", remedy=error.remedy
            ) from error


class RemoteTarget:
    """Releases on a host behind ssh: the same contract as a directory here."""

    def __init__(self, gateway: Asks, *, carrier: Carrier) -> None:
        self._gateway = gateway
        self._carrier = carrier

    def push(self, source: Path, *, release_id: str, extra_files: ExtraFiles = NO_FILES) -> str:
        """Ask for room, send the model files, have them verified and put in place there."""
        check_release_id(release_id)
        manifest = _released(source)
        manifest = manifest.changed(files=manifest.files | entries_of(extra_files))
        parcel = _parcel(
            "release", release_id, files=manifest.files, manifest=manifest, extra_files=extra_files
        )
        return send(parcel, source=source, gateway=self._gateway, carrier=self._carrier)

    def verify(self, release_id: str) -> Manifest:
        """Every sha256 is read there."""
        check_release_id(release_id)
        return _parse(Manifest, self._gateway.ask(Verify(release_id=release_id)))

    def activate(self, release_id: str, *, is_return: bool = False) -> None:
        """A symbolic link and a rename, there."""
        check_release_id(release_id)
        self._gateway.ask(Activate(release_id=release_id, is_return=is_return))

    def current(self) -> str | None:
        """What `current` points at, there."""
        answer = self._gateway.ask(Current())
        return None if answer is None else str(answer)

    def prune(self, *, keep: int, protect: Iterable[str]) -> list[str]:
        """Never what the server there serves or loads."""
        answer = self._gateway.ask(Prune(keep=keep, protect=tuple(protect)))
        return [str(name) for name in answer] if isinstance(answer, list) else []


class GateDoor:
    """The inference server of that host, asked by its gate on loopback: its admin key stays there."""

    def __init__(self, gateway: Asks) -> None:
        self._gateway = gateway

    def health(self) -> ServerHealth:
        """What it serves."""
        return _parse(ServerHealth, self._ask(Health()))

    def set_active(self, release_id: str) -> SetActiveAnswer:
        """Load a release beside the served one."""
        return _parse(SetActiveAnswer, self._ask(SetActive(release_id=release_id)))

    def probe(self, prompt: str, *, release_id: str) -> str:
        """Its answer to a prompt."""
        return str(self._ask(Probe(prompt=prompt, release_id=release_id)))

    def _ask(self, request: Request) -> object:
        try:
            return self._gateway.ask(request)
        except HostUnreachable as error:
            raise ServerFailed(error.message, remedy=error.remedy) from error


class Candidates:
    """What is to be evaluated on that host, sent once and kept there by content hash."""

    def __init__(self, gateway: Asks, *, carrier: Carrier) -> None:
        self._gateway = gateway
        self._carrier = carrier

    def send_model(self, source: Path, *, sha256: str) -> str:
        """A checkpoint without its training state; `TransferFailed` where it is not the named one."""
        manifest = _released(source)
        if manifest.weights_sha256 != sha256:
            raise TransferFailed(f"{source} holds weights {manifest.weights_sha256[:12]}, not {sha256[:12]}.")
        parcel = _parcel("model", sha256, files=manifest.files, manifest=manifest)
        return send(parcel, source=source, gateway=self._gateway, carrier=self._carrier)

    def send_suite(self, path: Path, *, sha256: str, scratch_dir: Path) -> str:
        """A suite's file. `scratch_dir` is an empty directory of the caller's."""
        try:
            entry = FileEntry(sha256=sha256_file(path), num_bytes=path.stat().st_size)
        except OSError as error:
            raise TransferFailed(f"The suite {path} cannot be read: {error.strerror}.") from error
        if entry.sha256 != sha256:
            raise TransferFailed(f"{path} has sha256 {entry.sha256[:12]}, not {sha256[:12]}.")
        shutil.copyfile(path, scratch_dir / SUITE_NAME)
        parcel = _parcel("suite", sha256, files={SUITE_NAME: entry}, manifest=None)
        return send(parcel, source=scratch_dir, gateway=self._gateway, carrier=self._carrier)


def hello(gateway: Asks) -> HelloAnswer:
    """Who is there; `DeployError` where nobody is."""
    return _parse(HelloAnswer, gateway.ask(Hello()))


def send(parcel: Parcel, *, source: Path, gateway: Asks, carrier: Carrier) -> str:
    """Bring a parcel; its path there. Sent a second time, whole, where what arrived is not what was sent.

    A file that was linked to an older release because size and time were the same is such a case.
    """
    for is_last in (False, True):
        slot = _parse(Slot, gateway.ask(Begin(parcel=parcel)))
        if slot.is_present:
            return slot.path
        try:
            carrier.carry(source, names=parcel.carried, slot=slot, use_base=not is_last)
        except TransferFailed as error:
            raise _cause(error, parcel=parcel, gateway=gateway) from error
        try:
            return str(gateway.ask(Seal(parcel=parcel)))
        except TransferFailed:
            if is_last:
                raise
    raise AssertionError("unreachable")


def _cause(error: TransferFailed, *, parcel: Parcel, gateway: Asks) -> DeployError:
    """The gate's refusal, where another deployer took over and cleared what lay there: files then vanish."""
    try:
        gateway.ask(Begin(parcel=parcel))
    except NotDeployable as refusal:
        return refusal
    except DeployError:
        pass
    return error


def _released(source: Path) -> Manifest:
    manifest = source_manifest(source)
    return manifest.changed(files=model_files(manifest))


def _parcel(
    kind: str,
    name: str,
    *,
    files: dict[str, FileEntry],
    manifest: Manifest | None,
    extra_files: ExtraFiles = NO_FILES,
) -> Parcel:
    fields = {"kind": kind, "name": name, "files": files, "manifest": manifest}
    contents = {file: b64encode(content) for file, content in extra_files.items()}
    try:
        return Parcel.model_validate({**fields, "contents": contents})
    except ValidationError as error:
        reason = error.errors(include_url=False, include_input=True)[0]
        raise TransferFailed(
            f"The {kind} {name[:20]} cannot be transferred: {reason['msg']} ({str(reason['input'])[:80]!r})."
        ) from None


def _parse(kind: type[R], answer: object) -> R:
    try:
        return kind.model_validate(answer)
    except ValidationError as error:
        raise DeployError(f"The other host is of another version: {error}") from None
