"""What another host needs for an evaluation: sent once, named by content, found in its cache."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from config.settings import Settings, load_settings
from deploy.errors import HostUnreachable
from deploy.remote import Candidates, GateDoor, RemoteTarget
from registry.files import sha256_file
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from registry.messages import ArtifactReference, EvaluationRequest
from registry.records import GenerationSettings
from registry.store import Registry
from registry.testing import START, make_checkpoint, make_suite
from tests.deploy.far import FarHost
from workers.candidates import ASK_SECONDS, PATIENCE_SECONDS, at_hand, await_arrival, by_content, send
from workers.pipeline import owed, wanted
from workers.remotes import RemoteHost, endpoint


@pytest.fixture
def two_hosts(settings: Settings) -> Settings:
    return load_settings(home=settings.home, deploy={"host": "far"})


@pytest.fixture
def far(settings: Settings) -> FarHost:
    """Its disk is this home's: what is sent lands in the cache that `at_hand` reads."""
    host = FarHost(settings.home / "models")
    assert host.config.cache_dir == settings.paths.cache
    return host


@pytest.fixture
def request_here(tmp_path: Path) -> EvaluationRequest:
    model = tmp_path / "checkpoint"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    files = list_files(model)
    identity = weights_sha256(files)
    manifest = Manifest(files=files, weights_sha256=identity, code_version="test", created_at=START)
    write_manifest(model, manifest=manifest)
    suite = tmp_path / "suite.jsonl"
    suite.write_text("{}\n")
    return EvaluationRequest(
        evaluation_id="eval-1",
        checkpoint_id="ckpt-1",
        model=ArtifactReference(path=str(model), sha256=identity),
        suite_id="suite-1",
        suite=ArtifactReference(path=str(suite), sha256=sha256_file(suite)),
        settings=GenerationSettings(max_new_tokens=4),
    )


def opening(*hosts: tuple[str, FarHost]):
    known = dict(hosts)

    @contextmanager
    def open_host(_settings: Settings, *, host: str) -> Iterator[RemoteHost]:
        if host not in known:
            raise HostUnreachable(f"{host} cannot be reached.")
        gateway, carrier = known[host].gateway(), known[host].carrier
        yield RemoteHost(
            gateway,
            RemoteTarget(gateway, carrier=carrier),
            GateDoor(gateway),
            Candidates(gateway, carrier=carrier),
        )

    return open_host


def test_a_request_of_this_machine_stays_as_it_is(
    settings: Settings, request_here: EvaluationRequest
) -> None:
    with at_hand(request_here, settings=settings) as (found, absence):
        assert (found, absence) == (request_here, "")


def test_what_was_sent_is_found_by_content_and_no_path_travels(
    two_hosts: Settings, far: FarHost, request_here: EvaluationRequest
) -> None:
    assert send(request_here, settings=two_hosts, open_host=opening(("far", far))) == ""
    travelling = by_content(request_here)
    assert travelling.model.path == travelling.suite.path == ""
    shutil.rmtree(request_here.model.path)
    with at_hand(travelling, settings=two_hosts) as (found, absence):
        assert absence == ""
        assert Path(found.model.path).parent == Path(found.suite.path).parent.parent == two_hosts.paths.cache
        assert (Path(found.model.path) / "model.safetensors").read_bytes() == b"weights"
        assert sha256_file(Path(found.suite.path)) == request_here.suite.sha256
    assert send(request_here, settings=two_hosts, open_host=opening(("far", far))) != ""


def test_what_is_not_there_is_said_and_never_guessed(
    two_hosts: Settings, request_here: EvaluationRequest
) -> None:
    with at_hand(by_content(request_here), settings=two_hosts) as (_, absence):
        assert "checkpoint is not on this host" in absence


def test_one_host_that_has_it_suffices_and_none_is_a_reason(
    settings: Settings, far: FarHost, request_here: EvaluationRequest
) -> None:
    two = load_settings(home=settings.home, deploy={"host": "far", "candidate_hosts": ("away",)})
    assert send(request_here, settings=two, open_host=opening(("far", far))) == ""
    problem = send(request_here, settings=two, open_host=opening())
    assert problem == "far: far cannot be reached.; away: away cannot be reached."


def test_of_several_hosts_the_named_one_alone_is_sent_to(
    settings: Settings, far: FarHost, tmp_path: Path, request_here: EvaluationRequest
) -> None:
    other = FarHost(tmp_path / "other")
    both = opening(("far", far), ("away", other))
    two = load_settings(home=settings.home, deploy={"host": "far", "candidate_hosts": ("away",)})
    assert send(request_here, settings=two, host="away", open_host=both) == ""
    assert not (far.config.cache_dir / request_here.model.sha256).exists()
    assert (other.config.cache_dir / request_here.model.sha256).is_dir()


