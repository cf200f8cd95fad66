"""Takes in what comes from outside: datasets, suites, model directories. Checked whole, then copied.

Everything is named by its content and lies below TANDEM_HOME from then on, so that a file that a user moves
or edits later changes no job.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from config.settings import Settings
from intelligence import scorers
from intelligence.contamination import ContaminationLimits, Overlap, find_overlaps, question
from intelligence.pairs import cluster_name
from registry.errors import DatasetError, ManifestError, ProfileError
from registry.files import sha256_file, sync_directory, sync_tree, write_atomically
from registry.manifests import Manifest, list_files, weights_sha256, write_manifest
from registry.os_errors import outage
from registry.profiles.base import Profile, wrap_row
from registry.profiles.catalogue import PLAIN
from registry.records import Dataset, Suite
from registry.rows import ChatRow, read_rows

MODEL_SUFFIXES = {".json", ".safetensors", ".txt", ".jinja", ".model"}
PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
MAX_NAMED = 3


def locate(name: str, *, settings: Settings) -> Path:
    """The file or directory that a request names; `DatasetError` outside the allowed roots.

    A relative name is looked up in the inbox, then in the directory in which the worker runs.
    """
    home = settings.home
    roots = [home, Path.cwd().resolve(), *(root.expanduser().resolve() for root in settings.allowed_roots)]
    try:
        given = Path(name).expanduser()
        tried = [given] if given.is_absolute() else [settings.paths.inbox / given, Path.cwd() / given]
        resolved = [path.resolve() for path in tried]
        found = [path for path in resolved if path.exists()]
    except (OSError, ValueError, RuntimeError) as error:  # too long, a zero byte, a home nobody has
        raise DatasetError(f"{name[:80]!r} cannot be a path: {error}.", remedy="Check the path.") from None
    inside = [path for path in resolved if any(path.is_relative_to(root) for root in roots)]
    if not inside:
        raise DatasetError(
            f"{name} lies outside the allowed roots ({', '.join(map(str, roots))}).",
            remedy=f"Copy it to {settings.paths.inbox}, or name its directory in TANDEM_ALLOWED_ROOTS.",
        )
    found = [path for path in found if path in inside]
    if not found:
        looked = " and ".join(map(str, inside))
        raise DatasetError(f"{name} does not exist (looked at {looked}).", remedy="Check the path.")
    return found[0]


def take_dataset(path: Path, *, settings: Settings, now: datetime) -> Dataset:
    """Check every row of a file and copy it into the dataset store, named by its content."""
    copy, digest, num_rows = _take_rows(path, store=settings.paths.datasets)
    return Dataset(
        id=f"ds-{digest[:12]}",
        name=path.stem,
        content_sha256=digest,
        path=str(copy),
        num_rows=num_rows,
        num_bytes=copy.stat().st_size,
        created_at=now,
    )


def take_suite(path: Path, *, name: str, settings: Settings, now: datetime, scorer: str = "") -> Suite:
    """Check a suite: each row has an answer that its own scorer accepts, and none stands in it twice.

    `scorer` is written into the rows that name none, so that the suite's content says how it is judged.
    Raises `DatasetError`, or `UnknownScorer` with the list of names.
    """
    copy, digest, num_rows = _take_rows(path, store=settings.paths.suites)
    if scorer:
        copy, digest = _with_scorer(copy, scorer=scorer)
    rows = list(read_rows(copy))
    _refuse_repeated(rows, name=path.name)
    _refuse_unjudged(rows, name=path.name)
    _refuse_too_few(rows, name=path.name, min_pairs=settings.regression.min_pairs)
    return Suite(
        id=f"suite-{digest[:12]}",
        name=name,
        content_sha256=digest,
        path=str(copy),
        num_rows=num_rows,
        num_by_difficulty=dict(Counter(row.difficulty for row in rows)),
        is_active=True,
        created_at=now,
    )


def refuse_overlap(
    dataset: Dataset,
    *,
    suite: Suite,
    limits: ContaminationLimits | None = None,
    remedy: str = "Remove them from the training data; `tandem data validate FILE` names every such row.",
) -> None:
    """`DatasetError` where training rows give away what the suite asks: its accuracy would be a lie."""
    overlaps = overlaps_with(Path(dataset.path), suite=suite, limits=limits)
    if overlaps:
        named = ", ".join(map(str, overlaps[:MAX_NAMED])) + (", ..." if overlaps[MAX_NAMED:] else "")
        raise DatasetError(
            f"{dataset.name}: {len(overlaps)} rows are also in the validation suite {suite.id}: {named}.",
            remedy=remedy,
        )


def refuse_unfit(rows: Iterable[ChatRow], *, name: str, profile: Profile) -> None:
    """`DatasetError` at the first row that the profile has no form for, with its reason."""
    if profile.name == PLAIN.name:
        return
    for number, row in enumerate(rows, start=1):
        try:
            wrap_row(profile, row)
        except ProfileError as error:
            raise DatasetError(
                f"{name}, row {number} is not for profile {profile.name}: {error.message}",
                remedy=f"`tandem data convert --profile {profile.name} --drop-bad` leaves them out.",
            ) from None


def overlaps_with(path: Path, *, suite: Suite, limits: ContaminationLimits | None = None) -> list[Overlap]:
    """The rows of a file that share too much with the suite, each with what it shares."""
    asked = list(read_rows(Path(suite.path)))
    return find_overlaps(read_rows(path), suite=asked, limits=limits or ContaminationLimits())


def take_model(source: Path, *, into: Path, manifest_fields: dict[str, object], now: datetime) -> Manifest:
    """Copy a model directory to `into`, with a manifest; `ManifestError` where it is not one."""
    check_model_directory(source)
    into.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=into.parent, prefix=f".{into.name}."))
    try:
        for path in sorted(source.iterdir()):
            if path.suffix in MODEL_SUFFIXES and path.name != "manifest.json" and path.is_file():
                shutil.copyfile(path, temporary / path.name)
        manifest = _manifest(temporary, fields=manifest_fields, now=now)
        write_manifest(temporary, manifest=manifest)
        temporary.chmod(0o755)
        temporary.rename(into)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_directory(into.parent)
    return manifest


def check_model_directory(source: Path) -> None:
    """`ManifestError` unless the directory has a configuration, safetensors weights and a tokenizer."""
    if not source.is_dir():
        raise ManifestError(f"{source} is not a directory.", remedy="Name a Hugging Face model directory.")
    names = {path.name for path in source.iterdir()}
    missing = [name for name in ("config.json", "tokenizer_config.json") if name not in names]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if not missing:
        return
    pickles = sorted(name for name in names if Path(name).suffix in PICKLE_SUFFIXES)
    hint = f" Pickled weights ({pickles[0]}) are never loaded." if pickles else ""
    raise ManifestError(
        f"{source} is not a model directory: {', '.join(missing)} missing.{hint}",
        remedy="Save model and tokenizer there with save_pretrained().",
    )


def _take_rows(path: Path, *, store: Path) -> tuple[Path, str, int]:
    """Copy first and check the copy, so that what was checked is what is kept."""
    if not path.exists() or not stat.S_ISREG(path.stat().st_mode):
        raise DatasetError(f"{path} is not a file.", remedy="Name a JSONL file.")
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".taking.") as directory:
        copy = Path(directory) / path.name
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            if outage(error) is not None:
                raise  # not the file's fault: the same one may be taken later
            raise DatasetError(f"{path} cannot be copied to {store}: {error.strerror}.") from None
        num_rows = sum(1 for _ in read_rows(copy))
        digest = sha256_file(copy)
        kept = store / f"{digest}.jsonl"
        sync_tree(Path(directory))
        copy.rename(kept)
    sync_directory(store)
    return kept, digest, num_rows


def _with_scorer(copy: Path, *, scorer: str) -> tuple[Path, str]:
    scorers.find(scorer)
    lines = []
    for row in read_rows(copy):
        named = row.changed(scorer=row.scorer or scorer)
        lines.append(json.dumps(named.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False))
    content = ("\n".join(lines) + "\n").encode()
    digest = hashlib.sha256(content).hexdigest()
    kept = copy.with_name(f"{digest}.jsonl")
    write_atomically(kept, content=content)
    return kept, digest


def _refuse_repeated(rows: Sequence[ChatRow], *, name: str) -> None:
    counts = Counter(question(row) for row in rows)
    ids = Counter(row.content_id for row in rows)
    for number, row in enumerate(rows, start=1):
        if counts[question(row)] > 1:
            raise DatasetError(
                f"{name}, row {number} stands in the suite {counts[question(row)]} times.",
                remedy="Keep one of them: a repeated question counts more than the others.",
            )
        if ids[row.content_id] > 1:
            raise DatasetError(
                f"{name}, row {number}: {ids[row.content_id]} rows have the id {row.content_id!r}.",
                remedy="Give each row an id of its own, or none: results are paired by it.",
            )


def _refuse_unjudged(rows: Sequence[ChatRow], *, name: str) -> None:
    for number, row in enumerate(rows, start=1):
        if row.scorer:
            scorers.find(row.scorer)
        judgement = scorers.judge(row, row.expected)
        if not judgement.is_correct:
            raise DatasetError(
                f"{name}, row {number}: {judgement.problem or 'its own answer is wrong to its scorer'}"
                f" ({row.scorer or 'exact'}: {row.expected[:60]!r}).",
                remedy="Mend the answer, or name another scorer: no reply could ever be correct.",
            )


def _refuse_too_few(rows: Sequence[ChatRow], *, name: str, min_pairs: int) -> None:
    """Rows of one cluster count once: what is told from them is told from as many values as clusters."""
    num_clusters = len({cluster_name(row.cluster, row_id=row.content_id) for row in rows})
    if num_clusters < min_pairs:
        shared = "" if num_clusters == len(rows) else f" in {num_clusters} clusters"
        raise DatasetError(
            f"{name} has {len(rows)} rows{shared}; a verdict needs {min_pairs} at least.",
            remedy="Add rows, or lower TANDEM_REGRESSION__MIN_PAIRS and know that verdicts say less.",
        )


def _manifest(directory: Path, *, fields: dict[str, object], now: datetime) -> Manifest:
    files = list_files(directory)
    return Manifest.model_validate(
        {
            "files": files,
            "weights_sha256": weights_sha256(files),
            "code_version": version("tandem"),
            "created_at": now,
            **fields,
        }
    )
