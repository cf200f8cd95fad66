"""The rules of the house that a machine can hold: layers, lint, types, sizes, docs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("config", "registry", "trainer", "intelligence", "inference", "deploy", "ops", "workers", "tasks")
DOCS = {
    "README.md",
    "QUICKSTART.md",
    "ARCHITECTURE.md",
    "TROUBLESHOOTING.md",
    "REMOTE_INFERENCE.md",
    "DEVELOPMENT.md",
    "CHANGELOG.md",
}
MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 40
MAX_TASK_LINES = 25


def modules() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def num_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_module_and_no_function_is_too_long() -> None:
    long = [str(path) for path in modules() if len(path.read_text().splitlines()) > MAX_MODULE_LINES]
    for path in modules():
        long += [f"{path}:{node.name}" for node in functions(path) if num_lines(node) > MAX_FUNCTION_LINES]
    assert long == []


def test_a_task_is_a_door_of_at_most_25_lines() -> None:
    doors = [
        (node.name, num_lines(node))
        for path in (ROOT / "tasks").glob("*.py")
        for node in functions(path)
        if any("door(" in ast.unparse(decorator) for decorator in node.decorator_list)
    ]
    assert len(doors) > 10
    assert [name for name, lines in doors if lines > MAX_TASK_LINES] == []


def test_every_module_says_what_it_does() -> None:
    silent = [path for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))]
    assert silent == []


def test_a_package_file_holds_a_docstring_only() -> None:
    for path in modules():
        if path.name == "__init__.py":
            assert len(ast.parse(path.read_text()).body) == 1, path


def test_there_are_seven_documents_and_no_more() -> None:
    assert {path.name for path in ROOT.glob("*.md")} == DOCS


def test_the_readme_tree_names_every_room() -> None:
    readme = (ROOT / "README.md").read_text()
    for room in ROOMS:
        if (ROOT / room).is_dir():
            assert f"\n{room}/ " in readme, room


def test_links_between_documents_lead_somewhere() -> None:
    for name in DOCS:
        for target in re.findall(r"\]\(([^)#:]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), f"{name}: {target}"


@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
    ],
)
def test_the_linters_find_nothing(command: list[str]) -> None:
    tool = Path(sys.executable).parent / command[0]
    found = subprocess.run([str(tool), *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
