"""A worker of the bare application.

BENCHMARK_CONTENDER=bare celery -A benchmarks.support.bare_worker worker -Q bare -c 1
"""

from __future__ import annotations

from benchmarks.support.bare import app, configure, contender
from benchmarks.support.told import tell_when_idle

__all__ = ["app"]

configure()
tell_when_idle(contender())
