"""Recognise that memory ran out, free what can be freed, and say how much was used at most."""

from __future__ import annotations

import gc
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import torch

from trainer.errors import OutOfMemory

# What a RuntimeError says that is one: not every allocation goes through PyTorch's own CUDA allocator.
MESSAGES = (
    "can't allocate memory",  # c10's DefaultCPUAllocator
    "std::bad_alloc",  # the C++ library, through PyTorch
    "CUDA error: out of memory",  # the driver, as torch.AcceleratorError
    "CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS, for its handle and workspace
)


def is_out_of_memory(error: BaseException) -> bool:
    """True for PyTorch's own error, for a RuntimeError that says so, and for Python's MemoryError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in MESSAGES)


@contextmanager
def named_out_of_memory(message: str, *, remedy: str = "Use a device with more memory.") -> Iterator[None]:
    """Inside this block memory that runs out is the trainer's own `OutOfMemory`, with this message."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(message, remedy=remedy) from error


def free_memory() -> None:
    """Drop garbage, then give cached blocks back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def resident_bytes() -> int:
    """Main memory that this process has at this moment."""
    return int(psutil.Process().memory_info().rss)


def peak_memory_bytes(device: torch.device) -> int:
    """Of the device for CUDA, of the whole process for a CPU, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
