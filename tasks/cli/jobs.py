"""Commands about jobs: `submit`, `queue list`, `job list|show|wait|logs`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from registry.messages import ASKED
from registry.records import Event, TrainingJob
from registry.states import JobState, Priority
from tasks.api import JobHandle, Tandem
from tasks.cli.monitoring import monitoring_lines
from tasks.cli.output import console, jobs_table, print_json, queue_table, styled
from tasks.cli.pairs import parse_pairs
from tasks.cli.times import parse_time
from tasks.cli.watch import INTERRUPTED, watch_job
from tasks.watching import detail
from workers import training_statuses
from workers.errors import TaskFailed
from workers.outlook import look_ahead
from workers.status import job_line, recent_jobs
from workers.surroundings import read_surroundings

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Profile = Annotated[str | None, typer.Option(help="plain_sft, emoji_think, regime3, or one of your own.")]
Overlong = Annotated[str | None, typer.Option(help="Rows over max_length: drop, truncate or reject.")]
Reason = Annotated[str, typer.Option(help="Why, for the job's story.")]

queue_commands = typer.Typer(help="What waits for training.", no_args_is_help=True)
job_commands = typer.Typer(help="One training job.", no_args_is_help=True)


def register(cli: typer.Typer) -> None:
    """Add this room's commands."""
    cli.command("submit")(submit)
    cli.add_typer(queue_commands, name="queue")
    cli.add_typer(job_commands, name="job")


