"""A standing trouble is told once."""

import logging

import pytest

from workers.told import Told

log = logging.getLogger("test")


def test_a_trouble_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    for _ in range(3):
        told.once("disk", log=log, words="the disk is full")
    assert caplog.messages == ["the disk is full"]
    assert "disk" in told
    told.is_over("disk")
    told.once("disk", log=log, words="the disk is full again")
    assert caplog.messages == ["the disk is full", "the disk is full again"]


def test_one_trouble_hides_no_other(caplog: pytest.LogCaptureFixture) -> None:
    told = Told()
    told.once("disk", log=log, words="the disk is full")
    told.once("queue", log=log, words="the queue is full")
    assert caplog.messages == ["the disk is full", "the queue is full"]
