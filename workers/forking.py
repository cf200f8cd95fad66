"""What a worker's processes inherit is never searched for garbage.

A full collection goes through every object of the imported packages: 0.1 s and more, at any moment, and each
page that it touches is copied for the process that touches it. What was there before the fork stays
(`gc.freeze`, made for this).
"""

from __future__ import annotations

import gc
from typing import Any

from celery import signals


@signals.worker_before_create_process.connect
def _set_aside(**_: Any) -> None:
    gc.collect()
    gc.freeze()
