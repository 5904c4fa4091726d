"""The lines of a batch: what is wrong with some, and how they are read."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from server.batch.lines import read_lines
from tests.server.batch.jobs import URL, body, command, request, results, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

BAD_LINES: list[tuple[str | None, object, int, str, str]] = [  # custom_id, line, status, code, message
    (None, "{broken", 400, "invalid_json", "the line is not valid JSON"),
    (None, "null", 422, "invalid_parameter", "a JSON object with custom_id, method, url and body"),
    (None, "[]", 422, "invalid_parameter", "a JSON object with custom_id, method, url and body"),
    (None, request("good", body()), 422, "duplicate_custom_id", "'good' is already used by an earlier"),
    ("method", request("method", body(), method="GET"), 422, "invalid_parameter", "'POST'"),
    ("url", request("url", body(), url="/v1/embeddings"), 422, "invalid_parameter", f"'{URL}'"),
    ("body", request("body", "text"), 422, "invalid_parameter", "body: Input should be an object"),
    ("more", request("more", body(), extra=1), 422, "extra_forbidden", "extra"),
    (None, request("", body()), 422, "invalid_parameter", "custom_id: String should have at least"),
    (None, request("x" * 600, body()), 422, "invalid_parameter", "at most 512"),
    (None, {"method": "POST", "url": URL, "body": {}}, 422, "invalid_parameter", "custom_id"),
    ("stream", request("stream", body(stream=True)), 422, "parameter_not_supported", "stream is"),
    ("role", request("role", {"messages": [{}]}), 422, "invalid_parameter", "messages.0.role"),
    (None, request("long", body("x" * 30_000)), 413, "request_too_large", "--max-body-mb"),
    (None, "\ufeff{}", 400, "invalid_json", "byte order mark"),
    ("image", request("image", body([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])), 422, "invalid_image", "base64 is invalid"),
]  # fmt: skip


def test_bad_lines_get_errors_and_a_second_run_does_what_is_left(
    tiny: Path, tmp_path: Path
) -> None:
    lines = [json.dumps(request("good", body()))]
    lines += [line if isinstance(line, str) else json.dumps(line) for _, line, *_ in BAD_LINES]
    (tmp_path / "in.jsonl").write_text("\n\n".join([*lines, "", ""]), "utf-8")
    flags = ("--max-body-mb", "0.02")
    assert run(command(tiny, tmp_path, *flags)).returncode == 0
    found = {(result["error"] or {"line": 1})["line"]: result for result in results(tmp_path)}
    assert len(results(tmp_path)) == len(found) == len(BAD_LINES) + 1
    assert found.pop(1)["custom_id"] == "good"
    for number, (custom_id, _, status, code, message) in enumerate(BAD_LINES, 1):
        result = found[1 + 2 * number]
        response, error = result["response"], result["error"]
        assert result["custom_id"] == custom_id
        assert (response["status_code"], error["code"]) == (status, code)
        assert message in error["message"]
        assert response["body"]["error"]["message"] == error["message"]
        assert response["body"]["status"] == status

    before = (tmp_path / "out.jsonl").read_bytes()
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write(json.dumps(request("new", body())))  # the last line of a file may have no end
    with (tmp_path / "out.jsonl").open("ab") as file:
        file.write(before.splitlines()[0].replace(b'"good"', b'"new"')[:-20])
    done = run(command(tiny, tmp_path, *flags))
    assert done.returncode == 0
    assert done.stdout.startswith("1 answered, 0 failed, 0 left, 17 by earlier runs; 12 tokens ")
    after = (tmp_path / "out.jsonl").read_bytes()
    assert after.startswith(before)
    (new,) = after[len(before) :].splitlines()
    assert json.loads(new)["custom_id"] == "new"
    assert json.loads(new)["response"]["body"]["usage"]["completion_tokens"] == 12


@pytest.mark.skipif(sys.platform != "linux", reason="a file that can be opened and not read")
def test_an_input_that_cannot_be_read_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").symlink_to("/proc/self/mem")
    done = run(command(tiny, tmp_path))
    assert done.returncode == 1
    name = tmp_path / "in.jsonl"
    assert f"phi3v-server: {name}: Input/output error" in done.stderr


def test_lines_are_read_one_at_a_time_and_long_ones_are_passed_over() -> None:
    file = io.BytesIO(b"first\r\n" + b"x" * 3_000_000 + b"\n\n" + b"y" * 99 + b"\nlast")
    lines = read_lines(file, 99)
    assert (next(lines).data, file.tell()) == (b"first", 7)
    rest = [(line.number, line.data, line.size) for line in lines]
    assert rest == [(2, None, 3_000_001), (3, b"", 1), (4, b"y" * 99, 100), (5, b"last", 4)]
