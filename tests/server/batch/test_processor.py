"""The answers of a batch: what the server answers, and what another run is left to do."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server.commands import Batch
from tests.server.batch.jobs import (
    FETCHING,
    URL,
    body,
    by_id,
    command,
    image_message,
    request,
    results,
    run,
    write,
)
from tests.support.peers.image_host import ImageHost
from tests.support.servers.live_server import API_KEY, LiveServer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_results_are_what_the_server_answers(
    tiny: Path, server: LiveServer, tmp_path: Path
) -> None:
    bodies = [
        *(body(f"question {number} " * number, max_tokens=30 - number) for number in range(1, 10)),
        body("two", n=2, logprobs=True, top_logprobs=2),
        body("a seed", temperature=1.5, seed=7, stop=["e"]),
        body("json", response_format={"type": "json_object"}),
        {**body(), "messages": image_message(), "max_tokens": 20},
        body(temperature=9, no_such_parameter=1),
        body(tools=[{"type": "function"}]),
        body("too long " * 9000),
        body(stream=False),
        {},
    ]
    lines = [request(f"line {number}", each) for number, each in enumerate(bodies)]
    write(
        tmp_path / "in.jsonl", [*lines, request("Azure's", body(top_k=5), url="/chat/completions")]
    )
    # More lines are in the making than may wait, so that some are begun again.
    done = run(command(tiny, tmp_path, "--max-num-seqs", "4", "--max-waiting", "0"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("15 answered, 4 failed, 0 left, 0 by earlier runs; ")
    assert "100%" in done.stderr
    found = by_id(tmp_path)
    assert found.pop("Azure's")["response"]["status_code"] == 200
    assert len(found) == len(lines)
    for line in lines:
        answer = httpx2.post(
            f"{server.url}{URL}", json=line["body"], headers={"api-key": API_KEY}, timeout=120
        )
        result = found[str(line["custom_id"])]
        response = result["response"]
        assert response["status_code"] == answer.status_code
        assert result["id"].startswith("batch_req_")
        assert response["request_id"]
        if answer.status_code == 200:
            assert result["error"] is None
            assert same(response["body"]) == same(answer.json())
        else:
            error = answer.json()["error"]
            number = lines.index(line) + 1
            given = {"code": error["code"], "message": error["message"], "line": number}
            assert (response["body"], result["error"]) == (answer.json(), given)


def same(answer: dict[str, Any]) -> dict[str, Any]:
    """What of an answer depends on its request alone."""
    assert answer["id"]
    details = answer["usage"].pop("prompt_tokens_details")
    assert details.keys() == {"cached_tokens"}
    return {key: value for key, value in answer.items() if key not in ("id", "created")}


def test_an_answer_that_takes_too_long_is_left_for_another_run(tiny: Path, tmp_path: Path) -> None:
    long = body(max_tokens=500, ignore_eos=True)
    write(
        tmp_path / "in.jsonl",
        [request("slow", long), request("bad", {}), request("slow", {})],
    )
    assert Batch(_cli_parse_args=[str(tmp_path / "in.jsonl"), "out"]).request_timeout == math.inf
    flags = ("--log-format", "json", "--request-timeout", "0.05")
    done = run(command(tiny, tmp_path, *flags))
    assert (done.returncode, done.stdout) == (1, "")
    log = [json.loads(line)["message"] for line in done.stderr.splitlines()]  # no bar in it
    assert any(line.startswith("0 answered, 2 failed, 1 left, 0 by earlier runs") for line in log)
    assert "1 line got no result (see the log); run the batch again to retry it" in log
    assert any(
        line.startswith("line 1 will be retried by the next run: the answer took") for line in log
    )
    before = [(each["custom_id"], each["error"]["line"]) for each in results(tmp_path)]
    assert sorted(before, key=str) == [("bad", 2), (None, 3)]
    done = run(command(tiny, tmp_path), TQDM_DISABLE="1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("1 answered, 0 failed, 0 left, 2 by earlier runs; 500 tokens ")
    assert float(done.stdout.split()[-2]) > 0.05  # seconds, though there is no bar that counts them
    assert "%" not in done.stderr
    assert [result["custom_id"] for result in results(tmp_path)][2:] == ["slow"]


@pytest.fixture
def host(tmp_path: Path) -> Iterator[ImageHost]:
    host = ImageHost(tmp_path)
    yield host
    host.stop()


def test_images_are_fetched_once_and_again_by_another_run_where_that_failed(
    tiny: Path, host: ImageHost, tmp_path: Path
) -> None:
    paths = [*(f"/good?{number}" for number in range(9)), "/missing", "/busy", "/slow"]
    bodies = [{**body(), "messages": image_message(host.http + path)} for path in paths]
    write(
        tmp_path / "in.jsonl",
        [request(path, each) for path, each in zip(paths, bodies, strict=True)],
    )
    # More lines are in the making than may wait.
    flags = ("--max-num-seqs", "5", "--max-waiting-tokens", "700")
    hosts = ("--allow-image-hosts", ",".join(host.hosts), "--image-timeout", "2")
    job = command(tiny, tmp_path, *flags, *hosts, program=FETCHING)
    done = run(job)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("9 answered, 1 failed, 2 left, 0 by earlier runs; ")
    assert "2 lines got no result (see the log); run the batch again to retry them" in done.stderr
    assert sorted(path for _, path in host.asked) == sorted(paths)
    assert by_id(tmp_path).keys() == {*paths[:-2]}
    host.asked.clear()
    done = run(job)
    assert done.stdout.startswith("0 answered, 0 failed, 2 left, 10 by earlier runs; ")
    assert sorted(path for _, path in host.asked) == ["/busy", "/slow"]
