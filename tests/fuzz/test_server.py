"""The inference server keeps to the schema that it tells of itself, whatever is sent to it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from inference.testing import build_sealed_tiny_model
from tests.inference.server.conftest import ADMIN_KEY, config_for
from tests.inference.server.test_serving import running

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3000)]
ROUTES = (
    "GET /gpu",
    "GET /health",
    "GET /info",
    "GET /jobs",
    "GET /metrics",
    "GET /models",
    "GET /system",
    "GET /v1/models",
    "GET /v1/models/{name}",
    "GET /version",
    "POST /generate",
    "POST /models/register",
    "POST /models/set_active",
    "POST /v1/chat/completions",
    "POST /v1/completions",
)
# Without parameters there is little to vary; what takes a body gets most of the cases.
NUM_CASES = max(2, int(os.environ.get("CASES", "400")) // 8)
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real server, whose releases are two, with short replies."""
    directory = tmp_path_factory.mktemp("server")
    for seed, name in enumerate(("release-1", "release-2"), start=1):
        build_sealed_tiny_model(directory / "releases" / name, seed=seed)
    (directory / "releases" / "current").symlink_to("release-1")
    config = config_for(directory / "releases", directory=directory).changed(max_new_tokens=4)
    with running(config, directory=directory) as (url, process):
        yield url
        assert process.poll() is None, (directory / "server.log").read_text()[-2000:]
    assert "Traceback" not in Path(directory / "server.log").read_text()


@pytest.fixture(scope="module")
def api(url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_route_is_tried(api: schemathesis.BaseSchema) -> None:
    assert sorted(label_of(found) for found in api.get_all_operations()) == sorted(ROUTES)


@pytest.mark.parametrize("route", ROUTES)
def test_no_request_breaks_the_server_or_its_schema(api: schemathesis.BaseSchema, route: str) -> None:
    method, path = route.split(" ")
    operation = api[path][method]

    @given(case=operation.as_strategy())
    @settings(
        max_examples=NUM_CASES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
    def answers(case: schemathesis.Case) -> None:
        response = case.call(headers={"Authorization": f"Bearer {ADMIN_KEY}"}, timeout=60)
        case.validate_response(response, checks=CHECKS)
        assert response.headers["x-request-id"]

    answers()


def label_of(found: Any) -> str:
    operation = found.ok()
    return f"{operation.method.upper()} {operation.path}"
