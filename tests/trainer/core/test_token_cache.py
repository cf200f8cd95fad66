"""Tokens kept between runs: whole or made anew, whoever was killed, and never more than was allowed."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.core import chat, data, token_cache, token_files
from trainer.core.chat import ChatEncoder
from trainer.core.data import TokenizedDataset, tokenize_file
from trainer.core.token_cache import TokenCache
from trainer.errors import ConfigError, DataError, DiskFull

Open = Callable[..., TokenizedDataset]
ROOT = Path(__file__).parents[3]
LIMITS: dict[str, Any] = {"max_length": 128, "overlong": "drop"}


@pytest.fixture
def encoder(tokenizer: Any) -> ChatEncoder:
    return ChatEncoder(tokenizer)


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def open_tokens(directory: Path, encoder: ChatEncoder, warnings: list[str]) -> Open:
    def run(path: Path, *, max_bytes: int = 1 << 30, **changes: Any) -> TokenizedDataset:
        cache = TokenCache(directory, max_bytes=max_bytes, warn=warnings.append)
        return cache.open(path, **{"encoder": encoder, **LIMITS, **changes})

    return run


@pytest.fixture
def num_tokenised(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that was tokenised."""
    done: list[Path] = []
    original = data.tokenize_into

    def counted(directory: Path, **options: Any) -> Any:
        done.append(options["path"])
        return original(directory, **options)

    monkeypatch.setattr(token_cache, "tokenize_into", counted)
    return done


def entries(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if not path.name.startswith("."))


def leftovers(directory: Path) -> list[str]:
    return [path.name for path in directory.glob(".*") if path.name != token_cache.SOURCES_NAME]


def test_a_file_is_tokenised_once_and_its_tokens_are_those_of_an_uncached_run(
    open_tokens: Open, rows_file: Path, encoder: ChatEncoder, num_tokenised: list[Path], directory: Path
) -> None:
    first, second = open_tokens(rows_file), open_tokens(rows_file)
    plain = tokenize_file(rows_file, encoder=encoder, **LIMITS)
    assert len(num_tokenised) == 1
    assert plain.digest == first.digest == second.digest
    for name in token_files.ARRAYS:
        assert getattr(second, name).tolist() == getattr(plain, name).tolist()
    assert (second.num_rows, second.num_dropped_rows) == (plain.num_rows, plain.num_dropped_rows)
    assert leftovers(directory) == []


def test_whatever_decides_the_tokens_is_part_of_the_name(
    open_tokens: Open, write_rows: Any, rows_file: Path, directory: Path, tokenizer: Any
) -> None:
    open_tokens(rows_file)
    open_tokens(rows_file, max_length=40)
    open_tokens(rows_file, overlong="reject")
    open_tokens(rows_file, settings={"profile": "other"})
    open_tokens(write_rows([{"prompt": "a", "completion": "b"}], name="other.jsonl"))
    tokenizer.chat_template = tokenizer.chat_template.replace("\\n", " ")
    open_tokens(rows_file, encoder=ChatEncoder(tokenizer))
    assert len(entries(directory)) == 6


def brought_profile(directory: Path) -> Any:
    """A profile whose class stands in one file, and what that is made of in another."""
    (directory / "their_base.py").write_text(
        "from registry.profiles.plain_sft import PlainSft\n\nclass Base(PlainSft):\n    pass\n"
    )
    (directory / "their_profile.py").write_text(
        "from their_base import Base\n\nclass Theirs(Base):\n    name = 'theirs'\n"
    )
    return importlib.import_module("their_profile").Theirs()


