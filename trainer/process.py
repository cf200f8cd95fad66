"""`python -m trainer JOB.json`: one job, as a process of its own.

| exit code | meaning |
|---|---|
| 0 | finished, or stopped or paused on request with its progress saved |
| 1 | an error nobody foresaw; the traceback is on standard error |
| 2 | the job file or command line cannot be used |
| 3 | the data cannot be trained on |
| 4 | training diverged |
| 5 | out of memory |
| 6 | the model cannot be loaded or learnt from |
| 7 | the disk is full |
| 8 | the supervisor is gone |
| 9 | one of several processes: another is gone, or ended the run and said why |
| 10 | a file or a process on another machine cannot be reached |
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import NoReturn

from registry.errors import TandemError
from registry.os_errors import outage_behind
from trainer.config.job import JobConfig, read_job
from trainer.control import FlagControl
from trainer.errors import ConfigError, TrainerError
from trainer.launch import launch
from trainer.leash import Leash, watch_parent
from trainer.messages import ChildMessage, Failed, FailureKind, Finished, Warned
from trainer.ranks import check_ranks, num_ranks, rank
from trainer.wire import LineWriter, claim_stdout

STDIN = 0
EXIT_CODES: dict[FailureKind, int] = {
    "internal": 1,
    "config": 2,
    "data": 3,
    "diverged": 4,
    "out_of_memory": 5,
    "model": 6,
    "disk": 7,
    "orphaned": 8,
    "peer_lost": 9,
    "network": 10,
}
BLAMES_A_CAUSE: tuple[FailureKind, ...] = ("internal", "config", "data", "model")
UNSAID: tuple[FailureKind, ...] = ("orphaned", "peer_lost")  # nobody listens, or another said it
LAST_WORDS = b"The control pipe is closed: the supervisor is gone. To train without one, pass --alone.\n"

Emit = Callable[[ChildMessage], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job of the command line; the exit code."""
    arguments = _parser().parse_args(argv)
    if arguments.processes > 1:
        return launch(_without_processes(arguments), num_processes=arguments.processes)
    is_terminal = sys.stdout.isatty()
    is_alone = arguments.alone or sys.stdin is None or sys.stdin.isatty()
    try:
        check_ranks()
    except ConfigError as error:
        return _fail(error, emit=_unheard if is_terminal else LineWriter(claim_stdout()))
    if num_ranks() > 1:
        watch_parent(on_gone=_die)
    control = FlagControl()
    _obey_signals(control)
    with ExitStack() as stack:
        emit = _open_output(claim_stdout(), is_terminal=is_terminal, stack=stack)
        return run(
            arguments.job, emit=emit, control=control, is_alone=is_alone, overrides=arguments.overrides
        )


def run(
    job: Path,
    *,
    emit: Emit,
    control: FlagControl,
    is_alone: bool = True,
    overrides: Sequence[str] = (),
) -> int:
    """Read a job file and train it; failures are emitted as `Failed` and named by the exit code.

    `overrides`, `section.key=value` each, stand above the file.

    Unless `is_alone`, commands are read from standard input, and its end is the end of the process.
    """
    try:
        config = read_job(job, overrides=overrides)
        emit = emit if is_alone or rank() else _put_on_leash(emit, control=control)
        _train(config, emit=emit, control=control)
    except Exception as error:  # noqa: BLE001 - whatever happens, the supervisor is told
        return _fail(error, emit=emit)
    return 0


def _train(config: JobConfig, *, emit: Emit, control: FlagControl) -> None:
    # torch and transformers take seconds: a bad job file is refused before.
    from trainer.core.engine import TrainerEngine

    TrainerEngine(emit=emit, control=control).run_job(config)


def _fail(error: Exception, *, emit: Emit) -> int:
    """Tell first: the log may lie on the very disk that is full."""
    failed = _failure(error)
    kind = failed.kind if failed.kind in UNSAID else _tell(failed, emit=emit)
    with contextlib.suppress(OSError):
        if failed.kind == "internal":
            traceback.print_exception(error, file=sys.stderr)
        print(f"{failed.message} {failed.remedy}".strip(), file=sys.stderr)  # noqa: T201 - the log of this job
    return EXIT_CODES[kind]


