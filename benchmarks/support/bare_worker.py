"""The worker of the bare application.

celery -A benchmarks.support.bare_worker worker -Q bare -c 1
"""

from __future__ import annotations

from benchmarks.support.bare import NAME, app, configure
from benchmarks.support.told import tell_when_idle

__all__ = ["app"]

configure()
tell_when_idle(NAME)
