"""The loop on a real stack, in the order of a life: base model, four doors, kills, ruin, rollback."""

import json
import shutil
import signal
from pathlib import Path

import httpx
import psutil
import pytest

from registry import lineage
from registry.records import Checkpoint, Deployment, Event, TrainingJob, Verdict
from registry.reports import AccuracyReport
from registry.states import CheckpointState, DeploymentState, JobState, Outcome
from tasks.demo.ruin import ruin
from tasks.testing import Stack, wait_for

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

QUICK_TRAINING = {"learning_rate": 0.003, "tokens_per_batch": 1280}


def state_of(stack: Stack, checkpoint_id: str) -> CheckpointState:
    with stack.registry.reading() as tx:
        return tx.get(Checkpoint, checkpoint_id).state


def job_row(stack: Stack, job_id: str) -> TrainingJob:
    return stack.client.job(job_id).row


def trainers(stack: Stack) -> list[psutil.Process]:
    home = str(stack.settings.home)
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"-m", "trainer"} <= set(process.info["cmdline"] or [])
        and home in " ".join(process.info["cmdline"])
    ]


def wait_until_training(stack: Stack, job_id: str, *, min_step: int = 2) -> None:
    def is_under_way() -> bool:
        progress = job_row(stack, job_id).progress
        return progress is not None and progress.step >= min_step

    wait_for(is_under_way, seconds=90, message=f"{job_id} trains")


def wait_until_judged(stack: Stack, checkpoint_id: str) -> Verdict:
    def verdicts() -> list[Verdict]:
        with stack.registry.reading() as tx:
            return tx.find(Verdict, checkpoint_id=checkpoint_id)

    wait_for(verdicts, seconds=90, message=f"{checkpoint_id} has a verdict")
    return verdicts()[0]


def wait_until_tested(stack: Stack, checkpoint_id: str) -> AccuracyReport:
    found: list[AccuracyReport] = []

    def is_tested() -> bool:
        with stack.registry.reading() as tx:
            found[:] = tx.find(AccuracyReport, checkpoint_id=checkpoint_id)
        return bool(found)

    wait_for(is_tested, seconds=120, message=f"{checkpoint_id} is tested")
    return found[0]


def test_all_four_doors_give_the_same_job(stack: Stack, served: Checkpoint) -> None:
    path = stack.write_words("doors.jsonl", num_rows=200)
    by_python = stack.client.submit(path, priority="high")
    by_command = stack.tandem("submit", "doors.jsonl", "--priority", "high", "--json")
    assert json.loads(by_command.stdout)["id"] == by_python.id
    kwargs = json.dumps({"dataset": "doors.jsonl", "priority": "high"})
    by_celery = stack.run("celery", "-A", "workers.app", "call", "training.submit", "--kwargs", kwargs)
    result = stack.client.context.celery.AsyncResult(by_celery.stdout.strip()).get(timeout=30)
    assert result["job"]["id"] == by_python.id
    inbox = stack.settings.paths.inbox / "high"
    inbox.mkdir(exist_ok=True)
    shutil.copy(path, inbox / "doors.jsonl")
    wait_for(lambda: not list(inbox.iterdir()), seconds=20, message="the inbox is taken in")
    with stack.registry.reading() as tx:
        assert [job.id for job in tx.find(TrainingJob, name="doors")] == [by_python.id]
    assert by_python.wait(timeout_seconds=120).state is JobState.SUCCEEDED


def test_a_file_that_cannot_become_a_job_is_moved_aside_with_its_reason(
    stack: Stack, served: Checkpoint
) -> None:
    (stack.settings.paths.inbox / "broken.jsonl").write_text('{"messages": []}\n')
    refused = stack.settings.paths.refused / "broken.jsonl"
    wait_for(refused.exists, seconds=20, message="the file is refused")
    reason = json.loads(refused.with_name("broken.jsonl.reason.json").read_text())["reason"]
    assert "broken.jsonl, line 1" in reason