@pytest.mark.parametrize("name", ["their_profile.py", "their_base.py"])
def test_every_file_that_a_profile_is_made_of_is_part_of_the_name(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokenizer: Any,
    open_tokens: Open,
    rows_file: Path,
    num_tokenised: list[Path],
    name: str,
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("their_base", "their_profile"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    profile = brought_profile(tmp_path)
    for _ in range(2):
        open_tokens(rows_file, encoder=ChatEncoder(tokenizer, profile=profile))
    assert len(num_tokenised) == 1
    with (tmp_path / name).open("a") as file:
        file.write("# another rule\n")
    open_tokens(rows_file, encoder=ChatEncoder(tokenizer, profile=profile))
    assert len(num_tokenised) == 2


def test_the_version_of_the_package_that_brings_a_profile_is_part_of_the_name(
    monkeypatch: pytest.MonkeyPatch, tokenizer: Any
) -> None:
    versions = iter(["1", "1", "2"])
    monkeypatch.setattr(chat, "version_of", lambda _name: next(versions))
    first, same, later = (ChatEncoder(tokenizer).identity for _ in range(3))
    assert first == same != later


def test_the_code_that_reads_rows_and_rewrites_them_is_part_of_the_name() -> None:
    names = {Path(str(module.__file__)).relative_to(ROOT).as_posix() for module in token_cache.CODE}
    assert {"registry/row_formats.py", "registry/rows.py", "registry/profiles/base.py"} <= names


def test_the_same_rows_under_another_name_are_the_same_tokens(
    open_tokens: Open, rows_file: Path, tmp_path: Path, num_tokenised: list[Path]
) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(rows_file.read_bytes())
    open_tokens(rows_file)
    open_tokens(copy)
    assert len(num_tokenised) == 1


def test_a_file_that_was_rewritten_in_place_is_read_anew(
    open_tokens: Open, rows_file: Path, num_tokenised: list[Path]
) -> None:
    long_ago = time.time() - 3600
    os.utime(rows_file, (long_ago, long_ago))
    open_tokens(rows_file)
    before = rows_file.stat()
    rows_file.write_text(rows_file.read_text().replace("turn", "spin"))
    os.utime(rows_file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert rows_file.stat().st_size == before.st_size
    open_tokens(rows_file)
    assert len(num_tokenised) == 2


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, fill_with_zeros, flip_a_bit, Path.unlink])
@pytest.mark.parametrize("name", token_files.ARRAYS)
def test_a_damaged_entry_is_made_anew_with_a_warning(
    open_tokens: Open,
    rows_file: Path,
    directory: Path,
    warnings: list[str],
    name: str,
    damage: Callable[[Path], None],
) -> None:
    whole = open_tokens(rows_file).digest
    (entry,) = entries(directory)
    damage(entry / name)
    again = open_tokens(rows_file)
    assert again.digest == whole
    assert again.tokens.tolist() == open_tokens(rows_file).tokens.tolist()
    assert len(warnings) == 1
    assert "made anew" in warnings[0]


def test_an_entry_without_its_seal_is_no_entry(
    open_tokens: Open, rows_file: Path, directory: Path, num_tokenised: list[Path]
) -> None:
    open_tokens(rows_file)
    (entry,) = entries(directory)
    (entry / token_files.META_NAME).write_text("{")
    open_tokens(rows_file)
    assert len(num_tokenised) == 2


def test_the_least_recently_used_go_first_and_what_is_mapped_stays_readable(
    open_tokens: Open, rows_file: Path, directory: Path
) -> None:
    first = open_tokens(rows_file, settings={"part": 1})
    (oldest,) = entries(directory)
    size = sum(path.stat().st_size for path in oldest.iterdir())
    open_tokens(rows_file, settings={"part": 2}, max_bytes=3 * size)
    open_tokens(rows_file, settings={"part": 1}, max_bytes=3 * size)  # used again: the other is older now
    newer = [path for path in entries(directory) if path != oldest]
    open_tokens(rows_file, settings={"part": 3}, max_bytes=2 * size + size // 2)
    assert oldest in entries(directory)
    assert newer[0] not in entries(directory)
    open_tokens(rows_file, settings={"part": 4}, max_bytes=size + size // 2)
    assert len(entries(directory)) == 1
    assert int(first.tokens.sum()) > 0


def test_what_alone_is_larger_than_the_cache_is_used_and_not_kept(
    open_tokens: Open, rows_file: Path, directory: Path
) -> None:
    assert open_tokens(rows_file, max_bytes=10).num_rows == 24
    assert entries(directory) == []
    assert leftovers(directory) == []


def test_a_row_that_cannot_be_used_leaves_nothing_behind(
    open_tokens: Open, write_rows: Any, rows_file: Path, directory: Path
) -> None:
    with pytest.raises(DataError, match="max_length is 10"):
        open_tokens(rows_file, max_length=10, overlong="reject")
    assert entries(directory) == []
    assert leftovers(directory) == []


@pytest.mark.parametrize(("number", "kind"), [(28, DiskFull), (13, ConfigError)])
def test_a_disk_that_takes_no_tokens_is_named(
    open_tokens: Open, rows_file: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(token_cache, "seal", fail)
    with pytest.raises(kind, match="cache"):
        open_tokens(rows_file)


def test_a_file_where_the_cache_should_be_is_named(
    open_tokens: Open, rows_file: Path, directory: Path
) -> None:
    directory.write_text("")
    with pytest.raises(ConfigError, match="cannot be kept in .*cache: .*File exists") as caught:
        open_tokens(rows_file)
    assert caught.value.field == "data.token_cache_dir"


def test_rows_that_cannot_be_read_are_not_the_caches_fault(open_tokens: Open, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        open_tokens(tmp_path)


BUILD = """
import sys, time
from pathlib import Path
from trainer.core import token_cache
from trainer.core.chat import ChatEncoder
from trainer.core.models import load_tokenizer
from trainer.core.token_cache import TokenCache

model, rows, directory, pause = sys.argv[1:]
original = token_cache.seal
def slow(*arguments, **options):
    print("building", flush=True)
    time.sleep(float(pause))
    original(*arguments, **options)
token_cache.seal = slow
cache = TokenCache(Path(directory), max_bytes=1 << 30, warn=print)
encoder = ChatEncoder(load_tokenizer(Path(model)))
found = cache.open(Path(rows), encoder=encoder, max_length=128, overlong="drop")
print(found.digest, int(found.tokens.sum()), flush=True)
"""


def start(model: Path, rows: Path, directory: Path, *, pause: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(model), str(rows), str(directory), str(pause)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.integration
def test_two_processes_at_once_get_the_same_tokens(
    model_directory: Path, rows_file: Path, directory: Path, open_tokens: Open
) -> None:
    both = [start(model_directory, rows_file, directory, pause=1) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[0][-1] == said[1][-1]
    assert len(entries(directory)) == 1
    assert leftovers(directory) == []


@pytest.mark.integration
def test_a_process_killed_while_it_tokenises_leaves_nothing_that_lasts(
    model_directory: Path, rows_file: Path, directory: Path, open_tokens: Open
) -> None:
    process = start(model_directory, rows_file, directory, pause=600)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    other = open_tokens(rows_file, settings={"beside": "it"})  # does not take a living builder's place
    assert other.num_rows == 24
    assert any(name.startswith(token_cache.TEMPORARY_PREFIX) for name in leftovers(directory))
    process.kill()
    process.communicate(timeout=60)
    assert open_tokens(rows_file).num_rows == 24
    assert leftovers(directory) == []
