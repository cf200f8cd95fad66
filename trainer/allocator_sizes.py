"""What allocators hold beyond what was asked of them, and the parts of an estimate that they are asked for.

On a CPU the C library gives blocks of over 32 MiB back at once and keeps smaller ones in a heap. That stays
as large as it was at its own worst moment, so what it needed when the last gradient was made lies beside the
large blocks of the next step's loss, though the two are never in use together. It also grows beyond what is
in use (`benchmarks/memory.py`).
"""

from __future__ import annotations

Part = tuple[int, int]  # bytes, and those of one of the blocks that they are made of

FULL, HALF = 4, 2  # bytes of a value

# What an allocator holds beyond what was asked of it at most: of the C library's heap, fitted to a grid of
# small models. CUDA's share is not measured.
ALLOCATOR_SHARE: dict[str, float] = {"cpu": 0.3, "cuda": 0.05}
LARGEST_HEAP_BLOCK = 32 << 20  # DEFAULT_MMAP_THRESHOLD_MAX of the GNU C library
# Programs that oneDNN compiles for each shape of a bfloat16 product and keeps: 15 MB were measured.
CPU_HALF_KERNELS = 15_000_000


def total(parts: list[Part]) -> int:
    """Bytes of all parts."""
    return sum(num_bytes for num_bytes, _ in parts)


def allocator_bytes(states: list[Part], *, moments: list[list[Part]], device: str, is_half: bool) -> int:
    """Beyond what is in use at the worst of the moments, which come one after another beside the states."""
    share, in_use = ALLOCATOR_SHARE[device], max(map(total, moments))
    if device == "cuda":
        return int(share * in_use)
    held = [_by_allocation([*states, *moment]) for moment in moments]
    heap, mapped = max(heap for heap, _ in held), max(mapped for _, mapped in held)
    kernels = CPU_HALF_KERNELS if is_half else 0
    return heap + mapped - total(states) - in_use + int(share * heap) + kernels


def _by_allocation(parts: list[Part]) -> tuple[int, int]:
    """Bytes in the C library's heap, and those in blocks of their own."""
    in_heap = sum(num_bytes for num_bytes, block in parts if block <= LARGEST_HEAP_BLOCK)
    return in_heap, total(parts) - in_heap