def test_training_resumes_from_its_checkpoint_after_kill_9_of_the_trainer(
    stack: Stack, served: Checkpoint
) -> None:
    handle = stack.client.submit(
        stack.write_words("killed-child.jsonl", num_rows=6000),
        hyperparameters={**QUICK_TRAINING, "num_epochs": 2},
    )
    wait_for(lambda: checkpoints_of(stack, handle.id), seconds=120, message="a first checkpoint")
    (trainer,) = trainers(stack)
    trainer.send_signal(signal.SIGKILL)
    job = handle.wait(timeout_seconds=240)
    assert job.state is JobState.SUCCEEDED
    assert job.attempts == 1
    assert job.problems[0].kind == "killed"
    log = (stack.settings.paths.logs / "jobs" / f"{handle.id}.log").read_text()
    assert len(checkpoints_of(stack, handle.id)) == 2, log


def test_training_resumes_after_kill_9_of_the_worker_within_two_leases(
    stack: Stack, served: Checkpoint
) -> None:
    handle = stack.client.submit(
        stack.write_words("killed-worker.jsonl", num_rows=6000, skip=100),
        hyperparameters={**QUICK_TRAINING, "num_epochs": 2},
    )
    wait_until_training(stack, handle.id)
    (orphan,) = trainers(stack)
    stack.part("train").send_signal(signal.SIGKILL)
    orphan.wait(timeout=15)
    leases = 2 * stack.settings.training.lease_seconds
    wait_for(lambda: job_row(stack, handle.id).attempts == 1, seconds=leases, message="it is put back")
    assert handle.wait(timeout_seconds=240).state is JobState.SUCCEEDED
    with stack.registry.reading() as tx:
        (reason,) = [
            event.reason for event in tx.find(Event, subject_id=handle.id) if "worker_lost" in event.reason
        ]
    assert "stopped renewing" in reason


def checkpoints_of(stack: Stack, job_id: str) -> list[Checkpoint]:
    with stack.registry.reading() as tx:
        return tx.find(Checkpoint, job_id=job_id)


def test_every_checkpoint_is_judged_and_the_best_is_served(stack: Stack, served: Checkpoint) -> None:
    def best_is_served() -> bool:
        with stack.registry.reading() as tx:
            suite, active = lineage.active_suite(tx), lineage.active_deployment(tx)
            assert suite is not None
            ranking = lineage.newest_ranking(tx, suite_id=suite.id)
            judged = {verdict.checkpoint_id for verdict in tx.find(Verdict)}
            trained = {found.id for found in tx.find(Checkpoint, origin="trained")}
            is_best = ranking is not None and bool(ranking.entries) and active is not None
            return (
                is_best
                and trained <= judged
                and ranking is not None
                and active is not None
                and ranking.entries[0].checkpoint_id == active.checkpoint_id
            )

    wait_for(best_is_served, seconds=90, message="the best is served")
    status = json.loads(stack.tandem("status", "--json").stdout)
    assert status["served"]["agrees"] is True
    assert status["served"]["checkpoint_id"] != served.id
    assert {part["state"] for part in status["parts"]} == {"up"}
    last = json.loads((stack.settings.paths.status / "last_deployment.json").read_text())
    assert last["checkpoint_id"] == status["served"]["checkpoint_id"]


def test_what_is_served_was_calibrated_and_answers_with_its_confidence(
    stack: Stack, served: Checkpoint
) -> None:
    status = json.loads(stack.tandem("status", "--json").stdout)
    checkpoint_id, release = status["served"]["checkpoint_id"], status["served"]["release_id"]
    shown = json.loads(stack.tandem("checkpoint", "show", checkpoint_id, "--json").stdout)
    (calibration,) = shown["calibrations"]
    assert "confidence: " in stack.tandem("checkpoint", "show", checkpoint_id).stdout
    file = json.loads((stack.settings.paths.status / "confidence_calibration.json").read_text())
    assert checkpoint_id in [line["checkpoint_id"] for line in file["calibrations"]]
    note = json.loads((stack.settings.paths.releases / release / "confidence.json").read_text())
    assert (note["calibration_id"], note["outcome"]) == (calibration["id"], calibration["outcome"])
    body = {"messages": [{"role": "user", "content": "Say yes."}]}
    url = f"{stack.settings.server_url}/v1/chat/completions"
    told = httpx.post(url, json=body, timeout=30).json()["confidence"]
    assert 0 <= told["own"] <= 1
    assert (told["value"] is None) == bool(told["reason"])
    if calibration["outcome"] == "unknown":
        assert told["reason"] == calibration["reason"]


