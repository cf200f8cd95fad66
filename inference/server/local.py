"""Releases run by transformers in this process, all requests together in one scheduler."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from inference.model import LoadedModel
from inference.server.backend import Activity
from inference.server.config import ServerConfig
from inference.server.releases import load_release
from inference.server.scheduler import Scheduler
from inference.server.work import Work
from registry.errors import ManifestError
from registry.model_shapes import read_shape

# Of a load: buffers on the way to the device, and what else asks for memory meanwhile.
SPARE_FACTOR = 1.2
SPARE_BYTES = 256 << 20

FreeBytes = Callable[[], int]


class LocalBackend:
    """`measure_free` tells the memory that a further model may take; by default the device is asked."""

    def __init__(self, config: ServerConfig, *, measure_free: FreeBytes | None = None) -> None:
        self._config = config
        self._measure_free = measure_free or self._free_bytes
        self._scheduler = Scheduler(max_running=config.max_running, max_tokens=config.max_batch_tokens)

    def load(self, directory: Path) -> LoadedModel:
        """Load the weights after what nobody holds any more was freed."""
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return load_release(directory, device=self._config.device, num_threads=self._config.num_threads)

    def has_room_for(self, directory: Path) -> bool:
        """By the size of its weights: the caches are bounded for all models together."""
        try:
            shape = read_shape(directory)
        except ManifestError:
            return True  # loading it says what is wrong with it, and frees nothing before
        # A CPU uses float32; on CUDA weights keep the type that they were saved with, most often half of it.
        num_bytes = shape.num_parameters * (2 if self._uses_cuda else 4)
        return self._measure_free() >= SPARE_FACTOR * num_bytes + SPARE_BYTES

    def submit(self, work: Work) -> None:
        """To the one thread that generates."""
        self._scheduler.submit(work)

    def activity(self) -> Activity:
        """Of the scheduler."""
        return Activity(tuple(self._scheduler.running), self._scheduler.num_cached_tokens)

    def close(self) -> None:
        """End every generation at its next token."""
        self._scheduler.close()

    @property
    def _uses_cuda(self) -> bool:
        device = self._config.device
        return torch.cuda.is_available() if device == "auto" else device.startswith("cuda")

    def _free_bytes(self) -> int:
        if not self._uses_cuda:
            return int(psutil.virtual_memory().available)
        device = torch.device("cuda" if self._config.device == "auto" else self._config.device)
        free, _total = torch.cuda.mem_get_info(device)
        # What torch keeps for itself without using it serves a load as well.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
