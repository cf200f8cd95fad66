"""Every setting, from the environment (`TANDEM_...`), `.env`, `tandem.toml`, then the defaults here.

Nested settings are written with two underscores: `TANDEM_REDIS__PORT=6400`. Names that do not exist are
refused, so a misspelt setting never silently keeps its default.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

from pydantic import BaseModel, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableValue

from config.closed import Section
from config.errors import SettingsError
from config.home import Home
from config.overrides import check_overrides, in_force
from config.sections import advice
from config.sources import CONFIG_FILE, DOTENV_FILE, PREFIX, read_dotenv, setting_at, variable_of
from config.training import TrainingSettings
from config.unknown import job_advice, setting_meant
from deploy.config import HostName, RemoteSettings
from inference.server.config import VllmConfig
from intelligence.contamination import ContaminationLimits
from intelligence.scores import RankingWeights
from intelligence.traffic import TrafficLimits
from registry.calibrations import CalibrationRules
from registry.messages import AccuracyLimits, RegressionLimits
from registry.order import QueueRules
from trainer.config.hyperparameters import Hyperparameters
from trainer.config.job import DEVICE

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class RedisSettings(Section):
    """The bell. Without a url, `tandem up` runs its own on loopback."""

    url: SecretStr | None = Field(
        default=None,
        description="redis[s]://user:password@host:port/0; no password: that in secrets/redis_password",
    )
    port: int = Field(default=6390, ge=1, le=65535, description="of the embedded Redis")
    ca: Path | None = Field(default=None, description="of rediss://; none: the system's authorities")
    certificate: Path | None = Field(default=None, description="shown to a Redis that asks for one")
    key: Path | None = Field(default=None, description="of that certificate")
    signed: bool = Field(default=False, description="take signed messages only; keys in secrets/signing")


class GuardSettings(Section):
    """When a GPU counts as free for the next piece of work."""

    reserve_bytes: int = Field(
        default=500_000_000, ge=0, description="left free: the driver and other programs need some"
    )
    may_share: bool = Field(default=False, description="begin beside foreign processes if memory suffices")
    locks_cpu: bool = Field(default=False, description="one role at a time on a CPU too")
    defer_seconds: float = Field(default=60.0, gt=0, description="an evaluation that waits is asked again")


class EvaluationSettings(Section):
    """What the intelligence worker does with a checkpoint."""

    device: str = Field(default="auto", pattern=DEVICE)
    num_threads: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    # An evaluation of 0.6B on 1 000 rows takes minutes; a lost message should not cost an hour.
    retry_after_seconds: float = Field(default=900.0, gt=0)
    max_asks: int = Field(default=3, ge=1, description="then the checkpoint's verdict is unknown")
    # More would wait in a queue until they count as lost, and be asked again there.
    asked_at_once: int = Field(
        default=2, ge=1, description="of each host: one is worked on, one comes meanwhile"
    )


class RankingSettings(Section):
    """The composite score (design, section 6)."""

    weights: RankingWeights = RankingWeights()
    min_checkpoints: int = Field(default=3, ge=1)
    num_resamples: int = Field(default=2000, ge=200, description="draws of the bootstrap")


class DeploymentSettings(Section):
    """How a release reaches the inference server, and when its first requests take it back."""

    keep_releases: int = Field(default=3, ge=2, description="besides current and previous, never removed")
    probe_prompt: str = Field(default="Spell this word backward (example: sun -> nus): cat", min_length=1)
    timeout_seconds: float = Field(default=120.0, gt=0)
    traffic: TrafficLimits = TrafficLimits()


class ServerSettings(Section):
    """The inference server."""

    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=1, le=65535)
    engine: Literal["transformers", "vllm"] = "transformers"
    vllm: VllmConfig = VllmConfig()
    swap: Literal["auto", "beside", "pause"] = Field(
        default="auto", description="a new release beside the old, or in its place; auto: by free memory"
    )
    max_pause_seconds: float = Field(default=60.0, gt=0, description="a request waits so long for a swap")
    device: str = Field(default="auto", pattern=DEVICE)
    num_threads: int = Field(default=1, ge=1)
    max_new_tokens: int = Field(default=512, ge=1, description="a request may ask for less")
    max_running: int = Field(default=16, ge=1, description="requests generated for at the same time")
    max_batch_tokens: int = Field(
        default=32_768, ge=1, description="prompts and replies under way; 112 KiB each for 0.6B in bf16"
    )
    needs_key: bool = Field(default=False, description="to read; beyond loopback it always does")

    @property
    def is_open(self) -> bool:
        """True where whoever reaches the port may ask: on loopback, unless a key is wanted there too."""
        return self.host in LOOPBACK and not self.needs_key


class FlowerSettings(Section):
    """Flower, on loopback behind a password kept in TANDEM_HOME/secrets."""

    port: int = Field(default=5555, ge=1, le=65535)
    user: str = Field(default="tandem", pattern="^[A-Za-z0-9_.-]+$")


class ScheduleSettings(Section):
    """Seconds between the ticks of beat (design, section 4)."""

    sweep_seconds: float = Field(default=30.0, gt=0)
    inbox_seconds: float = Field(default=5.0, gt=0, description="the inbox and the control folder")
    inbox_settle_seconds: float = Field(
        default=2.0, ge=0, description="a file still being copied is left alone"
    )
    judgement_seconds: float = Field(default=300.0, gt=0, description="verdicts and tests that are owed")
    ranking_seconds: float = Field(default=600.0, gt=0)
    deployment_seconds: float = Field(default=600.0, gt=0)


class ProjectionSettings(Section):
    """What is written for people from the registry."""

    completed_days: float = Field(
        default=7.0, gt=0, le=3650, description="a job stays so long in queue/recently_completed"
    )


class Settings(BaseSettings):
    """All of it. `home`, `name` and `registry_url` stand alone; the rest is in sections."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        dotenv_filtering="match_prefix",
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,
    )

    home: Path = Path("var")
    name: HostName | None = Field(
        default=None, description="of this host, as the others know it; its own host name if unset"
    )
    registry_url: SecretStr | None = Field(
        default=None,
        description="SQLite in home if unset; postgresql://USER@HOST/DATABASE, its password in "
        "secrets/registry_password",
    )
    allowed_roots: tuple[Path, ...] = Field(default=(), description="datasets may also lie below these")
    log_level: str = Field(default="INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
    redis: RedisSettings = RedisSettings()
    training: TrainingSettings = TrainingSettings()
    queue: QueueRules = QueueRules()
    guard: GuardSettings = GuardSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    regression: RegressionLimits = RegressionLimits()
    testing: AccuracyLimits = AccuracyLimits()
    calibration: CalibrationRules = CalibrationRules()
    contamination: ContaminationLimits = ContaminationLimits()
    ranking: RankingSettings = RankingSettings()
    deployment: DeploymentSettings = DeploymentSettings()
    deploy: RemoteSettings = RemoteSettings()
    server: ServerSettings = ServerSettings()
    flower: FlowerSettings = FlowerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    projections: ProjectionSettings = ProjectionSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then `.env`, then `tandem.toml`."""
        del file_secret_settings
        for source in (env_settings, dotenv_settings):
            if isinstance(source, EnvSettingsSource):  # a section before what is named in it, which stays
                source.env_vars = dict(sorted(source.env_vars.items()))
        toml = TomlConfigSettingsSource(settings_cls, toml_file=CONFIG_FILE)
        return (init_settings, env_settings, dotenv_settings, toml)

    @property
    def host_name(self) -> str:
        """By which this host's workers, its gate and its answers are told from others'."""
        return self.name or socket.gethostname()

    @property
    def paths(self) -> Home:
        """Directories below `home`."""
        return _home_at(self.home)

    @property
    def database_url(self) -> str:
        """Of the registry, with its password."""
        if self.registry_url is not None:
            kept = self.paths.secrets / "registry_password"
            return _with_kept_password(self.registry_url.get_secret_value(), path=kept)
        return f"sqlite:///{self.paths.database}"

    @property
    def has_embedded_redis(self) -> bool:
        """True where `tandem up` runs Redis itself."""
        return self.redis.url is None

    @property
    def redis_url(self) -> str:
        """Of the broker, with its password."""
        if self.redis.url is not None:
            kept = self.paths.secrets / "redis_password"
            url = _with_kept_password(self.redis.url.get_secret_value(), path=kept)
            return _with_tls(url, redis=self.redis)
        password = quote(self.paths.secret("redis_password"), safe="")
        return f"redis://:{password}@127.0.0.1:{self.redis.port}/0"

    @property
    def server_url(self) -> str:
        """Of the inference server."""
        host = "127.0.0.1" if self.server.host == "0.0.0.0" else self.server.host  # noqa: S104 - a comparison
        return f"http://{host}:{self.server.port}"


def load_settings(**overrides: Any) -> Settings:
    """Read the settings; `SettingsError` names what is wrong and how to mend it."""
    _refuse_unknown_names({**_names_in_dotenv(), **os.environ})
    settings = _read(overrides)
    check_overrides(settings.training.hyperparameters)
    return settings.model_copy(update={"home": settings.home.expanduser().resolve()})


def setting_names() -> list[str]:
    """Every environment variable that tandem reads."""
    return sorted(f"{PREFIX}{name.upper()}" for name in _leaves(Settings))


def setting_lines(settings: Settings) -> list[tuple[str, str]]:
    """Each setting's environment variable with its value as JSON; secrets are masked.

    Of hyperparameters every one that is in force, whoever said so.
    """
    values = settings.model_dump(mode="json")
    values["training"]["hyperparameters"] = chosen = in_force(settings.training.hyperparameters)
    names: list[str] = []
    for name in _leaves(Settings):
        if name == "training__hyperparameters":
            names += [f"{name}__{one}" for one in chosen]
        elif not isinstance(_value_of(values, name=name), dict):
            names.append(name)
    return [(f"{PREFIX}{name.upper()}", json.dumps(_value_of(values, name=name))) for name in names]


def _read(overrides: Mapping[str, Any]) -> Settings:
    try:
        return Settings(_env_file=DOTENV_FILE, _env_file_encoding="utf-8", **overrides)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from None
    except UnreadableValue as error:
        raise SettingsError(
            f"A variable of the environment or of {DOTENV_FILE} cannot be read: {error}.",
            remedy="Write a section as a JSON object, or its settings one by one.",
        ) from None
    except RecursionError:
        raise SettingsError(
            f"What the environment, {DOTENV_FILE} or {CONFIG_FILE} says is nested too deeply to be read.",
            remedy="Write plain values, or lists of them.",
        ) from None
    except (ValueError, OSError) as error:
        raise SettingsError(f"{CONFIG_FILE} cannot be read: {error}.") from None


@lru_cache(maxsize=8)
def _home_at(root: Path) -> Home:
    return Home(root)


def _with_kept_password(url: str, *, path: Path) -> str:
    """The URL; where it names a user without a password, with the one that is kept in the file."""
    try:
        parts = urlsplit(url)
    except ValueError:  # whoever opens it says what is wrong
        return url
    if not parts.username or parts.password or not path.is_file():
        return url
    password = quote(path.read_text().strip(), safe="")
    if not password:
        return url
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:{password}@{host}").geturl()


def _with_tls(url: str, *, redis: RedisSettings) -> str:
    """A `rediss://` URL with what its server must prove, where Celery and every client of ours read it."""
    parts = urlsplit(url)
    if parts.scheme != "rediss":
        return url
    files = {"ssl_ca_certs": redis.ca, "ssl_certfile": redis.certificate, "ssl_keyfile": redis.key}
    named = {name: str(path) for name, path in files.items() if path is not None}
    return parts._replace(query=urlencode({"ssl_cert_reqs": "required", **named})).geturl()


def _value_of(values: Any, *, name: str) -> Any:
    for part in name.split("__"):
        values = values[part]
    return values


def _leaves(model: type[BaseModel], *, prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        yield prefix + name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, prefix=f"{prefix}{name}__")


def _names_in_dotenv() -> dict[str, str]:
    return {name: value or "" for name, value in read_dotenv().items() if name.startswith(PREFIX)}


def _refuse_unknown_names(environment: Mapping[str, str]) -> None:
    known = setting_names()
    for name in sorted(environment):
        is_ours = name.upper().startswith(PREFIX)
        inside_mapping = name.upper().startswith(f"{PREFIX}TRAINING__HYPERPARAMETERS__")
        if not is_ours or inside_mapping or name.upper() in known:
            continue
        path = setting_at(name)
        meant = setting_meant(path, known=_known())
        other = job_advice(path) or "`tandem config show` lists every setting."
        remedy = f"Did you mean {variable_of(meant)}?" if meant else other
        raise SettingsError(f"There is no setting {name}.", remedy=remedy)


def _known() -> list[str]:
    """The dotted name of every setting, each hyperparameter included."""
    leaves = [leaf.replace("__", ".") for leaf in _leaves(Settings)]
    return leaves + [f"training.hyperparameters.{name}" for name in Hyperparameters.model_fields]


def _named(place: list[str]) -> list[str]:
    """Of pydantic's account of a hyperparameter its name: kinds of JSON values follow, which nobody wrote."""
    return place[:3] if place[:2] == ["training", "hyperparameters"] else place


def _explain(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    parts = _named([str(part) for part in problem["loc"]])
    path = ".".join(parts)
    if problem["type"] != "extra_forbidden":
        return f"{variable_of(path)} ({path} in {CONFIG_FILE}): {problem['msg']}."
    if len(parts) == 1 and advice(path):
        return f"{path} does not stand at the top level of {CONFIG_FILE}. {advice(path)}"
    meant = setting_meant(path, known=_known())
    hint = f"Did you mean {meant}?" if meant else job_advice(path)
    return f"There is no setting {path}. {hint}".rstrip()