def test_a_host_known_by_its_address_only_is_among_those_that_are_all_sent_to(
    two_hosts: Settings, far: FarHost, request_here: EvaluationRequest
) -> None:
    assert send(request_here, settings=two_hosts, host="gpu-box", open_host=opening(("far", far))) == ""
    assert (far.config.cache_dir / request_here.model.sha256).is_dir()


class Waiting:
    """A clock that only sleep moves, and how often was asked."""

    def __init__(self, *, arrives: Callable[[int], None] = lambda _: None) -> None:
        self.now = 0.0
        self.num_asked = 0
        self._arrives = arrives

    def ask(self) -> None:
        self.num_asked += 1
        self._arrives(self.num_asked)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(self, request: EvaluationRequest, *, settings: Settings) -> None:
        await_arrival(request, settings=settings, ask=self.ask, clock=lambda: self.now, sleep=self.sleep)


def test_a_host_asks_for_what_it_lacks_until_it_is_here(
    two_hosts: Settings, far: FarHost, request_here: EvaluationRequest
) -> None:
    def send_at_the_third(num_asked: int) -> None:
        if num_asked == 3:
            send(request_here, settings=two_hosts, open_host=opening(("far", far)))

    waiting = Waiting(arrives=send_at_the_third)
    waiting.run(by_content(request_here), settings=two_hosts)
    assert waiting.num_asked == 3
    assert waiting.now < 3 * ASK_SECONDS


def test_a_host_gives_up_once_nothing_arrived_for_too_long(
    two_hosts: Settings, request_here: EvaluationRequest
) -> None:
    arriving = two_hosts.paths.incoming / "model-aa" / "model.safetensors"
    arriving.parent.mkdir(parents=True)

    def grow(num_asked: int) -> None:
        if num_asked <= 20:
            arriving.write_bytes(bytes(num_asked))

    waiting = Waiting(arrives=grow)
    waiting.run(by_content(request_here), settings=two_hosts)
    assert waiting.now == pytest.approx(19 * ASK_SECONDS + PATIENCE_SECONDS, abs=2)


def test_a_worker_that_was_told_to_stop_waits_for_nothing(
    two_hosts: Settings, request_here: EvaluationRequest
) -> None:
    waiting = Waiting()
    await_arrival(
        by_content(request_here),
        settings=two_hosts,
        ask=waiting.ask,
        clock=lambda: waiting.now,
        sleep=waiting.sleep,
        should_stop=lambda: waiting.num_asked > 0,
    )
    assert waiting.num_asked == 1
    assert waiting.now < ASK_SECONDS


def test_nobody_waits_for_what_lies_on_this_machine(
    settings: Settings, request_here: EvaluationRequest
) -> None:
    waiting = Waiting()
    waiting.run(request_here, settings=settings)
    assert (waiting.num_asked, waiting.now) == (0, 0.0)


def test_of_several_hosts_whoever_takes_an_evaluation_has_what_it_is_of_fetched(
    registry: Registry, settings: Settings
) -> None:
    several = load_settings(home=settings.home, deploy={"host": "far", "candidate_hosts": ("away",)})
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        (message,) = owed(tx, settings=several)
        assert isinstance(message.request, EvaluationRequest)
        found = wanted(tx, evaluation_id=message.request.evaluation_id, settings=several)
    assert message.task == "evaluation.run"
    assert message.request.model.path == ""
    assert found is not None
    assert found.model.path
    assert by_content(found) == message.request


def test_an_evaluation_that_nobody_waits_for_is_not_fetched_for(
    registry: Registry, settings: Settings
) -> None:
    with registry.reading() as tx:
        assert wanted(tx, evaluation_id="eval-none", settings=settings) is None


def test_an_evaluation_on_another_host_is_sent_there_first(registry: Registry, two_hosts: Settings) -> None:
    with registry.transaction() as tx:
        tx.add(make_suite(), actor="test")
        tx.add(make_checkpoint(id="base-aaaaaa", origin="base", step=0), actor="test")
        messages = owed(tx, settings=two_hosts)
    assert [message.task for message in messages] == ["evaluation.send"]


def test_keys_and_known_hosts_lie_with_the_secrets_unless_named(two_hosts: Settings) -> None:
    found = endpoint(two_hosts, host=None, key=Path("/key"))
    assert (found.host, found.port, found.user) == ("far", 22, "tandem")
    assert found.known_hosts == two_hosts.paths.secrets / "known_hosts"


def test_a_host_that_nobody_named_is_no_host(settings: Settings) -> None:
    with pytest.raises(HostUnreachable, match="Set TANDEM_DEPLOY__HOST"):
        endpoint(settings, host=None, key=Path("/key"))
