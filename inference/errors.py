"""What can go wrong when a model is run.

InferenceError
├── ModelError              the directory cannot be loaded as a chat model, or is not the one asked for
│   └── OutOfMemory         the device's memory does not hold what was asked of it
├── PromptTooLong           prompt and answer do not fit in the model's positions
├── EvaluationStopped       whoever evaluates was told to end; what was answered is kept
└── ServerError             the HTTP server cannot start, or cannot do what it was asked
    ├── ServerConfigError   its configuration is unreadable or unsafe
    ├── ReleaseError        the named release is absent, broken, or failed its probe
    ├── NoActiveRelease     nothing is loaded that could answer
    ├── RequestRefused      the request cannot be done, or not by this client
    ├── ModelFailed         the served model computed no answer
    ├── EngineDown          the process that runs the model does not answer
    └── Overloaded          too many requests wait already
"""

from __future__ import annotations

from registry.errors import TandemError


class InferenceError(TandemError):
    """Root of this room."""


class ModelError(InferenceError):
    """The directory cannot be loaded as a chat model, or is not the one asked for."""


class OutOfMemory(ModelError):
    """The device's memory does not hold what was asked of it."""


class PromptTooLong(InferenceError):
    """Prompt and answer do not fit in the model's positions."""


class EvaluationStopped(InferenceError):
    """Whoever evaluates was told to end. What was answered is kept where answers are."""


class ServerError(InferenceError):
    """The HTTP server cannot start, or cannot do what it was asked."""


class ServerConfigError(ServerError):
    """The server's configuration is unreadable or unsafe."""


class ReleaseError(ServerError):
    """The named release is absent, broken, or failed its probe."""


class NoActiveRelease(ServerError):
    """Nothing is loaded that could answer."""


class RequestRefused(ServerError):
    """The request cannot be done, or not by this client. Carries what the HTTP answer needs."""

    def __init__(
        self,
        message: str,
        *,
        remedy: str = "",
        status_code: int = 400,
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status_code = status_code
        self.code = code
        self.param = param


class ModelFailed(ServerError):
    """The served model computed no answer: its logits were not finite."""


class EngineDown(ServerError):
    """The process that runs the model does not answer."""


class Overloaded(ServerError):
    """Too many requests wait already."""
