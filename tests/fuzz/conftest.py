"""A home with a registry, and no Redis: every request reaches its task by a direct call through Celery."""

import os
from collections.abc import Iterator

import pytest

from config.settings import setting_names
from registry.schema import upgrade
from tests.fuzz.doors import Doors
from workers.context import current_context

ROW = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    work = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for name in setting_names():
            patch.delenv(name, raising=False)
        patch.setenv("TANDEM_HOME", str(work / "var"))
        patch.setenv("TANDEM_REDIS__URL", "redis://127.0.0.1:1/0")
        patch.setenv("TANDEM_SCHEDULE__INBOX_SETTLE_SECONDS", "0")
        patch.chdir(work)
        context = current_context()
        context.settings.paths.prepare()
        upgrade(context.registry)
        (work / "good.jsonl").write_text(ROW)
        (work / "folder").mkdir()
        os.mkfifo(work / "pipe.jsonl")
        yield Doors(work=work, context=context, patch=patch)
