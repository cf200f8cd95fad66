"""The server's configuration and keys, read and judged before torch is loaded or a port opened."""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from inference.errors import ServerConfigError
from registry.records import Record

MIN_KEY_LENGTH = 16


class VllmConfig(Record):
    """A vLLM of this host: one process a release, on loopback.

    `command` and `arguments` surround the release's directory: `vllm serve DIRECTORY ...`. The server adds
    address, port, served name, and a key of its own by the environment.
    """

    command: tuple[str, ...] = Field(default=("vllm", "serve"), min_length=1)
    arguments: tuple[str, ...] = Field(default=(), description="such as --gpu-memory-utilization=0.8")
    start_seconds: float = Field(default=600.0, gt=0, description="compiling graphs takes minutes")


class ServerConfig(Record):
    """All that `python -m inference.server CONFIG.json` reads.

    `releases_dir` holds one directory a release and the symbolic link `current`. Key files hold one key
    each; without `read_key_file` whoever reaches the port may ask, which is allowed on loopback alone.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535, description="0 takes any free port")
    releases_dir: Path
    admin_key_file: Path
    read_key_file: Path | None = None
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    swap: Literal["auto", "beside", "pause"] = Field(
        default="auto", description="a new release beside the old, or in its place; auto: by free memory"
    )
    max_pause_seconds: float = Field(
        default=60.0, gt=0, description="a request waits so long for a release that is being put in place"
    )
    device: str = "auto"
    num_threads: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=1024, ge=1, le=32768)
    max_prompt_tokens: int = Field(default=4096, ge=1)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    max_running: int = Field(default=16, ge=1, description="requests generated for at the same time")
    max_batch_tokens: int = Field(
        default=32_768, ge=1, description="prompts and replies under way (0.6B in bf16: 112 KiB a token)"
    )
    max_waiting: int = Field(default=64, ge=1, description="requests accepted beyond those that run")
    shutdown_grace_seconds: int = Field(default=30, ge=1)


@dataclass(frozen=True)
class Keys:
    """The keys that open the server. `read` is `None` where everybody may ask."""

    admin: str = field(repr=False)
    read: str | None = field(repr=False)

    def may_read(self, key: str) -> bool:
        """True for either key, and for any where no read key is set. Takes the same time for every key."""
        if self.read is None:
            return True
        is_read, is_admin = _equal(key, self.read), self.may_administer(key)
        return is_read or is_admin

    def may_administer(self, key: str) -> bool:
        """True for the admin key. Takes the same time for every key."""
        return _equal(key, self.admin)


def load_config(path: Path) -> ServerConfig:
    """Read the JSON file; `ServerConfigError` names the field that is wrong."""
    try:
        return ServerConfig.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ServerConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, problem["loc"]))
        raise ServerConfigError(f"{path}: {place}: {problem['msg']}.".replace(": : ", ": ")) from None


def load_keys(config: ServerConfig) -> Keys:
    """Read the key files; `ServerConfigError` for a missing or short one, or an open door beyond loopback."""
    if config.read_key_file is None and not _is_loopback(config.host):
        raise ServerConfigError(
            f"The server would listen on {config.host} and answer whoever reaches it.",
            remedy="Set read_key_file, or host to 127.0.0.1.",
        )
    admin = _read_key(config.admin_key_file)
    read = None if config.read_key_file is None else _read_key(config.read_key_file)
    if read == admin:
        raise ServerConfigError("The read key and the admin key are the same.", remedy="Make two keys.")
    return Keys(admin=admin, read=read)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read_key(path: Path) -> str:
    try:
        key = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ServerConfigError(f"The key file {path} cannot be read: {reason}.") from None
    if len(key) < MIN_KEY_LENGTH or not key.isascii() or len(key.split()) != 1:
        raise ServerConfigError(
            f"The key file {path} does not hold one key of at least {MIN_KEY_LENGTH} characters.",
            remedy=f"Make one: openssl rand -hex 32 > {path}",
        )
    return key


def _equal(left: str, right: str) -> bool:
    return hmac.compare_digest(left.encode(), right.encode())
