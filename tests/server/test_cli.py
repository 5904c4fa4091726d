"""The command line as scripts and containers rely on it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from server import __version__
from server.settings import Settings
from tests.support.servers.command_line import one_sentence, run
from tests.support.servers.live_server import API_KEY, ROOT, check_log, start_loading, start_server
from tests.support.waiting import eventually

TENANT = "3a0f4a2e-1d5c-4f6b-9d0e-8c7b6a594837"


def test_help_imports_little_and_names_every_setting() -> None:
    done = run("--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines()}
    assert "server.settings" in imported
    assert imported.isdisjoint({"torch", "transformers", "fastapi", "uvicorn", "huggingface_hub"})
    for name in Settings.model_fields:
        assert "--" + name.replace("_", "-") in done.stdout


def test_console_script() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("phi3v-server"), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage: phi3v-server" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model", "/no/such/place"], "/no/such/place does not exist"),
        (["--port", "abc"], "--port (or its PHI3V_ variable): Input should be a valid integer"),
        (["--port", "70000"], "--port"),
        (["--dtype", "int4"], "--dtype"),
        (["--max-model-len", "1"], "--max-model-len"),
        (["--host", "256.1.1.1", "--insecure"], "cannot listen on 256.1.1.1"),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines use the server"),
        (
            ["--host", "::"],
            "set PHI3V_API_KEY, --api-keys-file or --entra-tenant, or pass --insecure",
        ),
        (["--host", "any.example"], "--host any.example lets other machines"),
        (["--api-keys-file", "/no/such/file"], "--api-keys-file"),
        (["--api-keys-file", str(ROOT / "README.md")], "README.md is not valid TOML"),
        (["--api-keys-file", str(ROOT / "pyproject.toml")], "build-system.key: Field required"),
        (["--api-keys", "alice = 1", "--port", "0"], "PHI3V_API_KEYS: alice"),
        (["--requests-per-minute", "0"], "--requests-per-minute"),
        (["--entra-tenant", "contoso.example"], "--entra-tenant"),
        (["--entra-tenant", TENANT], "--entra-tenant and --entra-audience must be set together"),
        (
            ["--entra-audience", "api://x"],
            "--entra-tenant and --entra-audience must be set together",
        ),
        (["--entra-roles", "Chat.Use"], "--entra-roles and --entra-scopes require --entra-tenant"),
        (["--entra-authority", "http://plain.example"], "--entra-authority"),
        (
            ["--allow-image-hosts", "a.example,https://b.example"],
            "https://b.example is not a valid host",
        ),
        (["--allow-image-hosts", "a.example:70000"], "a.example:70000 is not a valid host"),
        (["--allowed-hosts", "https://b.example"], "https://b.example is not a valid host"),
        (["--allowed-hosts", "[::g]"], "[::g] is not a valid host"),
        (["--api-key", ""], "a flag has an empty value"),
        (
            ["--api-key", " "],
            "--api-key (or its PHI3V_ variable): must not be blank; set a key or",
        ),
        (["--api-keys", " "], "--api-keys (or its PHI3V_ variable): must not be blank"),
        (["--api-keys", 'alice = ""', "--port", "0"], "alice.key: String should match pattern"),
        (["--api-key="], "a flag has an empty value"),
        (["--ssl-certfile", "/no/such/file"], "--ssl-certfile"),
        (["--ssl-certfile", str(ROOT / "README.md")], "cannot load the certificate"),
        (["--ssl-keyfile", str(ROOT / "README.md")], "--ssl-keyfile requires --ssl-certfile"),
    ],
)
def test_bad_starts_end_in_one_sentence(flags: list[str], message: str) -> None:
    assert message in one_sentence(run(*flags))


@pytest.mark.parametrize(
    "flags",
    [
        ["--host", "0.0.0.0", "--api-key", "key"],
        ["--host", "0.0.0.0", "--api-keys", 'alice = "key"'],
        ["--host", "0.0.0.0", "--api-keys-file", str(ROOT / "README.md")],
        ["--host", "0.0.0.0", "--entra-tenant", TENANT, "--entra-audience", "api://x"],
        ["--host", "0.0.0.0", "--insecure"],
        ["--host", "127.9.9.9"],
        ["--host", "::1"],
        ["--host", "localhost"],
    ],
)
def test_starts_that_let_nobody_in_by_mistake(flags: list[str]) -> None:
    assert Settings(_cli_parse_args=flags).host == flags[1]


def test_unknown_flag() -> None:
    done = run("--no-such-flag", "3")
    assert done.returncode == 2
    assert "--no-such-flag" in done.stderr
    check_log(done.stderr)


def test_broken_checkpoint(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(tiny, directory)
    (directory / "model.safetensors").write_bytes(b"nonsense")
    sentence = one_sentence(run("--model", str(directory), "--port", "0"))
    assert f"the checkpoint in {directory} cannot be loaded" in sentence


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_also_beside_good_weights(
    tiny: Path, tmp_path: Path, name: str
) -> None:
    directory = tmp_path / "pickled"
    shutil.copytree(tiny, directory)
    (directory / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    sentence = one_sentence(run("--model", str(directory), "--port", "0"))
    assert f"{directory} contains {name}, a pickle" in sentence
    assert "safetensors only" in sentence


def test_a_checkpoint_that_does_not_fit_its_config(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(tiny, directory)
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "vocab_size": 100}))
    done = run("--model", str(directory), "--port", "0")
    assert "lm_head.weight has the shape" in one_sentence(done)
    assert "REPORT" not in done.stderr  # transformers' table of tensors
    assert "[transformers]" not in done.stderr


def test_a_checkpoint_broken_in_a_way_that_is_not_checked(tiny: Path, tmp_path: Path) -> None:
    directory = tmp_path / "broken"
    shutil.copytree(tiny, directory)
    file = directory / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token": ["<|end|>"]}))
    sentence = one_sentence(run("--model", str(directory), "--port", "0"))
    assert f"{directory} cannot be loaded: unhashable type" in sentence


def test_taken_port(tiny: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        sentence = one_sentence(run("--model", str(tiny), "--port", port))
    assert f"port {port}" in sentence
    assert "choose another address with --host and --port" in sentence


def test_environment_sets_and_flags_win(tiny: Path) -> None:
    live = start_server(
        "--served-model-name",
        "from-flag",
        PHI3V_MODEL=str(tiny),
        PHI3V_SERVED_MODEL_NAME="from-environment",
        PHI3V_API_KEY=API_KEY,
        PHI3V_MAX_MODEL_LEN="256",
    )
    try:
        assert httpx2.get(f"{live.url}/info").status_code == 401
        info = httpx2.get(f"{live.url}/info", headers={"api-key": API_KEY})
        assert info.json()["model_name"] == "from-flag"
        assert any("longest sequence: 256 of" in line for line in live.log)
    finally:
        assert live.stop(signal.SIGINT) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_drain_and_exit_0(tiny: Path, number: signal.Signals) -> None:
    """A running stream is finished, then the server ends."""
    live = start_server("--model", str(tiny), "--drain-timeout", "120")
    lines: list[str] = []
    streaming = threading.Event()

    def read() -> None:
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": "hello"}],
            "max_tokens": 300,
            "ignore_eos": True,
            "stream": True,
        }
        with httpx2.stream(
            "POST", f"{live.url}/v1/chat/completions", json=body, timeout=60
        ) as response:
            for line in response.iter_lines():
                lines.append(line)
                streaming.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert streaming.wait(60)
    assert live.stop(number) == 0
    reader.join(60)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    check_log("".join(live.log))


def test_draining_is_said_to_those_who_ask(tiny: Path) -> None:
    """Load balancers look at ``/health``; a request that comes now is told to try elsewhere."""
    live = start_server("--model", str(tiny), "--drain-timeout", "120")
    long = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3000}
    body = {**long, "ignore_eos": True, "stream": True}
    url = f"{live.url}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        live.process.send_signal(signal.SIGTERM)
        eventually(lambda: httpx2.get(f"{live.url}/health").json() != {"status": "ready"})
        health = httpx2.get(f"{live.url}/health")
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        refused = httpx2.post(url, json=long)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert live.process.wait(100) == 0


@pytest.mark.parametrize("timeout", [0, 1])
def test_answers_that_take_too_long_are_cut_off(tiny: Path, timeout: int) -> None:
    live = start_server("--model", str(tiny), "--drain-timeout", str(timeout))
    message = {"role": "user", "content": "hello"}
    body = {"messages": [message], "max_tokens": 8000, "ignore_eos": True, "stream": True}
    url = f"{live.url}/v1/chat/completions"
    with httpx2.stream("POST", url, json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        started = time.monotonic()
        assert live.stop() == 0
        assert time.monotonic() - started < timeout + 20
        with pytest.raises(httpx2.RemoteProtocolError):
            list(lines)


def test_a_signal_while_loading_ends_the_server(tiny: Path, tmp_path: Path) -> None:
    live, _ = start_loading(tiny, tmp_path)
    try:
        health = httpx2.get(f"{live.url}/health")  # answered: it handles signals
        assert health.json() == {"status": "loading"}
    finally:
        status = live.stop()
    assert status == 0, "".join(live.log)
    check_log("".join(live.log))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("module", ["pydantic_core", "uvicorn"])
def test_a_signal_while_importing_is_quiet(module: str, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", "server", "--model", "demo", "--port", "0"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    imported = next(line for line in process.stdout if line.rstrip().endswith(f" {module}"))
    process.send_signal(number)
    rest, _ = process.communicate(timeout=100)
    assert process.returncode in (0, -number), rest  # 0 once the server handles signals
    check_log(imported + rest)


def test_version() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"phi3v-server {__version__}\n")
