"""Runs of ``phi3v-server batch``, with their input and output in a folder."""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.servers.live_server import ROOT, check_log

URL = "/v1/chat/completions"
SERVER = ("-m", "server")
FAULTY = ("-m", "tests.support.servers.faulty_server")
FETCHING = ("-m", "tests.support.servers.fetching_server")


def body(text: str | list[dict[str, Any]] = "hello", **parameters: Any) -> dict[str, Any]:
    message = {"role": "user", "content": text}
    return {"messages": [message], "max_tokens": 12, "temperature": 0, **parameters}


def request(custom_id: str, body: object, **changes: object) -> dict[str, Any]:
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
    check_log(done.stderr, ("faulty_server.py", "got no result"))
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
