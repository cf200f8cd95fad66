"""`GET /info`, `/gpu`, `/system`, `/jobs`: what the server is, what it stands on, what it is at."""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch
from pydantic import AwareDatetime, Field

from inference.model import LoadedModel, TextModel
from inference.server.config import ServerConfig
from inference.server.engine import Engine
from registry.records import Record
from registry.serving import RunningReply

LIMITS = {"max_new_tokens", "max_prompt_tokens", "max_running", "max_waiting", "max_batch_tokens"}


class ServerInfo(Record):
    """`GET /info`: the served model, None where there is none, and the server's limits.

    Device, type and number of parameters are None where another process runs the model.
    """

    release_id: str | None
    engine: str
    weights_sha256: str | None = None
    loaded_at: AwareDatetime | None = None
    device: str | None = None
    dtype: str | None = None
    num_parameters: int | None = None
    max_positions: int | None = None
    max_new_tokens: int
    max_prompt_tokens: int
    max_running: int
    max_waiting: int
    max_batch_tokens: int


class GpuInfo(Record):
    """A CUDA device, as torch sees it. `torch_bytes` is what this process holds."""

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    torch_bytes: int


class GpuList(Record):
    """`GET /gpu`: empty where the server runs on a CPU."""

    devices: tuple[GpuInfo, ...]


class SystemInfo(Record):
    """`GET /system`: the machine, and this process on it."""

    num_cpus: int
    load_1_minute: float
    load_15_minutes: float
    memory_total_bytes: int
    memory_available_bytes: int
    process_bytes: int
    disk_free_bytes: int = Field(description="where the releases lie")
    num_threads: int


class RunningRequests(Record):
    """`GET /jobs`."""

    running: tuple[RunningReply, ...]
    num_waiting: int
    num_cached_tokens: int


def server_info(engine: Engine, *, config: ServerConfig) -> ServerInfo:
    """What answers, and within which limits."""
    limits = config.model_dump(include=LIMITS)
    if engine.active_id is None:
        return ServerInfo(release_id=None, engine=config.engine, **limits)
    release = engine.active()
    return ServerInfo(
        release_id=release.release_id,
        weights_sha256=release.loaded.weights_sha256,
        loaded_at=release.loaded_at,
        engine=config.engine,
        max_positions=release.loaded.max_positions,
        **_of_the_weights(release.loaded),
        **limits,
    )


def _of_the_weights(loaded: TextModel) -> dict[str, Any]:
    """Known where the model lies in this process."""
    if not isinstance(loaded, LoadedModel):
        return {}
    parameters = list(loaded.model.parameters())
    return {
        "device": str(loaded.device),
        "dtype": str(parameters[0].dtype).removeprefix("torch."),
        "num_parameters": sum(parameter.numel() for parameter in parameters),
    }


def running_requests(engine: Engine) -> RunningRequests:
    """What is under way, and how many wait."""
    return RunningRequests(
        running=tuple(engine.running()),
        num_waiting=engine.num_waiting,
        num_cached_tokens=engine.num_cached_tokens,
    )


def gpu_list() -> GpuList:
    """Every CUDA device."""
    return GpuList(devices=tuple(_gpu(index) for index in range(torch.cuda.device_count())))


def system_info(config: ServerConfig) -> SystemInfo:
    """At this moment."""
    memory, load = psutil.virtual_memory(), os.getloadavg()
    return SystemInfo(
        num_cpus=os.cpu_count() or 1,
        load_1_minute=load[0],
        load_15_minutes=load[2],
        memory_total_bytes=memory.total,
        memory_available_bytes=memory.available,
        process_bytes=psutil.Process().memory_info().rss,
        disk_free_bytes=psutil.disk_usage(str(config.releases_dir)).free,
        num_threads=torch.get_num_threads(),
    )


def _gpu(index: int) -> GpuInfo:
    free, total = torch.cuda.mem_get_info(index)
    return GpuInfo(
        index=index,
        name=torch.cuda.get_device_name(index),
        total_bytes=total,
        free_bytes=free,
        torch_bytes=torch.cuda.memory_allocated(index),
    )
