"""The HTTP application: an OpenAI-compatible door to the active release, a narrow one for the deployer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.responses import PlainTextResponse

from inference.errors import RequestRefused
from inference.server.asking import STREAMED_RESPONSES
from inference.server.backend import Backend
from inference.server.chat import ChatHandler
from inference.server.completion_protocol import CompletionRequest, GenerateRequest
from inference.server.completions import CompletionHandler
from inference.server.config import Keys, ServerConfig, load_keys
from inference.server.engine import Engine
from inference.server.failures import ERROR_RESPONSES, install_handlers
from inference.server.guard import RequestGuard
from inference.server.insight import (
    GpuList,
    RunningRequests,
    ServerInfo,
    SystemInfo,
    gpu_list,
    running_requests,
    server_info,
    system_info,
)
from inference.server.local import LocalBackend
from inference.server.metrics import Metrics
from inference.server.protocol import MODEL_ALIASES, ChatRequest
from inference.server.releases import list_releases
from inference.server.replies import model_entry
from inference.server.smoke import SmokeTest
from inference.server.vllm import VllmBackend
from registry.serving import ReleaseInfo, ServerHealth, SetActiveAnswer, SetActiveRequest

PARTS = ("tandem", "torch", "transformers", "fastapi")


def utc_now() -> datetime:
    """The system's clock."""
    return datetime.now(UTC)


def make_backend(config: ServerConfig) -> Backend:
    """What runs the models, by the configuration."""
    return VllmBackend(config) if config.engine == "vllm" else LocalBackend(config)


