"""Runs the demo and says whether the loop closed: exit 0 only if every claim at the end is true."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from config.settings import Settings, load_settings
from registry.records import Checkpoint, TrainingJob
from registry.states import CheckpointState, JobState, is_final
from registry.store import Transaction
from tasks.api import JobHandle, Tandem
from tasks.cli.output import checkpoints_table
from tasks.demo import checks, questions
from tasks.demo.plan import FILES, Material
from tasks.demo.ruin import ruin
from tasks.demo.view import DemoView, replies_table
from workers.errors import StackError, TaskFailed
from workers.stack import control
from workers.stack.supervisor import Supervisor
from workers.status import checkpoint_lines

MARKER = ".tandem-demo"
STEP_SECONDS = 0.5
GIVE_UP_SECONDS = 900.0
HYPERPARAMETERS = {
    "learning_rate": 3e-3,
    "warmup_steps": 20,
    "schedule": "linear",
    "num_epochs": 1,
    "tokens_per_batch": 1280,
}


def run_demo(*, console: Console, keep: bool = False) -> int:
    """The whole loop in `<home>/demo`; the exit code."""
    settings = demo_settings(load_settings())
    material = Material(settings.home / "material")
    maker = _make_material(material)
    supervisor = control.open_stack(settings)
    demo = Demo(settings=settings, material=material, supervisor=supervisor, console=console)
    try:
        demo.run(maker)
        passed = demo.report()
    except KeyboardInterrupt:
        console.print("Interrupted; stopping the stack.")
        return 130
    finally:
        maker.kill()
        if not keep or sys.exc_info()[0] is not None:
            supervisor.stop()
    if keep:
        console.print("The stack stays up until Ctrl-C.")
        _hold(supervisor)
    return 0 if passed else 1


def demo_settings(settings: Settings) -> Settings:
    """A fresh home below the usual one, and free ports, so that a running stack is not disturbed."""
    home = settings.home / "demo"
    if home.exists():
        if not (home / MARKER).exists():
            raise StackError(f"{home} exists and is no demo's.", remedy="Move it away, or set TANDEM_HOME.")
        control.stop_running(settings.model_copy(update={"home": home}))
        shutil.rmtree(home)
    home.mkdir(parents=True)
    (home / MARKER).touch()
    ports = {f"TANDEM_{part}__PORT": str(_free_port()) for part in ("REDIS", "SERVER", "FLOWER")}
    os.environ.update({"TANDEM_HOME": str(home), **ports})
    return load_settings()


@dataclass
class Demo:
    """The steps, and what they found."""

    settings: Settings
    material: Material
    supervisor: Supervisor
    console: Console
    client: Tandem = field(init=False)
    before: list[questions.Reply] = field(default_factory=list)
    after: list[questions.Reply] = field(default_factory=list)
    ruined_id: str = ""
    jobs: list[JobHandle] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.client = Tandem(self.settings)

    def run(self, maker: subprocess.Popen[bytes]) -> None:
        """Start, measure the untrained model, train three files, ruin one checkpoint, wait for the end."""
        registry = self.client.context.registry
        with DemoView(registry, supervisor=self.supervisor, console=self.console) as view:
            self._start(view, maker=maker)
            rows = questions.pick_rows(self.material.suite)
            self._serve_base(view)
            self.before = questions.ask(rows, server_url=self.settings.server_url)
            self._train(view)
            view.say("Waiting until the best checkpoint is served")
            self._wait(view, until=checks.is_settled)
            self.after = questions.ask(rows, server_url=self.settings.server_url)
            self.seconds = view.elapsed_seconds

    def report(self) -> bool:
        """Print what was found; True where every claim holds."""
        with self.client.context.registry.reading() as tx:
            lines = checkpoint_lines(tx)
            found = checks.claims(tx, ruined_id=self.ruined_id, served_by=self.after[0].release_id)
        title = "Checkpoints (accuracy on held-out words, 95 % intervals)"
        self.console.print(checkpoints_table(lines, title=title))
        self.console.print(replies_table(self.before, after=self.after))
        for claim in found:
            style, word = ("green", "yes") if claim.holds else ("red", "NO")
            self.console.print(f"[{style}]{word:>3}[/] {claim.text}", highlight=False)
        self.console.print(f"Total time {self.seconds:.0f} s.")
        self.console.print(_next_commands(self.settings), markup=False, highlight=False)
        return all(claim.holds for claim in found)

    def _start(self, view: DemoView, *, maker: subprocess.Popen[bytes]) -> None:
        view.say("Starting Redis, workers, beat, Flower and the inference server; making data and base model")
        first = [name for name in self.supervisor.running if name != "train"]
        self.supervisor.start(["redis"] if "redis" in first else [])
        if "redis" in first:
            self.supervisor.wait_ready(["redis"], on_change=view.refresh)
        self.supervisor.start(first)
        self.supervisor.wait_ready(first, on_change=view.refresh)
        if maker.wait(timeout=120) != 0:
            raise TaskFailed("The demo's data could not be made; its message stands above.")

    def _serve_base(self, view: DemoView) -> None:
        view.say("Measuring and serving the untrained model")
        self.client.build_suite(self.material.suite, name="spell_backward")
        base = self.client.import_checkpoint(self.material.base_model, as_base=True)
        self._wait(view, until=lambda tx: tx.get(Checkpoint, base.id).state is CheckpointState.ACCEPTED)
        self.client.deploy(base.id)

    def _train(self, view: DemoView) -> None:
        view.say(
            "Submitting three files, low first, high last; the training worker starts when all three wait"
        )
        self.jobs = [
            self.client.submit(
                self.material.training_file(file.name),
                priority=file.priority,
                hyperparameters=HYPERPARAMETERS,
                submitted_by="demo",
            )
            for file in FILES
        ]
        self.supervisor.start(["train"])
        view.say("Training: high, normal, low; every checkpoint is evaluated, judged and ranked")
        self._wait(view, until=_has_accepted_final)
        self._import_ruined(view)
        self._wait(view, until=self._jobs_are_done)

    def _import_ruined(self, view: DemoView) -> None:
        with self.client.context.registry.reading() as tx:
            source = _accepted_finals(tx)[0]
        view.say(f"Ruining a copy of {source.id}, to see whether the regression monitor looks")
        directory = ruin(Path(source.path), into=self.settings.home / "material" / "ruined")
        self.ruined_id = self.client.import_checkpoint(directory, note=f"{source.id}, ruined on purpose").id

    def _jobs_are_done(self, tx: Transaction) -> bool:
        return all(is_final(tx.get(TrainingJob, job.id).state) for job in self.jobs)

    def _wait(self, view: DemoView, *, until: Callable[[Transaction], bool]) -> None:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        registry = self.client.context.registry
        while time.monotonic() < deadline:
            self.supervisor.tick()
            view.refresh()
            with registry.reading() as tx:
                if until(tx):
                    return
                _stop_at_failure(tx)
            time.sleep(STEP_SECONDS)
        raise TaskFailed(
            f"The demo made no progress for {GIVE_UP_SECONDS:g} s; see {self.settings.paths.logs}."
        )


def _stop_at_failure(tx: Transaction) -> None:
    failed = tx.find(TrainingJob, state=[JobState.FAILED, JobState.REJECTED, JobState.CANCELLED])
    if failed:
        raise TaskFailed(f"{failed[0].id} {failed[0].state}: {failed[0].problems[-1].message}")


def _accepted_finals(tx: Transaction) -> list[Checkpoint]:
    return tx.find(Checkpoint, state=CheckpointState.ACCEPTED, origin="trained", is_final=True)


def _has_accepted_final(tx: Transaction) -> bool:
    return bool(_accepted_finals(tx))


def _make_material(material: Material) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tasks.demo.material", str(material.directory)])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _hold(supervisor: Supervisor) -> None:
    try:
        while True:
            supervisor.tick()
            time.sleep(1.0)
    except KeyboardInterrupt:
        supervisor.stop()


def _next_commands(settings: Settings) -> str:
    home = os.path.relpath(settings.home)
    return (
        "Try next:\n"
        f"  TANDEM_HOME={home} .venv/bin/tandem checkpoint list   # every number again\n"
        f"  TANDEM_HOME={home} .venv/bin/tandem up                # serve the trained model\n"
        f"  TANDEM_HOME={home} .venv/bin/tandem events            # who changed what, and why"
    )