def submit(
    dataset: Annotated[Path, typer.Argument(help="JSONL file of chat rows.")],
    priority: Annotated[Priority, typer.Option(help="Queue.")] = Priority.NORMAL,
    name: Annotated[str | None, typer.Option(help="Name to show; the file's by default.")] = None,
    parent: Annotated[str, typer.Option(help="tip, served, base, or a checkpoint id.")] = "tip",
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Hyperparameter, as name=value; may be repeated.")
    ] = None,
    profile: Profile = None,
    overlong: Overlong = None,
    force: Annotated[bool, typer.Option("--force", help="Train again although the same job exists.")] = False,
    at: Annotated[
        str | None, typer.Option("--at", help="Not before: 2027-01-31T03:00 (local time), or +90m, +2h, +1d.")
    ] = None,
    after: Annotated[
        list[str] | None, typer.Option("--after", help="A job that must end well before; may be repeated.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the end; with --json a line for each change.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Submit a file for training."""
    handle = Tandem().submit(
        dataset,
        priority=priority,
        name=name,
        parent=parent,
        hyperparameters=parse_pairs(set_ or []),
        profile=profile,
        overlong=overlong,
        force=force,
        not_before=None if at is None else parse_time(at, now=datetime.now(UTC)),
        after=after or (),
        submitted_by="tandem submit",
    )
    _tell_submitted(handle, wait=wait, as_json=as_json)


@queue_commands.command("list")
def queue_list(as_json: Json = False) -> None:
    """Jobs in the order in which they will run, then those that are paused."""
    context = Tandem().context
    with context.registry.reading() as tx:
        outlook = look_ahead(tx, rules=context.settings.queue)
        paused = tx.find(TrainingJob, state=JobState.PAUSED, order_by="submitted_at")
        jobs = [*outlook.running, *outlook.waiting, *paused]
        lines = [outlook.line(job_line(job, now=tx.now), job=job, tx=tx) for job in jobs]
    if as_json:
        print_json(lines)
        return
    console.print(queue_table(lines) if lines else "Nothing runs, nothing waits, and nothing is paused.")


@queue_commands.command("set-priority")
def queue_set_priority(job_id: str, priority: Priority, reason: Reason = ASKED) -> None:
    """Put a job into another queue; it keeps its time of arrival."""
    job = Tandem().job(job_id).set_priority(priority, reason=reason)
    console.print(f"{job.id} is on {job.priority}.")


@queue_commands.command("move")
def queue_move(
    job_id: str,
    before: Annotated[str | None, typer.Option(help="The job that is to run right after it.")] = None,
    to_end: Annotated[bool, typer.Option("--to-end", help="Behind all others.")] = False,
    reason: Reason = ASKED,
) -> None:
    """Change a job's place in its queue: to the front, unless another place is named."""
    job = Tandem().job(job_id).move(before=before, to_end=to_end, reason=reason)
    where = f"before {before}" if before else "at the end" if to_end else "at the front"
    console.print(f"{job.id} is {where} of {job.priority}.")


@job_commands.command("list")
def job_list(as_json: Json = False) -> None:
    """The newest jobs, finished ones too."""
    context = Tandem().context
    with context.registry.reading() as tx:
        lines = [job_line(job, now=context.registry.clock()) for job in recent_jobs(tx)]
    if as_json:
        print_json(lines)
        return
    console.print(jobs_table(lines) if lines else "There are no jobs. `tandem submit FILE` makes one.")


@job_commands.command("show")
def job_show(
    job_id: str,
    watch: Annotated[bool, typer.Option("--watch", help="Show each change until its end.")] = False,
    as_json: Json = False,
) -> None:
    """A job with its whole story; with --watch its progress, and exit 1 unless it succeeds."""
    if watch:
        _check_success(watch_job(Tandem().job(job_id), as_json=as_json))
        return
    context = Tandem().context
    surroundings = read_surroundings(context.registry, job_id=job_id)
    with context.registry.reading() as tx:
        job = tx.get(TrainingJob, job_id)
        training = training_statuses.of_job(job, now=tx.now, surroundings=surroundings)
        line = look_ahead(tx, rules=context.settings.queue).line(job_line(job, now=tx.now), job=job, tx=tx)
        events = sorted(tx.find(Event, subject_id=job_id), key=lambda event: event.id or 0)
    if as_json:
        print_json(
            {
                "job": job.model_dump(mode="json"),
                "line": line.model_dump(mode="json"),
                "training": training.model_dump(mode="json"),
                "events": [event.model_dump(mode="json") for event in events],
            }
        )
        return
    console.print(jobs_table([line]))
    if job.state in (JobState.QUEUED, JobState.RUNNING):
        console.print(detail(line), markup=False, highlight=False)
    if job.note:
        console.print(job.note, markup=False, highlight=False, soft_wrap=True)
    for text in monitoring_lines(training):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    for event in events:
        step = f"{event.before or '–'} -> {event.after}"
        console.print(f"{event.at:%H:%M:%S}  {step:24} {event.actor}: {event.reason}", markup=False)


@job_commands.command("wait")
def job_wait(
    job_id: str, timeout: Annotated[float | None, typer.Option(help="Seconds.")] = None, as_json: Json = False
) -> None:
    """Wait until a job is finished; exit 1 unless it succeeded. With --json a line for each change."""
    if as_json:
        _check_success(watch_job(Tandem().job(job_id), as_json=True, timeout_seconds=timeout))
        return
    job = _wait(Tandem().job(job_id), timeout_seconds=timeout)
    console.print(f"{job.id} {styled(job.state)}")
    _check_success(job)


@job_commands.command("pause")
def job_pause(job_id: str, reason: Reason = ASKED) -> None:
    """Save at the next step and wait for `resume`."""
    _report(job_id, is_in_effect=Tandem().job(job_id).pause(reason=reason), command="pause")


@job_commands.command("resume")
def job_resume(job_id: str, reason: Reason = ASKED) -> None:
    """Back to the queue, to go on from where it stood."""
    _report(job_id, is_in_effect=Tandem().job(job_id).resume(reason=reason), command="resume")


@job_commands.command("stop")
def job_stop(job_id: str, reason: Reason = ASKED) -> None:
    """Save at the next step and end it as `stopped`, saying what was not used."""
    _report(job_id, is_in_effect=Tandem().job(job_id).stop(reason=reason), command="stop")


@job_commands.command("retry")
def job_retry(job_id: str, reason: Reason = ASKED) -> None:
    """Queue it again with three fresh attempts; it goes on from its last checkpoint."""
    _report(job_id, is_in_effect=Tandem().job(job_id).retry(reason=reason), command="retry")


@job_commands.command("skip")
def job_skip(job_id: str, reason: Reason = ASKED) -> None:
    """To the end of its queue; it keeps its progress."""
    _report(job_id, is_in_effect=Tandem().job(job_id).skip(reason=reason), command="skip")


@job_commands.command("cancel")
def job_cancel(job_id: str, reason: Reason = ASKED) -> None:
    """Never run it again; its checkpoints stay."""
    _report(job_id, is_in_effect=Tandem().job(job_id).cancel(reason=reason), command="cancel")


@job_commands.command("logs")
def job_logs(job_id: str) -> None:
    """What the trainer of a job wrote."""
    client = Tandem()
    client.job(job_id)
    path = client.settings.paths.logs / "jobs" / f"{job_id}.log"
    console.file.write(
        path.read_text(errors="replace") if path.exists() else "It has not written anything.\n"
    )


def _wait(handle: JobHandle, *, timeout_seconds: float | None = None) -> TrainingJob:
    """Ctrl-C ends the wait and leaves the job alone."""
    try:
        return handle.wait(timeout_seconds=timeout_seconds)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _check_success(job: TrainingJob) -> None:
    if job.state is JobState.SUCCEEDED:
        return
    why = job.problems[-1].message if job.problems else ""
    raise TaskFailed(f"{job.id} {job.state}: {job.note or why or 'no reason was noted'}")


def _report(job_id: str, *, is_in_effect: bool, command: str) -> None:
    """Say whether it is done or only asked: a trainer obeys at its next step."""
    if is_in_effect:
        console.print(f"{job_id}: {command} is in effect.")
    else:
        console.print(f"{job_id}: {command} is asked for; it takes effect at the next step.")


def _tell_submitted(handle: JobHandle, *, wait: bool, as_json: bool) -> None:
    if wait and as_json:
        _check_success(watch_job(handle, as_json=True))
        return
    job = _wait(handle) if wait else handle.row
    if as_json:
        print_json(job)
    else:
        already = "" if handle.is_new else " (the same job exists already; --force trains again)"
        console.print(f"{job.id} {styled(job.state)} on {job.priority}{already}")
    if wait:
        _check_success(job)
