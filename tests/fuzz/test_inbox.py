"""Door 4: the inbox. Any bytes under any name: a job, or moved aside with the reason. Never in the way."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.house import ROW, age
from tests.fuzz.requests import junk

pytestmark = [pytest.mark.integration, pytest.mark.fuzz, pytest.mark.timeout(3000)]
TAKEN = (b"", b"high", b"normal", b"low")
FOLDERS = [*TAKEN, b"sub", b"high/deep", b"..odd", b"\xff", b"a\nb"]
GOOD = (ROW % "a").encode()

stems = st.sampled_from(
    [b"a", b"-rf", b"--help", b"..", b"...", b"a b", b"a\nb", b"\xff\xfe", b"[/]", b"~", b"~root", b"x" * 249]
    + [
        b"x" * 240,
        "é".encode() * 120,
        "\u202e".encode(),
        b"$(id)",
        b"%s",
        b".hidden",
        b"a.reason.json",
        b"\\",
    ]
) | st.binary(min_size=1, max_size=20).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
# ruff: noqa: E501, RUF005 - lists of odd values read best as lists
names = st.tuples(stems, st.sampled_from([b".jsonl"] * 9 + [b".JSONL", b".txt", b""])).map(b"".join)

values = junk.map(lambda value: json.dumps(value).encode())
MUTATIONS = [
    b"", b"\n", b"\xef\xbb\xbf", b"\xff\xfe", b"null", b"[]", b"0", b"NaN", b"\0", b"{", b"1" * 5000, b"[" * 100_000,
    b'{"a":' * 2000, b'{"messages": NaN}', b'{"messages": [], "messages": {}}', b'{"prompt": "a", "completion": "\\ud800"}',
    b'{"prompt": 1e999, "completion": "b"}', b'{"prompt": "a", "completion": "b", "tags": "x", "id": 1}',
    b'{"prompt": "a", "completion": "b", "difficulty": null}', b'{"prompt": "\\u0000", "completion": "\\u0000"}',
    b"\r", b"\x85", b"\xe2\x80\xa8", b'{"prompt": "a\\ud83d\\ude00", "completion": "b"}', b" " * (5 << 20),
]  # fmt: skip
lines = st.one_of([st.just(GOOD.strip())] * 3 + [st.sampled_from(MUTATIONS), values, st.binary(max_size=30)])
ends = st.sampled_from([b"\n", b"\n", b"\r\n", b"\r", b"", b"\n\n"])
contents = st.lists(st.tuples(lines, ends).map(b"".join), max_size=4).map(b"".join)
drops = st.lists(
    st.tuples(st.sampled_from(list(TAKEN) * 3 + FOLDERS), names, contents), min_size=1, max_size=3
)


def put(inbox: Path, *, folder: bytes, name: bytes, content: bytes) -> bytes | None:
    """The path of the new file; None where the file system has no such name."""
    directory = os.path.join(os.fsencode(inbox), folder)
    path = os.path.join(directory, name)
    if name in (b".", b".."):
        return None
    try:
        os.makedirs(directory, exist_ok=True)
        with open(path, "wb") as stream:
            stream.write(content)
    except OSError:
        return None
    return path


def is_meant(folder: bytes, name: bytes) -> bool:
    return folder in TAKEN and name.endswith(b".jsonl") and not name.startswith(b".")


@settings(settings.get_profile("fuzz"))
@given(drops)
def test_a_dropped_file_becomes_a_job_or_is_moved_aside(
    door: Any, files: list[tuple[bytes, bytes, bytes]]
) -> None:
    with door() as case:
        inbox = case.context.settings.paths.inbox
        written = [
            (put(inbox, folder=folder, name=name, content=content), is_meant(folder, name))
            for folder, name, content in files
        ]
        age(inbox)
        case.wire.run("inbox.scan")
        for path, meant in written:
            assert path is None or os.path.exists(path) is not meant, f"{path!r}: meant={meant}"