def _tell(failed: Failed, *, emit: Emit) -> FailureKind:
    """How it ends: as told, or as an orphan where nobody listens."""
    try:
        emit(failed)
    except TrainerError as orphaned:
        return orphaned.kind
    return failed.kind


def _failure(error: Exception) -> Failed:
    failed = _failure_as_raised(error)
    # Whatever could not be read or written: the disk or the network is at fault, and not the job.
    outage = outage_behind(error) if failed.kind in BLAMES_A_CAUSE else None
    return failed if outage is None else failed.changed(kind=outage)


def _failure_as_raised(error: Exception) -> Failed:
    if isinstance(error, TrainerError):
        return Failed(kind=error.kind, message=_sayable(error.message), remedy=_sayable(error.remedy))
    if isinstance(error, MemoryError):
        return Failed(kind="out_of_memory", message="The process ran out of memory.")
    remedy = error.remedy if isinstance(error, TandemError) else "The job's log has the traceback."
    return Failed(kind="internal", message=_sayable(f"{type(error).__name__}: {error}"), remedy=remedy)


def _sayable(text: str) -> str:
    """Half of a surrogate pair, which no message can hold, as its number."""
    return text.encode(errors="backslashreplace").decode()


def _open_output(descriptor: int, *, is_terminal: bool, stack: ExitStack) -> Emit:
    if not is_terminal:
        return LineWriter(descriptor)
    if rank():  # the first process draws the bar; what goes wrong here is on standard error too
        return _unheard
    # rich is of use to a terminal alone.
    from rich.console import Console

    from trainer.terminal import TerminalReporter

    stream = stack.enter_context(os.fdopen(descriptor, "w"))
    return stack.enter_context(TerminalReporter(Console(file=stream)))


def _unheard(_message: ChildMessage) -> None:
    """Standard error alone is read."""


def _put_on_leash(emit: Emit, *, control: FlagControl) -> Emit:
    def warn(message: str) -> None:
        emit(Warned(message=message))

    leash = Leash(STDIN, control=control, warn=warn, on_broken=_die)
    leash.start()

    def emit_then_release(message: ChildMessage) -> None:
        if isinstance(message, Finished | Failed):
            leash.release()  # a supervisor may hang up as soon as it has read this
        emit(message)

    return emit_then_release


def _die() -> NoReturn:
    os.write(sys.stderr.fileno(), LAST_WORDS)
    os._exit(EXIT_CODES["orphaned"])


def _obey_signals(control: FlagControl) -> None:
    def stop(number: int, _frame: FrameType | None) -> None:
        control.ask("stop")
        if number == signal.SIGINT:  # a second Ctrl-C means at once
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Train one job: read JOB.json, write verified checkpoints.",
        epilog=(
            "On a terminal it shows a progress bar; Ctrl-C saves a checkpoint and ends. Elsewhere it writes "
            'one JSON message a line, takes {"command": "stop"} or {"command": "pause"} on standard input, '
            "and ends as soon as that is closed. Exit codes: 0 finished, stopped or paused; 1 unforeseen; "
            "2 job file; 3 data; 4 diverged; 5 out of memory; 6 model; 7 disk full; 8 supervisor gone; "
            "9 another of its processes gone; 10 network. torchrun may start it as well."
        ),
    )
    parser.add_argument("job", type=Path, metavar="JOB.json", help="job file, see trainer/config/job.py")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="over the job file; may be repeated",
    )
    parser.add_argument("--alone", action="store_true", help="do not listen to standard input")
    parser.add_argument(
        "--processes",
        type=_at_least_one,
        default=1,
        metavar="N",
        help="so many share each step, one a card; see environment.parallel",
    )
    return parser


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} processes cannot train: 1 or more can")
    return number


def _without_processes(arguments: argparse.Namespace) -> list[str]:
    overrides = [f"--set={override}" for override in arguments.overrides]
    return [str(arguments.job), *overrides, *(["--alone"] if arguments.alone else [])]