def test_the_served_weights_answer_alike_in_plain_transformers(stack: Stack, served: Checkpoint) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from registry.rows import read_rows

    current = stack.settings.paths.releases / "current"
    tokenizer = AutoTokenizer.from_pretrained(current, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(current, local_files_only=True)
    for row in list(read_rows(stack.material.suite))[:20:2]:
        messages = [message.model_dump() for message in row.prompt]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        output = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        plain = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        body = {"model": "tandem", "messages": messages, "max_tokens": 32, "temperature": 0}
        answer = httpx.post(f"{stack.settings.server_url}/v1/chat/completions", json=body, timeout=30)
        assert answer.json()["choices"][0]["message"]["content"] == plain
    assert served.id


def test_a_ruined_checkpoint_is_quarantined_and_never_served(stack: Stack, served: Checkpoint) -> None:
    with stack.registry.reading() as tx:
        active = lineage.active_deployment(tx)
        assert active is not None
        source = tx.get(Checkpoint, active.checkpoint_id)
    directory = ruin(Path(source.path), into=stack.work / "ruined")
    ruined = stack.client.import_checkpoint(directory, note="ruined")
    verdict = wait_until_judged(stack, ruined.id)
    assert verdict.outcome is Outcome.REGRESSED
    assert verdict.baseline_checkpoint_id == source.id
    tested = wait_until_tested(stack, ruined.id)
    assert (tested.baseline_checkpoint_id, tested.evaluation_id) == (source.id, verdict.evaluation_id)
    assert tested.total is not None
    assert tested.total.accuracy.num_samples == verdict.num_pairs
    assert tested.total.num_lost == len(tested.lost_row_ids)
    assert state_of(stack, ruined.id) is CheckpointState.QUARANTINED
    refused = stack.tandem("deploy", "now", ruined.id)
    assert refused.returncode == 1
    assert "only accepted checkpoints are served" in refused.stderr


def test_weights_that_are_not_numbers_are_unknown_and_blocked(stack: Stack, served: Checkpoint) -> None:
    import numpy as np
    from safetensors.numpy import load_file, save_file

    directory = stack.work / "nan"
    shutil.copytree(stack.material.base_model, directory)
    weights = load_file(directory / "model.safetensors")
    weights = {name: np.full_like(value, np.nan) for name, value in weights.items()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    broken = stack.client.import_checkpoint(directory, note="NaN")
    assert wait_until_judged(stack, broken.id).outcome is Outcome.UNKNOWN
    assert state_of(stack, broken.id) is CheckpointState.CANDIDATE
    tested = wait_until_tested(stack, broken.id)
    assert (tested.total, tested.gained_row_ids) == (None, ())
    (reason,) = tested.reasons
    assert reason.endswith("are unknown (the model's weights hold NaN or infinity).")
    assert stack.tandem("deploy", "now", broken.id).returncode == 1


def test_rollback_is_one_command_and_sticks(stack: Stack, served: Checkpoint) -> None:
    with stack.registry.reading() as tx:
        before = lineage.active_deployment(tx)
    assert before is not None
    back = stack.tandem("deploy", "rollback", "--reason", "a test", "--json")
    assert back.returncode == 0, back.stderr
    now_served = json.loads(back.stdout)
    assert now_served["generation"] < before.generation
    health = httpx.get(f"{stack.settings.server_url}/health", timeout=10).json()
    assert health["release_id"] == now_served["id"]
    with stack.registry.reading() as tx:
        assert tx.get(Deployment, before.id).state is DeploymentState.ROLLED_BACK
    forward = stack.client.deploy(before.checkpoint_id)
    assert forward.state is DeploymentState.ACTIVE
    assert forward.generation > before.generation


def test_a_paused_job_waits_and_goes_on_to_the_very_same_weights(stack: Stack, served: Checkpoint) -> None:
    path = stack.write_words("paused.jsonl", num_rows=3000, skip=50)
    options = {"hyperparameters": QUICK_TRAINING, "parent": "base"}
    whole = stack.client.submit(path, **options)
    assert whole.wait(timeout_seconds=180).state is JobState.SUCCEEDED
    parted = stack.client.submit(path, force=True, **options)
    wait_until_training(stack, parted.id)
    asked = stack.tandem("job", "pause", parted.id)
    assert asked.returncode == 0, asked.stderr
    assert "pause is asked for" in asked.stdout
    wait_for(lambda: parted.row.state is JobState.PAUSED, seconds=30, message="it is paused")
    assert trainers(stack) == []
    resumed = stack.tandem("job", "resume", parted.id)
    assert "resume is in effect" in resumed.stdout
    assert parted.wait(timeout_seconds=180).state is JobState.SUCCEEDED
    finals = [checkpoints_of(stack, job_id)[-1] for job_id in (whole.id, parted.id)]
    assert finals[0].is_final
    assert finals[0].weights_sha256 == finals[1].weights_sha256
    refused = stack.tandem("job", "pause", parted.id)
    assert refused.returncode == 1
    assert "is succeeded; only a job that is queued or running can pause" in refused.stderr


def test_a_cancelled_job_ends_its_trainer_and_keeps_its_state(stack: Stack, served: Checkpoint) -> None:
    path = stack.write_words("cancelled.jsonl", num_rows=6000, skip=60)
    handle = stack.client.submit(path, hyperparameters={**QUICK_TRAINING, "num_epochs": 3})
    wait_until_training(stack, handle.id)
    assert not handle.cancel()
    wait_for(lambda: handle.row.state is JobState.CANCELLED, seconds=30, message="it is cancelled")
    wait_for(lambda: not trainers(stack), seconds=10, message="its trainer is gone")


def test_flower_asks_for_its_password_and_no_process_shows_a_secret(stack: Stack, served: Checkpoint) -> None:
    flower = stack.settings.flower
    url = f"http://127.0.0.1:{flower.port}/api/workers"
    assert httpx.get(url, timeout=10).status_code == 401
    password = stack.settings.paths.secret("flower_password")
    assert httpx.get(url, auth=(flower.user, password), timeout=30).status_code == 200
    secrets = [stack.settings.paths.secret(path.name) for path in stack.settings.paths.secrets.iterdir()]
    shown = " ".join(" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"]))
    logs = " ".join(path.read_text(errors="replace") for path in stack.settings.paths.logs.rglob("*.log"))
    assert len(secrets) >= 3
    for secret in secrets:
        assert secret not in shown
        assert secret not in logs


def test_a_lost_message_is_rung_again(stack: Stack, served: Checkpoint) -> None:
    from redis import Redis

    handle = stack.client.submit(stack.write_words("lost.jsonl", num_rows=300, skip=200), priority="low")
    with Redis.from_url(stack.settings.redis_url) as client:
        client.flushall()
    assert handle.wait(timeout_seconds=120).state is JobState.SUCCEEDED


def test_a_killed_server_comes_back_with_the_current_release(stack: Stack, served: Checkpoint) -> None:
    url = f"{stack.settings.server_url}/health"
    release = httpx.get(url, timeout=10).json()["release_id"]
    stack.part("server").send_signal(signal.SIGKILL)

    def is_back() -> bool:
        try:
            return httpx.get(url, timeout=2).json()["release_id"] == release
        except httpx.HTTPError:
            return False

    wait_for(is_back, seconds=60, message="the server is back")
