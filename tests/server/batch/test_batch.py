"""``phi3v-server batch`` as it is run: its answers beside the server's, and what ends it in the middle."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from PIL import Image

from server.batch.lines import read_lines
from server.commands import Batch
from tests.support.faulty_server import DECODE, KILL, SLOW
from tests.support.image_host import ImageHost
from tests.support.live_server import API_KEY, ROOT, LiveServer, check_log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

URL = "/v1/chat/completions"
SERVER = ("-m", "server")
FAULTY = ("-m", "tests.support.faulty_server")
FETCHING = ("-m", "tests.support.fetching_server")


def body(text: str = "hello", **parameters: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_tokens": 12, "temperature": 0, **parameters}


def request(custom_id: str, body: object, **changes: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": body, **changes}


def write(path: Path, lines: Iterable[object]) -> None:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def command(
    tiny: Path, folder: Path, *flags: str, program: tuple[str, ...] = SERVER
) -> list[str | Path]:
    model = ["--model", str(tiny), "--dtype", "float32", *flags]
    return [sys.executable, *program, "batch", *model, folder / "in.jsonl", folder / "out.jsonl"]


def run(command: list[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    check_log(done.stderr, (*FAULTY, "got no result"))
    return done


def results(folder: Path) -> list[dict[str, Any]]:
    with (folder / "out.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def by_id(folder: Path) -> dict[str, dict[str, Any]]:
    found = results(folder)
    assert max(Counter(result["custom_id"] for result in found).values()) == 1
    return {result["custom_id"]: result for result in found}


def image_message(url: str = "") -> list[dict[str, Any]]:
    file = io.BytesIO()
    Image.linear_gradient("L").resize((500, 300)).convert("RGB").save(file, "PNG")
    url = url or "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    parts = [{"type": "text", "text": "and?"}, {"type": "image_url", "image_url": {"url": url}}]
    return [{"role": "user", "content": parts}]


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


BAD_LINES: list[tuple[str | None, object, int, str, str]] = [  # custom_id, line, status, code, message
    (None, "{broken", 400, "invalid_json", "the line is not valid JSON"),
    (None, "null", 422, "invalid_parameter", "a JSON object with custom_id, method, url and body"),
    (None, "[]", 422, "invalid_parameter", "a JSON object with custom_id, method, url and body"),
    (None, request("good", body()), 422, "duplicate_custom_id", "'good' is that of an earlier"),
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
    ("image", request("image", body([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}])), 422, "invalid_image", "base64 is broken"),
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


def test_nothing_is_lost_or_done_twice_when_it_is_ended(tiny: Path, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL, then to the end; and no more of the input is read than is needed."""
    lines = [
        request(f"line {number}", {**body(max_tokens=40), "metadata": {"x": "y" * 20_000}})
        for number in range(400)
    ]
    write(tmp_path / "in.jsonl", lines)
    job = command(tiny, tmp_path, "--max-num-seqs", "4", "--log-format", "json")

    process = start(job, tmp_path, 1)
    process.send_signal(signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    if sys.platform == "linux":
        begun = len((tmp_path / "out.jsonl").read_bytes().splitlines()) + 8
        longest = begun * (len(json.dumps(lines[-1])) + 1)
        assert read_of_input(process, tmp_path) <= longest + io.DEFAULT_BUFFER_SIZE
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    _, log = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.SIGTERM
    assert "ended by SIGTERM; run it again for what is left" in log
    first = by_id(tmp_path)  # every line is whole
    assert 0 < len(first) < len(lines)

    process = start(job, tmp_path, len(first) + 20)
    process.kill()
    process.communicate(timeout=300)
    out = tmp_path / "out.jsonl"
    out.write_bytes(out.read_bytes()[:-10])
    done = run(job)
    assert done.returncode == 0, done.stderr
    found = by_id(tmp_path)
    assert found.keys() == {line["custom_id"] for line in lines}
    assert all(result["response"]["status_code"] == 200 for result in found.values())
    assert {name: found[name] for name in first} == first


def start(job: list[str | Path], folder: Path, number: int) -> subprocess.Popen[str]:
    """Start a run and wait until the output has a number of lines."""
    process = subprocess.Popen(
        job, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    out = folder / "out.jsonl"
    wait(process, lambda: out.exists() and out.read_bytes().count(b"\n") >= number)
    return process


def wait(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Wait until a run has come so far; one that has not after two minutes is killed."""
    deadline = time.monotonic() + 120
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(process.communicate()[1])
        time.sleep(0.02)


def read_of_input(process: subprocess.Popen[str], folder: Path) -> int:
    """How many bytes of the input a run has read."""
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        if descriptor.resolve() == (folder / "in.jsonl").resolve():
            info = Path(f"/proc/{process.pid}/fdinfo/{descriptor.name}").read_text()
            return int(info.split("pos:")[1].split()[0])
    return 0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_signal_after_the_last_line_leaves_nothing_out(tiny: Path, tmp_path: Path) -> None:
    write(tmp_path / "in.jsonl", [request(name, body(seed=SLOW)) for name in "ab"])
    with (tmp_path / "in.jsonl").open("a") as file:
        file.write("\n \n\n")
    process = start(command(tiny, tmp_path, "--max-num-seqs", "1", program=FAULTY), tmp_path, 0)
    wait(process, lambda: read_of_input(process, tmp_path) > 0)
    process.send_signal(signal.SIGTERM)
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    assert out.startswith("2 answered, ")


def test_a_fault_is_left_for_another_run_and_a_dead_engine_ends_the_run(
    tiny: Path, tmp_path: Path
) -> None:
    lines = [request(f"line {number}", body(seed=number)) for number in range(20)]
    lines[3]["body"] = body(seed=DECODE)
    lines.append(request("deadly", body(seed=KILL)))
    write(tmp_path / "in.jsonl", lines)
    job = command(tiny, tmp_path, "--max-num-seqs", "2", program=FAULTY)
    done = run(job)
    assert done.returncode == 1
    assert "phi3v-server: the engine has ended" in done.stderr
    assert "run the batch again for what is left" in done.stderr
    found = by_id(tmp_path)
    assert found
    assert not found.keys() & {"deadly", "line 3"}
    assert "line 4 is left for another run: " in done.stderr
    assert "0 failed, 1 left" in done.stdout
    assert not any(result["error"] for result in found.values())
    again = run(command(tiny, tmp_path, "--max-num-seqs", "2"))
    assert again.returncode == 0, again.stderr
    assert len(by_id(tmp_path)) == len(lines)


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
    assert "1 line got no result, and the log says why; run it again for it" in log
    assert any(line.startswith("line 1 is left for another run: the answer took") for line in log)
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
    assert "2 lines got no result, and the log says why; run it again for them" in done.stderr
    assert sorted(path for _, path in host.asked) == sorted(paths)
    assert by_id(tmp_path).keys() == {*paths[:-2]}
    host.asked.clear()
    done = run(job)
    assert done.stdout.startswith("0 answered, 0 failed, 2 left, 10 by earlier runs; ")
    assert sorted(path for _, path in host.asked) == ["/busy", "/slow"]


@pytest.mark.skipif(sys.platform != "linux", reason="a file that can be opened and not read")
def test_an_input_that_cannot_be_read_is_named(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").symlink_to("/proc/self/mem")
    done = run(command(tiny, tmp_path))
    assert done.returncode == 1
    name = tmp_path / "in.jsonl"
    assert f"phi3v-server: {name} cannot be used: Input/output error" in done.stderr


@pytest.mark.parametrize("case", ["missing", "same", "other", "locked", "folder", "model"])
def test_bad_starts_end_in_one_sentence(case: str, tmp_path: Path) -> None:
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    write(given, [request("line", body())])
    model = "/no/such/place" if case == "model" else "demo"
    if case == "missing":
        given.unlink()
    elif case == "same":
        out.symlink_to(given)
    elif case == "other":
        out.write_text("dear diary")
    elif case == "folder":
        out.mkdir()
    lock = os.open(out, os.O_RDWR | os.O_CREAT) if case == "locked" else None
    if lock is not None:
        fcntl.flock(lock, fcntl.LOCK_EX)
    done = run([sys.executable, *SERVER, "batch", "--model", model, given, out])
    if lock is not None:
        os.close(lock)
    complaints = [line for line in done.stderr.splitlines() if line.startswith("phi3v-server: ")]
    assert done.returncode == (2 if case == "missing" else 1)
    message = {
        "missing": "phi3v-server: INPUT: Path does not point to a file, got ",
        "same": "is the input; name another file for the output",
        "other": "line 1 of",
        "locked": "is being written by another batch",
        "folder": "Is a directory",
        "model": "/no/such/place does not exist",
    }[case]
    assert len(complaints) == 1, done.stderr
    assert message in complaints[0]
    if case == "other":
        assert out.read_text() == "dear diary"
    assert case == "missing" or json.loads(given.read_text())["custom_id"] == "line"


def test_lines_are_read_one_at_a_time_and_long_ones_are_passed_over() -> None:
    file = io.BytesIO(b"first\r\n" + b"x" * 3_000_000 + b"\n\n" + b"y" * 99 + b"\nlast")
    lines = read_lines(file, 99)
    assert (next(lines).data, file.tell()) == (b"first", 7)
    rest = [(line.number, line.data, line.size) for line in lines]
    assert rest == [(2, None, 3_000_001), (3, b"", 1), (4, b"y" * 99, 100), (5, b"last", 4)]