def make_app(
    config: ServerConfig, *, clock: Callable[[], datetime] = utc_now, backend: Backend | None = None
) -> FastAPI:
    """Build the application. Its start begins to load the current release and does not wait for it.

    Raises `ServerConfigError` for unusable keys and for an open door beyond loopback. `app.state.engine` is
    the engine, and `app.state.restored` the future of the first load, both for tests and embedding.
    """
    keys = load_keys(config)
    metrics = Metrics()
    smoke = SmokeTest(lambda: app, key=keys.admin)
    engine = _make_engine(config, backend=backend, smoke=smoke, clock=clock, metrics=metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.restored = engine.restore()
        yield
        await asyncio.to_thread(engine.close)

    # No documentation pages: they would load their scripts from the internet.
    app = FastAPI(
        title="tandem", lifespan=lifespan, docs_url=None, redoc_url=None, responses=dict(ERROR_RESPONSES)
    )
    app.state.engine = engine
    install_handlers(app)
    app.add_middleware(
        RequestGuard,
        max_body_bytes=config.max_body_bytes,
        active_release_id=lambda: engine.active_id,
        metrics=metrics,
        is_open=keys.read is None,
    )
    for router in (
        _open_routes(engine),
        _read_routes(engine, config=config, clock=clock, keys=keys),
        _insight_routes(engine, config=config, keys=keys, metrics=metrics),
        _admin_routes(engine, keys=keys),
    ):
        app.include_router(router)
    return app


def _make_engine(
    config: ServerConfig,
    *,
    backend: Backend | None,
    smoke: SmokeTest,
    clock: Callable[[], datetime],
    metrics: Metrics,
) -> Engine:
    engine = Engine(
        config, backend=backend or make_backend(config), smoke=smoke, clock=clock, metrics=metrics
    )
    _watch(engine, metrics=metrics)
    return engine


def _open_routes(engine: Engine) -> APIRouter:
    """What a health check must reach without a key: no names of clients, no contents."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> ServerHealth:
        """200 while the process lives; `status` says whether it can answer."""
        return engine.health()

    @router.get("/version")
    async def versions() -> dict[str, str]:
        return {name: _version(name) for name in PARTS}

    return router


def _read_routes(
    engine: Engine, *, config: ServerConfig, clock: Callable[[], datetime], keys: Keys
) -> APIRouter:
    router = APIRouter(dependencies=[Depends(_reader(keys))])
    chat = ChatHandler(engine, config=config, clock=clock)
    texts = CompletionHandler(engine, config=config, clock=clock)

    @router.post("/v1/chat/completions", response_model=None, responses=dict(STREAMED_RESPONSES))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        return await chat.answer(body, request)

    @router.post("/v1/completions", response_model=None, responses=dict(STREAMED_RESPONSES))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await texts.complete(body, request)

    @router.post("/generate", response_model=None)
    async def generate(body: GenerateRequest, request: Request) -> Response:
        return await texts.generate(body, request)

    @router.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": _model_entries(engine)}

    @router.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        for entry in _model_entries(engine):
            if entry["id"] == name:
                return entry
        raise RequestRefused(f"The model {name!r} is not served.", status_code=404, code="model_not_found")

    @router.get("/models")
    def releases() -> list[ReleaseInfo]:
        return list_releases(config.releases_dir, active_id=engine.active_id)

    return router


def _insight_routes(engine: Engine, *, config: ServerConfig, keys: Keys, metrics: Metrics) -> APIRouter:
    router = APIRouter(dependencies=[Depends(_reader(keys))])

    @router.get("/info")
    async def info() -> ServerInfo:
        return server_info(engine, config=config)

    @router.get("/gpu")
    async def gpu() -> GpuList:
        return gpu_list()

    @router.get("/system")
    async def system() -> SystemInfo:
        return system_info(config)

    @router.get("/jobs")
    async def jobs() -> RunningRequests:
        return running_requests(engine)

    @router.get("/metrics", response_class=PlainTextResponse)
    async def numbers() -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _admin_routes(engine: Engine, *, keys: Keys) -> APIRouter:
    router = APIRouter(dependencies=[Depends(_administrator(keys))])

    @router.post("/models/set_active")
    async def set_active(body: SetActiveRequest) -> SetActiveAnswer:
        """Answers when the release is served, or 422 with the old one still serving."""
        served, previous = await engine.activate(body.release_id)
        return SetActiveAnswer(
            release_id=served.release_id,
            weights_sha256=served.loaded.weights_sha256,
            previous_release_id=previous,
            loaded_at=served.loaded_at,
        )

    @router.post("/models/register")
    async def register(body: SetActiveRequest) -> ReleaseInfo:
        """Verify every file of a release that lies in the releases directory; 422 tells what is wrong."""
        return await engine.register(body.release_id)

    return router


def _watch(engine: Engine, *, metrics: Metrics) -> None:
    """Numbers that are read when they are asked for."""
    metrics.gauge("requests_running", "Requests generated for.", read=lambda: len(engine.running()))
    metrics.gauge("requests_waiting", "Requests that wait.", read=lambda: engine.num_waiting)
    metrics.gauge("cached_tokens", "Tokens cached, padding included.", read=lambda: engine.num_cached_tokens)
    metrics.gauge("release_active", "1 where a release is served.", read=lambda: engine.active_id is not None)


def _reader(keys: Keys) -> Callable[[str], Awaitable[None]]:
    async def check(authorization: str = Header(default="")) -> None:
        if not keys.may_read(_bearer(authorization)):
            raise _unauthorized(authorization)

    return check


def _administrator(keys: Keys) -> Callable[[str], Awaitable[None]]:
    async def check(authorization: str = Header(default="")) -> None:
        key = _bearer(authorization)
        if keys.may_administer(key):
            return
        if keys.read is not None and keys.may_read(key):
            raise RequestRefused(
                "This needs the admin key.", status_code=403, code="insufficient_permissions"
            )
        raise _unauthorized(authorization)

    return check


def _bearer(authorization: str) -> str:
    scheme, _, key = authorization.partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _unauthorized(authorization: str) -> RequestRefused:
    reason = "The API key is wrong." if authorization else "An API key is needed."
    remedy = "Send it as 'Authorization: Bearer KEY'."
    return RequestRefused(reason, remedy=remedy, status_code=401, code="invalid_api_key")


def _model_entries(engine: Engine) -> list[dict[str, Any]]:
    if engine.active_id is None:
        return []
    release = engine.active()
    return [model_entry(release, name=name) for name in (release.release_id, *MODEL_ALIASES)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
