"""Names of records: short enough to type, and sorted by nothing but what they name."""

from __future__ import annotations

import secrets

from registry.files import sha256_text

ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"


def new_id(prefix: str) -> str:
    """A fresh random id such as `job-7f3k2a9c` (31^8 values; the primary key refuses a repeat)."""
    return f"{prefix}-" + "".join(secrets.choice(ALPHABET) for _ in range(8))


def id_of(prefix: str, *parts: str) -> str:
    """The id that the same parts always give: what makes a request idempotent."""
    return f"{prefix}-{sha256_text(chr(31).join(parts))[:12]}"


def checkpoint_id(job_id: str, *, step: int) -> str:
    """`ckpt-7f3k2a9c-00000120`; zero-padded, so that text order is step order."""
    return f"ckpt-{job_id.removeprefix('job-')}-{step:08d}"
