"""A releases directory with two releases, and the application over it, without a socket."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from inference.server.app import make_app
from inference.server.config import ServerConfig
from inference.testing import build_sealed_tiny_model

ADMIN_KEY = "admin-key-of-the-tests"
READ_KEY = "read-key-of-the-tests"
Serve = Callable[..., "contextmanager[TestClient]"]


@pytest.fixture(scope="session")
def sealed_releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("releases")
    for seed, name in enumerate(("release-1", "release-2"), start=1):
        build_sealed_tiny_model(directory / name, seed=seed)
    return directory


@pytest.fixture
def releases_dir(sealed_releases: Path, tmp_path: Path) -> Path:
    """Both releases, the first of them current."""
    directory = shutil.copytree(sealed_releases, tmp_path / "releases")
    (directory / "current").symlink_to("release-1")
    return directory


@pytest.fixture
def config(releases_dir: Path, tmp_path: Path) -> ServerConfig:
    return config_for(releases_dir, directory=tmp_path)


@pytest.fixture(scope="module")
def module_config(sealed_releases: Path, tmp_path_factory: pytest.TempPathFactory) -> ServerConfig:
    """For a server that several tests share."""
    directory = tmp_path_factory.mktemp("server")
    shutil.copytree(sealed_releases, directory / "releases")
    (directory / "releases" / "current").symlink_to("release-1")
    return config_for(directory / "releases", directory=directory)


def config_for(releases_dir: Path, *, directory: Path) -> ServerConfig:
    admin_key_file = directory / "admin_key"
    admin_key_file.write_text(ADMIN_KEY + "\n")
    return ServerConfig(
        port=0,
        releases_dir=releases_dir,
        admin_key_file=admin_key_file,
        device="cpu",
        num_threads=1,
        max_new_tokens=32,
        max_prompt_tokens=300,
        max_body_bytes=4096,
    )


@pytest.fixture
def config_with_keys(config: ServerConfig, tmp_path: Path) -> ServerConfig:
    path = tmp_path / "read_key"
    path.write_text(READ_KEY)
    return config.changed(read_key_file=path)


@contextmanager
def serving(config: ServerConfig) -> Iterator[TestClient]:
    app = make_app(config)
    with TestClient(app, base_url="http://127.0.0.1:8765", raise_server_exceptions=False) as client:
        client.app.state.restored.result(timeout=60)
        yield client


@pytest.fixture
def serve() -> Callable[[ServerConfig], object]:
    """Start the application; the first load has ended when the client is handed out."""
    return serving


@pytest.fixture
def client(config: ServerConfig) -> Iterator[TestClient]:
    with serving(config) as client:
        yield client
