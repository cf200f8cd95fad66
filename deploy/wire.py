"""What a deployer and the gate of an intelligence host say to each other: a JSON record a line.

The deployer sends one `Envelope`; the gate answers with `Beat`s while it works, so that silence means a
dead link, and one `Reply` at the end.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import AwareDatetime, Base64Bytes, Field, JsonValue, field_validator, model_validator

from registry.manifests import FileEntry, Manifest
from registry.serving import RELEASE_ID_PATTERN
from registry.values import Record

SHA256_PATTERN = r"^[0-9a-f]{64}$"
PARCEL_NAME_PATTERN = rf"({RELEASE_ID_PATTERN})|({SHA256_PATTERN})"
FILE_NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*$"

FileName = Annotated[str, Field(pattern=FILE_NAME_PATTERN, max_length=300)]
ParcelKind = Literal["release", "model", "suite"]


class Parcel(Record):
    """Files to bring: a release by its id, or a candidate model or a suite by its content hash."""

    kind: ParcelKind
    name: str = Field(pattern=PARCEL_NAME_PATTERN)
    files: dict[FileName, FileEntry] = Field(min_length=1)
    manifest: Manifest | None = Field(default=None, description="of a model; a suite has none")
    contents: dict[FileName, Base64Bytes] = Field(
        default_factory=dict, description="files that travel here, not by rsync"
    )

    @model_validator(mode="after")
    def _names_what_it_holds(self) -> Parcel:
        if (self.kind == "suite") != (self.manifest is None):
            raise ValueError("a release and a model have a manifest, a suite has none")
        if self.manifest is not None and self.manifest.files != self.files:
            raise ValueError("the manifest names other files")
        if not self.contents.keys() <= self.files.keys():
            raise ValueError("contents are of files that it does not name")
        if self.kind == "model" and self.manifest and self.manifest.weights_sha256 != self.name:
            raise ValueError("a model is named by the hash of its weights")
        return self

    @property
    def directory(self) -> str:
        """Its name where it arrives, by content: a release planned anew uses what came of the last."""
        content = self.name if self.manifest is None else self.manifest.weights_sha256
        return f"{self.kind}-{content[:16]}"

    @property
    def carried(self) -> list[str]:
        """The files that are not in this record."""
        return sorted(self.files.keys() - self.contents.keys())

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(entry.num_bytes for entry in self.files.values())


class Hello(Record):
    """Who are you?"""

    verb: Literal["hello"] = "hello"


class Begin(Record):
    """May this come, and how?"""

    verb: Literal["begin"] = "begin"
    parcel: Parcel


class Seal(Record):
    """It has arrived: verify it and put it in its place."""

    verb: Literal["seal"] = "seal"
    parcel: Parcel


class Verify(Record):
    """Read every file of a release again."""

    verb: Literal["verify"] = "verify"
    release_id: str


class Activate(Record):
    """Point `current` at a release."""

    verb: Literal["activate"] = "activate"
    release_id: str
    is_return: bool = False


class Current(Record):
    """Which release is current?"""

    verb: Literal["current"] = "current"


class Prune(Record):
    """Remove old releases."""

    verb: Literal["prune"] = "prune"
    keep: int = Field(ge=0)
    protect: tuple[str, ...] = ()


class Health(Record):
    """What does the server there serve?"""

    verb: Literal["health"] = "health"


class SetActive(Record):
    """Have the server there load a release."""

    verb: Literal["set_active"] = "set_active"
    release_id: str


class Probe(Record):
    """Have the server there answer a prompt with a release."""

    verb: Literal["probe"] = "probe"
    release_id: str
    prompt: str = Field(min_length=1, max_length=20_000)


Request = Hello | Begin | Seal | Verify | Activate | Current | Prune | Health | SetActive | Probe


class Envelope(Record):
    """A request with the token of the lease under which it is made.

    The gate remembers the highest token: a deployer that was frozen while another took over changes
    nothing any more (fencing: Kleppmann, How to do distributed locking, 2016).
    """

    fence: int = Field(default=0, ge=0)
    request: Annotated[Request, Field(discriminator="verb")]


class Beat(Record):
    """Still at work."""

    is_beat: Literal[True] = True


class Reply(Record):
    """The answer, or the error: its class in `deploy.errors`, sentence and remedy."""

    value: JsonValue = None
    error: str = ""
    message: str = ""
    remedy: str = ""


class HelloAnswer(Record):
    """What `tandem doctor` and a transfer want to know of a host."""

    host: str
    version: str
    time: AwareDatetime
    has_rsync: bool
    knows_fsync: bool
    releases_dir: str
    incoming_dir: str
    free_bytes: int
    num_releases: int
    num_cached: int
    current: str | None


class Slot(Record):
    """How a parcel may come. `is_present`: it is there whole. `base`: what unchanged files are linked to."""

    is_present: bool
    directory: str
    incoming_dir: str
    path: str
    base: str | None = None
    has_partial: bool = False
    has_rsync: bool = True
    knows_fsync: bool = False

    @field_validator("base")
    @classmethod
    def _base_is_a_name(cls, base: str | None) -> str | None:
        if base is not None and (len(PurePosixPath(base).parts) != 1 or base.startswith((".", "-"))):
            raise ValueError(f"{base!r} is no name of a directory")
        return base
