"""What `tandem doctor` finds out about hosts behind ssh: both keys, the gate, rsync, disk, clock, version."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from config.settings import Settings
from deploy.errors import DeployError
from deploy.gateway import open_client
from deploy.remote import hello
from deploy.transfer import Endpoint
from deploy.wire import HelloAnswer
from workers.doctor import Finding, clock_finding, free_finding
from workers.remotes import RemoteHost, endpoint, key_path, open_remote


class OpenHost(Protocol):
    """`open_remote`, or a fake of it."""

    def __call__(self, settings: Settings, *, host: str) -> AbstractContextManager[RemoteHost]:
        """Everything that can be asked of that host."""


Admit = Callable[[Endpoint], None]


def peer_findings(
    settings: Settings,
    *,
    version: str,
    clock: Callable[[], float],
    open_host: OpenHost = open_remote,
    admit: Admit | None = None,
) -> Iterator[Finding]:
    """Of every host that the settings name; none where all is on this machine.

    `version` is this host's tandem; `admit` tries the data key and raises where it is refused.
    """
    for host in settings.deploy.all_hosts:
        try:
            with open_host(settings, host=host) as remote:
                answer = hello(remote.gateway)
        except DeployError as error:
            yield Finding(check=f"{host} gate", state="failed", found=error.message, remedy=error.remedy)
            for what in ("clock", "disk", "rsync", "version"):
                yield Finding(check=f"{host} {what}", state="unknown", found="its gate could not be asked")
        else:
            yield from _answered(host, answer, version=version, now=clock())
            if len(settings.deploy.all_hosts) > 1:
                yield _name(host, answer)
        yield _data_key(host, settings=settings, admit=admit)


def _answered(host: str, answer: HelloAnswer, *, version: str, now: float) -> Iterator[Finding]:
    served = answer.current or "nothing yet"
    yield Finding(check=f"{host} gate", state="ok", found=f"answers the command key; current is {served}")
    yield clock_finding(now - answer.time.timestamp(), check=f"{host} clock", other="it")
    yield free_finding(answer.free_bytes, check=f"{host} disk", where=answer.releases_dir)
    if answer.has_rsync:
        yield Finding(check=f"{host} rsync", state="ok", found="rsync and rrsync are there")
    else:
        found = "rsync or rrsync is missing there: files go by SFTP, whole and slowly"
        remedy = (
            "Install rsync there, then `tandem init-host` with --force, and its lines into authorized_keys."
        )
        yield Finding(check=f"{host} rsync", state="warning", found=found, remedy=remedy)
    found = f"tandem {answer.version} there, {version} here"
    if answer.version == version:
        yield Finding(check=f"{host} version", state="ok", found=found)
    else:
        remedy = "Bring both hosts to the newest."
        yield Finding(check=f"{host} version", state="failed", found=found, remedy=remedy)


def _name(host: str, answer: HelloAnswer) -> Finding:
    """Of several hosts, the one that asks for a candidate is found by the name that it asks under."""
    if answer.host == host:
        return Finding(check=f"{host} name", state="ok", found="it goes by the same name")
    return Finding(
        check=f"{host} name",
        state="warning",
        found=f"it calls itself {answer.host}: what it is to evaluate goes to all hosts",
        remedy=f"There: `tandem init-host --name {host} --force`, with its other options as before.",
    )


def _data_key(host: str, *, settings: Settings, admit: Admit | None) -> Finding:
    """The key that carries files is asked for nothing but to be let in."""
    there = endpoint(settings, host=host, key=key_path(settings, "data"))
    try:
        (admit or _admit(settings.deploy.silence_seconds))(there)
    except DeployError as error:
        return Finding(check=f"{host} data key", state="failed", found=error.message, remedy=error.remedy)
    return Finding(check=f"{host} data key", state="ok", found=f"{there} lets it in")


def _admit(silence_seconds: float) -> Admit:
    def admit(there: Endpoint) -> None:
        open_client(there, silence_seconds=silence_seconds).close()

    return admit
