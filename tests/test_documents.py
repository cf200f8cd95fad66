"""The documents are true: their commands run, their settings and messages exist."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.settings import setting_names
from tasks.testing import BIN, fresh_environment, left_behind

ROOT = Path(__file__).parents[1]
ROOMS = ("config", "workers", "registry", "tasks")
SPEAKING_ROOMS = (*ROOMS, "deploy", "trainer")
DOCS = ("README.md", "QUICKSTART.md", "TROUBLESHOOTING.md", "REMOTE_INFERENCE.md", "ARCHITECTURE.md")


def blocks(name: str) -> list[str]:
    return re.findall(r"```bash\n(.*?)```", (ROOT / name).read_text(), re.S)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[dict[str, str]]:
    environment = fresh_environment(tmp_path / "var")
    environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
    yield environment
    subprocess.run([str(BIN / "tandem"), "down"], cwd=tmp_path, env=environment, check=False, timeout=200)
    assert left_behind(tmp_path / "var") == []


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_quickstart_works_from_its_first_command_to_its_last(
    tmp_path: Path, shell: dict[str, str]
) -> None:
    found = blocks("QUICKSTART.md")
    assert len(found) >= 5
    for block in found:
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=shell,
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}\n{ran.stderr}"


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_the_readmes_stack_commands_work(tmp_path: Path, shell: dict[str, str]) -> None:
    (block,) = [block for block in blocks("README.md") if "tandem up" in block]
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(BIN)
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=shell, timeout=250, check=False
    )
    assert ran.returncode == 0


@pytest.mark.integration
@pytest.mark.timeout(900)
def test_the_demo_closes_its_loop_and_leaves_no_process_behind(tmp_path: Path) -> None:
    environment = fresh_environment(tmp_path / "var")
    for name in [name for name in environment if name.startswith(("TANDEM_TRAINING", "TANDEM_SCHEDULE"))]:
        del environment[name]
    ran = subprocess.run(
        [str(BIN / "tandem"), "demo"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=800,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "was caught (regressed) and never served" in ran.stdout
    assert left_behind(tmp_path / "var" / "demo") == []
    assert shutil.which("tandem", path=str(BIN))


@pytest.mark.parametrize("name", DOCS)
def test_settings_that_a_document_names_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"TANDEM_[A-Z][A-Z_]*[A-Z]", text))
    assert named <= set(setting_names())


def test_messages_in_troubleshooting_are_what_the_code_says() -> None:
    text = (ROOT / "TROUBLESHOOTING.md").read_text()
    code = "\n".join(
        path.read_text() for room in (*ROOMS, "deploy", "trainer") for path in (ROOT / room).rglob("*.py")
    )
    quoted = re.findall(r"^\| `([^`]+)` \|", text, re.M)
    assert len(quoted) >= 8
    for message in quoted:
        pieces = [
            piece for piece in re.split(r"\d+|\.\.\.|server|TANDEM_", message) if len(piece.strip()) > 5
        ]
        for piece in pieces:
            assert piece.strip(" ,.") in code, message
