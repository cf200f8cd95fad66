"""Fakes and real things keep the same contract."""

from __future__ import annotations

from datetime import timedelta

import pytest

from trainer.clock import Clock, SystemClock
from trainer.control import Control, FlagControl
from trainer.testing import FakeClock, ScriptedControl


@pytest.mark.parametrize("clock", [SystemClock(), FakeClock()], ids=["system", "fake"])
def test_a_clock_never_goes_back_and_tells_utc(clock: Clock) -> None:
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now() <= clock.now()
    assert clock.now().utcoffset() == timedelta(0)


def asked() -> FlagControl:
    control = FlagControl()
    control.ask("pause")
    return control


@pytest.mark.parametrize(
    "control", [asked(), ScriptedControl(request="pause", after_steps=0)], ids=["flag", "scripted"]
)
def test_a_request_stays(control: Control) -> None:
    assert [control.request, control.request] == ["pause", "pause"]


@pytest.mark.parametrize("control", [FlagControl(), ScriptedControl(after_steps=1)], ids=["flag", "scripted"])
def test_without_a_request_a_run_goes_on(control: Control) -> None:
    assert control.request is None


def test_the_first_request_wins() -> None:
    control = asked()
    control.ask("stop")
    assert control.request == "pause"
