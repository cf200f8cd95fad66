"""The deployer's side of the gate: requests over one ssh connection that trusts known hosts only."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Protocol

import paramiko
from pydantic import JsonValue, ValidationError

from deploy import errors
from deploy.errors import DeployError, HostRefused, HostUnreachable
from deploy.transfer import CONNECT_SECONDS, Endpoint
from deploy.wire import Envelope, Reply, Request

BLOCK_BYTES = 65536
MAX_ANSWER_BYTES = 16_000_000
KEEPALIVE_SECONDS = 5
PAUSE_SECONDS = (1.0, 5.0, 15.0)
ERRORS: dict[str, type[DeployError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, DeployError)
}


class Line(Protocol):
    """Bytes to a gate and back."""

    def sendall(self, data: bytes) -> None:
        """Write all of it."""

    def recv(self, nbytes: int) -> bytes:
        """What came, empty at the end; `OSError` after too long a silence."""

    def close(self) -> None:
        """Hang up."""


Connect = Callable[[Endpoint], Line]


class Gateway:
    """`ask` a host. It connects when first asked, and again after the line broke.

    `fence` is the token of the lease under which the caller acts.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        connect: Connect,
        fence: int = 0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._endpoint = endpoint
        self._connect = connect
        self._fence = fence
        self._sleep = sleep
        self._line: Line | None = None
        self._rest = b""

    def __repr__(self) -> str:
        return f"Gateway({self._endpoint})"

    @property
    def endpoint(self) -> Endpoint:
        """Where it leads."""
        return self._endpoint

    def ask(self, request: Request) -> JsonValue:
        """The gate's answer; its own error as it was raised there, `HostUnreachable` where the line is dead.

        A request is made again over a new line: each does nothing where it was done already.
        """
        for pause_seconds in PAUSE_SECONDS:
            try:
                return self._ask(request)
            except HostRefused:
                raise
            except HostUnreachable:
                self._sleep(pause_seconds)
        return self._ask(request)

    def _ask(self, request: Request) -> JsonValue:
        envelope = Envelope(fence=self._fence, request=request)
        try:
            self._dial().sendall(envelope.model_dump_json().encode() + b"\n")
            reply = self._reply()
        except (OSError, EOFError, paramiko.SSHException) as error:
            self.close()
            raise HostUnreachable(
                f"{self._endpoint} did not answer {request.verb}: {error or type(error).__name__}.",
                remedy="`tandem doctor` checks the link, the keys and the gate.",
            ) from error
        except BaseException:
            self.close()
            raise
        if reply.error:
            raise ERRORS.get(reply.error, DeployError)(reply.message, remedy=reply.remedy)
        return reply.value

    def close(self) -> None:
        """Hang up; the next question connects again."""
        line, self._line, self._rest = self._line, None, b""
        if line is not None:
            with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
                line.close()

    def _dial(self) -> Line:
        if self._line is None:
            self._line = self._connect(self._endpoint)
        return self._line

    def _reply(self) -> Reply:
        while True:
            text = self._read_line()
            if b'"is_beat"' in text[:20]:
                continue
            try:
                return Reply.model_validate_json(text)
            except ValidationError:
                self.close()
                raise DeployError(
                    f"{self._endpoint} answered with no reply of this version: {text[:200]!r}",
                    remedy="Is its command key tied to the gate? `tandem init-host --role intel` shows how.",
                ) from None

    def _read_line(self) -> bytes:
        while b"\n" not in self._rest:
            block = self._dial().recv(BLOCK_BYTES)
            if not block:
                raise EOFError("it hung up")
            self._rest += block
            if len(self._rest) > MAX_ANSWER_BYTES:
                raise OSError("it talks without end")
        line, _, self._rest = self._rest.partition(b"\n")
        return line


class _SshLine:
    """A channel and the client that it hangs on: both are closed together."""

    def __init__(self, client: paramiko.SSHClient, channel: paramiko.Channel) -> None:
        self._client = client
        self._channel = channel

    def sendall(self, data: bytes) -> None:
        self._channel.sendall(data)

    def recv(self, nbytes: int) -> bytes:
        return bytes(self._channel.recv(nbytes))

    def close(self) -> None:
        self._client.close()


def connect_by_ssh(*, silence_seconds: float) -> Connect:
    """Connections whose every read ends after so long a silence. The gate beats every two seconds."""

    def connect(endpoint: Endpoint) -> Line:
        client = open_client(endpoint, silence_seconds=silence_seconds)
        try:
            channel = open_channel(
                client, silence_seconds=silence_seconds, begin=lambda it: it.exec_command("gate")
            )
        except BaseException:
            client.close()
            raise
        return _SshLine(client, channel)

    return connect


def open_channel(
    client: paramiko.SSHClient, *, silence_seconds: float, begin: Callable[[paramiko.Channel], object]
) -> paramiko.Channel:
    """A channel on which every wait has an end, also that for what is begun on it to begin."""
    transport = client.get_transport()
    assert transport is not None  # noqa: S101 - connected just now
    channel = transport.open_session(timeout=silence_seconds)
    channel.settimeout(silence_seconds)
    # paramiko waits for this answer without end; hung up upon, it raises.
    impatience = threading.Timer(silence_seconds, client.close)
    impatience.daemon = True
    impatience.start()
    try:
        begin(channel)
    finally:
        impatience.cancel()
    return channel


def open_client(endpoint: Endpoint, *, silence_seconds: float) -> paramiko.SSHClient:
    """An ssh client that refuses an unknown host and a changed key, and offers one key only."""
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    try:
        client.load_host_keys(str(endpoint.known_hosts))
        client.connect(
            endpoint.host,
            port=endpoint.port,
            username=endpoint.user,
            key_filename=str(endpoint.key),
            timeout=CONNECT_SECONDS,
            banner_timeout=silence_seconds,
            auth_timeout=silence_seconds,
            channel_timeout=silence_seconds,
            allow_agent=False,
            look_for_keys=False,
        )
        if (transport := client.get_transport()) is not None:
            transport.set_keepalive(KEEPALIVE_SECONDS)
    except (OSError, EOFError, paramiko.SSHException) as error:
        client.close()
        raise _unreachable(endpoint, error) from None
    return client


def _unreachable(endpoint: Endpoint, error: Exception) -> HostUnreachable:
    if isinstance(error, FileNotFoundError):
        return HostRefused(
            f"{error.filename} is missing, so {endpoint} cannot be reached.",
            remedy="`tandem init-host` makes the keys and known_hosts.",
        )
    if isinstance(error, paramiko.BadHostKeyException):
        return HostRefused(
            f"{endpoint} shows another host key than the known one.",
            remedy="Compare its key there before you change known_hosts: someone may stand between.",
        )
    if isinstance(error, paramiko.AuthenticationException):
        return HostRefused(
            f"{endpoint} refuses the key {endpoint.key.name}.",
            remedy="Install its line in authorized_keys there.",
        )
    if "not found in known_hosts" in str(error):
        return HostRefused(
            f"{endpoint} is not in known_hosts.",
            remedy=f"Compare its key there, then add it to {endpoint.known_hosts}.",
        )
    return HostUnreachable(
        f"{endpoint} cannot be reached: {error or type(error).__name__}.", remedy="Is it on, and its sshd up?"
    )
