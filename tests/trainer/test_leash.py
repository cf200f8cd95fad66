"""The control pipe: commands come down it, and its end is the end of the trainer."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from trainer.control import FlagControl
from trainer.leash import Leash


class Held:
    """A leash on a pipe whose other end this test holds; `follow` is called without a thread."""

    def __init__(self) -> None:
        self.control = FlagControl()
        self.warnings: list[str] = []
        self.num_broken = 0
        self._reader, self._writer = os.pipe()
        self.leash = Leash(
            self._reader, control=self.control, warn=self.warnings.append, on_broken=self._break
        )

    def hear(self, *chunks: bytes) -> None:
        """All that is ever said, and then the pipe ends."""
        for chunk in chunks:
            os.write(self._writer, chunk)
        os.close(self._writer)
        self.leash.follow()
        os.close(self._reader)

    def _break(self) -> None:
        self.num_broken += 1


@pytest.fixture
def held() -> Held:
    return Held()


@pytest.mark.parametrize("command", ["stop", "pause"])
def test_a_command_is_passed_on(held: Held, command: str) -> None:
    held.hear(f'{{"command": "{command}"}}\n'.encode())
    assert held.control.request == command


def test_the_first_command_stays(held: Held) -> None:
    held.hear(b'{"command": "pause"}\n{"command": "stop"}\n')
    assert held.control.request == "pause"


def test_a_command_may_arrive_in_pieces(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.leash.READ_BYTES", 5)
    held.hear(b'\n{"command": ', b'"stop"}\n')
    assert held.control.request == "stop"


@pytest.mark.parametrize("line", [b"stop", b'{"command": "fly"}', b"\xff", b"{}"])
def test_what_is_no_command_is_warned_of(held: Held, line: bytes) -> None:
    held.hear(line + b"\n")
    assert held.control.request is None
    assert len(held.warnings) == 1
    assert "Known are stop and pause" in held.warnings[0]


def test_half_a_command_is_none(held: Held) -> None:
    held.hear(b'{"command": "stop"}')
    assert held.control.request is None


def test_its_end_means_that_the_supervisor_is_gone(held: Held) -> None:
    held.hear()
    assert held.num_broken == 1


def test_once_released_neither_its_end_nor_a_command_means_anything(held: Held) -> None:
    held.leash.release()
    held.hear(b'{"command": "stop"}\n')
    assert (held.num_broken, held.control.request) == (0, None)


def test_a_pipe_that_cannot_be_read_is_broken() -> None:
    broken: list[bool] = []
    on_broken: Callable[[], None] = lambda: broken.append(True)  # noqa: E731
    Leash(-1, control=FlagControl(), warn=print, on_broken=on_broken).follow()
    assert broken == [True]
