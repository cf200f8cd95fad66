"""The gate as a line of text sees it: one reply a request, whatever was sent."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from deploy import gate
from deploy.config import GateConfig
from deploy.wire import Current, Envelope, Health, Verify
from tests.deploy.far import FarHost


def ask(far: FarHost, *lines: str) -> list[dict[str, object]]:
    answers = io.StringIO()
    gate.serve(
        far.gatekeeper(), requests=io.StringIO("".join(f"{line}\n" for line in lines)), answers=answers
    )
    return [json.loads(line) for line in answers.getvalue().splitlines()]


def test_each_request_gets_one_reply_in_order(far: FarHost) -> None:
    lines = [
        Envelope(request=Current()).model_dump_json(),
        "rm -rf /",
        Envelope(request=Health()).model_dump_json(),
    ]
    first, second, third = ask(far, *lines)
    assert first == {"value": None, "error": "", "message": "", "remedy": ""}
    assert second["error"] == "DeployError"
    assert dict(third["value"])["status"] == "waiting"  # type: ignore[call-overload]


def test_an_error_keeps_its_kind_sentence_and_remedy(far: FarHost) -> None:
    (reply,) = ask(far, Envelope(request=Verify(release_id="r000001-aaaaaaaa")).model_dump_json())
    assert reply["error"] == "TransferFailed"
    assert "r000001-aaaaaaaa is damaged" in str(reply["message"])
    assert reply["remedy"]


@pytest.mark.parametrize("release_id", ["../../etc", "current", "/etc", "-x", "a\nb"])
def test_a_name_that_leads_elsewhere_is_refused_there_too(far: FarHost, release_id: str) -> None:
    (reply,) = ask(far, Envelope(request=Verify(release_id=release_id)).model_dump_json())
    assert reply["error"] == "NotDeployable"


def test_a_gate_without_its_file_says_so_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.main([str(tmp_path / "gate.json")]) == 2
    assert "The gate cannot begin" in capsys.readouterr().err
    assert gate.main([]) == 2


def test_the_admin_key_shows_in_no_repr(far: FarHost, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("very-secret\n")
    config = GateConfig.model_validate(far.config.model_dump() | {"admin_key_file": key})
    keeper = gate.make_gatekeeper(config)
    assert "very-secret" not in repr(keeper) + repr(config) + repr(vars(keeper))
