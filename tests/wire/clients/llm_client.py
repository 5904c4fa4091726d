"""The command line ``llm``, with the models of its ``extra-openai-models.yaml``."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import IMAGE, KEY, LOOK, PET, QUESTION, SETTINGS, URL, WRONG_KEY, report, result

FOLDER = Path(tempfile.mkdtemp())
PICTURE = FOLDER / "picture.jpg"
OPTIONS = [part for name, value in SETTINGS.items() for part in ("-o", name, str(value))]
MODELS = {"chat": "", "responses": "  responses: true\n"}
MODEL = """\
- model_id: {name}
  model_name: phi3v
  api_base: {url}/v1
  api_key_name: phi3v
  vision: true
  supports_schema: true
  supports_tools: true
"""


def prepare() -> None:
    PICTURE.write_bytes(base64.b64decode(IMAGE.partition(",")[2]))
    models = [MODEL.format(name=name, url=URL) + more for name, more in MODELS.items()]
    (FOLDER / "extra-openai-models.yaml").write_text("".join(models), "utf-8")


def prompt(model: str, *arguments: str, key: str = KEY) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "llm",
            "prompt",
            "--model",
            model,
            "--key",
            key,
            "--usage",
            *arguments,
        ],
        env={**os.environ, "LLM_USER_PATH": str(FOLDER)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    used = re.search(r"Token usage: ([\d,]+) input, ([\d,]+) output", done.stderr.decode())
    counts = [int(count.replace(",", "")) for count in used.groups()] if used else [None, None]
    return result([done.stdout.decode().removesuffix("\n")], *counts)


def cells(model: str) -> dict[str, Callable[[], Any]]:
    def structured() -> Any:
        schema = json.dumps(PET["parameters"])
        return json.loads(prompt(model, "--schema", schema, QUESTION)["text"])

    return {
        "answer": lambda: prompt(model, *OPTIONS, "--no-stream", QUESTION),
        "stream": lambda: prompt(model, *OPTIONS, QUESTION),
        "image": lambda: prompt(model, *OPTIONS, "--no-stream", "--attachment", str(PICTURE), LOOK),
        "error": lambda: prompt(model, "-o", "max_tokens", "-1", QUESTION),
        "auth": lambda: prompt(model, QUESTION, key=WRONG_KEY),
        "structured": structured,
        "tools": lambda: prompt(model, "--tool", "llm_version", QUESTION),
    }


prepare()
report({name: cells(name) for name in MODELS})
