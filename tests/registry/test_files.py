import hashlib
import json
import math
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import files
from registry.files import sha256_file, sha256_text, sync_tree, write_atomically, write_json


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_whole_with_its_mode_and_its_directories(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "secret"
    write_atomically(path, content=b"text", mode=0o600)
    assert path.read_bytes() == b"text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == ["secret"]


def test_writing_again_replaces_content_and_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, content=b"long old text", mode=0o600)
    write_atomically(path, content=b"short")
    assert path.read_bytes() == b"short"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    write_atomically(path, content=b"old")
    monkeypatch.setattr(*((os, "fsync", fail) if step == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, content=b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_the_content_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    existed: list[bool] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        existed.append(path.exists())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, content=b"text")
    assert existed == [False, True]


def test_json_is_readable_text_that_ends_with_a_newline(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json(path, value={"word": "schön", "n": 1})
    assert path.read_text("utf-8") == '{\n  "word": "schön",\n  "n": 1\n}\n'


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "\ud800"])
def test_what_is_not_strict_json_is_never_written(tmp_path: Path, bad: object) -> None:
    path = tmp_path / "value.json"
    write_json(path, value={"loss": 1.0})
    with pytest.raises(ValueError):
        write_json(path, value={"loss": bad})
    assert json.loads(path.read_text()) == {"loss": 1.0}
    assert names(tmp_path) == ["value.json"]


@given(st.binary(max_size=200), st.integers(1, 7))
def test_a_hash_does_not_depend_on_the_blocks_it_was_read_in(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, block: int
) -> None:
    path = tmp_path_factory.mktemp("hash") / "file"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "HASH_BLOCK_BYTES", block)
        assert sha256_file(path) == hashlib.sha256(content).hexdigest()


def test_a_texts_hash_is_that_of_its_utf8_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("schön", encoding="utf-8")
    assert sha256_text("schön") == sha256_file(path)


def test_a_tree_is_synced_file_by_file_and_its_root_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_text(name)
    synced: list[Path] = []
    real = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    sync_tree(tmp_path)
    assert set(synced) == {tmp_path / "a", tmp_path / "sub", tmp_path / "sub" / "b", tmp_path}
    assert synced[-1] == tmp_path
