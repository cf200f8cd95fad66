"""rsync's argument list, its exit codes, and names that it must never see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from deploy.errors import TransferFailed
from deploy.runner import Finished
from deploy.transfer import FINAL_CODES, RETRIED_CODES, Endpoint, Rsync, check_names
from deploy.wire import Slot

KEY, KNOWN = Path("/home/t/data_key"), Path("/home/t/known_hosts")
SLOT = Slot(
    is_present=False,
    directory="release-0123456789abcdef",
    incoming_dir="/srv/incoming",
    path="/srv/releases/r000001-aaaaaaaa",
    base="base",
    knows_fsync=True,
)


class FakeRunner:
    """Ends each command with the next code; `rsync --help` names `--fsync` unless told otherwise."""

    def __init__(self, *codes: int | None, errors: str = "", knows_fsync: bool = True) -> None:
        self.codes = list(codes)
        self.errors = errors
        self.help = "--fsync" if knows_fsync else ""
        self.commands: list[list[str]] = []

    def __call__(
        self, command: Sequence[str], *, timeout_seconds: float, environment: Mapping[str, str]
    ) -> Finished:
        if command[1] == "--help":
            return Finished(0, self.help, "")
        self.commands.append(list(command))
        return Finished(self.codes.pop(0), "", self.errors)


def rsync(run: FakeRunner, **options: object) -> Rsync:
    endpoint = Endpoint("intel", port=2222, user="tandem", key=KEY, known_hosts=KNOWN)
    fields = {"transfer_seconds": 60.0, "run": run, "sleep": lambda _: None, **options}
    return Rsync(endpoint, **fields)  # type: ignore[arg-type]


def push(run: FakeRunner, *, slot: Slot = SLOT, use_base: bool = True, **options: object) -> list[str]:
    rsync(run, **options).push(Path("/ckpt"), names=["a.json"], slot=slot, use_base=use_base)
    return run.commands[-1]


def test_files_go_whole_linked_to_the_release_before_and_synced() -> None:
    command = push(FakeRunner(0))
    assert command[0] == "rsync"
    for option in ("-a", "-W", "--partial", "--link-dest=/base", "--timeout=10", "--fsync"):
        assert option in command, option
    assert command[-2:] == ["/ckpt/", f"tandem@intel:{SLOT.directory}"]
    assert not any(part.startswith(("--rsh", "--bwlimit", "--rsync-path")) for part in command)
    ssh = command[command.index("-e") + 1]
    assert "StrictHostKeyChecking=yes" in ssh
    assert f"UserKnownHostsFile={KNOWN}" in ssh
    assert ssh.endswith(f"-i {KEY} -p 2222")


def test_options_follow_the_settings_and_what_both_sides_know() -> None:
    assert "--no-whole-file" in push(FakeRunner(0), delta=True)
    assert "--bwlimit=500" in push(FakeRunner(0), bandwidth_kib=500)
    assert "--fsync" not in push(FakeRunner(0, knows_fsync=False))
    assert "--fsync" not in push(FakeRunner(0), slot=SLOT.changed(knows_fsync=False))
    assert "--link-dest=/base" not in push(FakeRunner(0), use_base=False)
    assert "--link-dest=/base" not in push(FakeRunner(0), slot=SLOT.changed(base=None))


def test_what_arrived_of_a_file_is_used_by_the_next_attempt() -> None:
    assert "--no-whole-file" in push(FakeRunner(0), slot=SLOT.changed(has_partial=True))
    run = FakeRunner(30, 0)
    push(run)
    assert ["-W" in command for command in run.commands] == [True, False]


@pytest.mark.parametrize("code", sorted(RETRIED_CODES))
def test_a_broken_link_is_tried_four_times(code: int) -> None:
    run = FakeRunner(code, code, code, 0)
    push(run)
    assert len(run.commands) == 4
    with pytest.raises(TransferFailed, match=f"ended with {code} "):
        push(FakeRunner(*[code] * 4))


@pytest.mark.parametrize("code", [*sorted(FINAL_CODES), 2, 127, None])
def test_what_another_try_cannot_mend_is_final(code: int | None) -> None:
    run = FakeRunner(code, 0, errors="rsync: why")
    with pytest.raises(TransferFailed, match="rsync: why"):
        push(run)
    assert len(run.commands) == 1


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("Host key verification failed.", "known_hosts"),
        ("Permission denied (publickey).", "data key"),
        ("No user exists for uid 12345", "has no line in /etc/passwd"),
    ],
)
def test_what_ssh_refuses_is_not_tried_again(words: str, remedy: str) -> None:
    run = FakeRunner(255, 0, errors=words)
    with pytest.raises(TransferFailed, match=remedy):
        push(run)
    assert len(run.commands) == 1


@pytest.mark.parametrize(
    "name",
    ["--rsync-path=touch /tmp/x", "-e", "../up", "/abs", "a b", "a\nb", "", ".hidden", "a:b", "$x"],
)
def test_a_name_that_rsync_could_misread_never_reaches_it(name: str) -> None:
    with pytest.raises(TransferFailed, match="cannot be transferred"):
        check_names([name])


@pytest.mark.parametrize("host", ["-oProxyCommand=x", "a b", "a:b", "", "a;b", "a/b"])
def test_a_host_that_ssh_could_misread_is_refused(host: str) -> None:
    with pytest.raises(TransferFailed, match="is no account of a host"):
        Endpoint(host, port=22, user="tandem", key=KEY, known_hosts=KNOWN)


@pytest.mark.parametrize("path", ["relative", "/with space", "/quo'te", "/semi;colon"])
def test_a_key_path_that_ssh_could_misread_is_refused(path: str) -> None:
    with pytest.raises(TransferFailed, match="cannot be used with ssh"):
        Endpoint("intel", port=22, user="tandem", key=Path(path), known_hosts=KNOWN)


def test_no_rsync_here_is_said_with_the_remedy() -> None:
    class Missing(FakeRunner):
        def __call__(self, command: Sequence[str], **_: object) -> Finished:  # type: ignore[override]
            raise FileNotFoundError(command[0])

    with pytest.raises(TransferFailed, match="There is no rsync on this host"):
        push(Missing())
