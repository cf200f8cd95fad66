"""What the inference server tells of itself and takes from a deployer: read by deploy and ops."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from registry.values import Record

RELEASE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
CURRENT_LINK = "current"
RELEASE_HEADER = "X-Tandem-Release"

ServerState = Literal["ok", "waiting", "loading", "error"]
SwapStep = Literal["", "verifying", "draining", "loading", "probing", "returning"]


class ReleaseTraffic(Record):
    """What became of a release's requests since it was loaded.

    `num_requests` ended well or by the server's own failure; `num_errors` are the latter. What the client did
    wrong or gave up, and what was turned away for want of room, is in neither.
    """

    release_id: str
    since: AwareDatetime
    num_requests: int = Field(ge=0)
    num_errors: int = Field(ge=0)


class ServerHealth(Record):
    """`GET /health`. Only `ok` answers completions.

    `waiting`: no release was ever made current. `loading`: the first one is being loaded. `error`: it could
    not be, and `problem` says why. While `ok`, `loading_release_id` names a release being loaded beside the
    served one, and `problem` why the last attempt at one failed. `step` is what is done with it: where
    memory is short the served one makes way first, and `status` is `loading` until either answers.
    `num_requests` and `num_errors` count since the server's start, `traffic` since that release was loaded.
    """

    status: ServerState
    release_id: str | None
    weights_sha256: str | None
    loaded_at: AwareDatetime | None
    loading_release_id: str | None = None
    step: SwapStep = ""
    problem: str = ""
    traffic: ReleaseTraffic | None = None
    num_requests: int = Field(ge=0)
    num_errors: int = Field(ge=0)
    num_waiting: int = Field(ge=0)
    uptime_seconds: float = Field(ge=0)


class SetActiveRequest(Record):
    """`POST /models/set_active`: serve this release, which lies in the server's own releases directory."""

    release_id: str = Field(pattern=RELEASE_ID_PATTERN)


class SetActiveAnswer(Record):
    """The release that is served from here on, and the one before it."""

    release_id: str
    weights_sha256: str
    previous_release_id: str | None
    loaded_at: AwareDatetime


class RunningReply(Record):
    """A request that the server generates for. Its contents are told to nobody."""

    release_id: str
    num_prompt_tokens: int
    num_tokens: int
    age_seconds: float
    is_streamed: bool


class ReleaseInfo(Record):
    """A line of `GET /models`: a release in the server's directory. `problem`: it cannot be served."""

    release_id: str
    weights_sha256: str | None
    is_active: bool
    problem: str = ""
