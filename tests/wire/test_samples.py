"""Azure's own samples for Phi-3-vision against a live server, over TLS as Azure serves them.

They stand verbatim in ``azure_samples``, with only these corrections, where a sample itself cannot run.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.client_environments import node_directory, python_with
from tests.support.servers.live_server import API_KEY, LiveServer
from tests.support.servers.wire import chart

pytestmark = pytest.mark.timeout(600)  # the first test of an environment makes it

SAMPLES = {
    file.stem: dict(
        re.findall(r"^## ([^\n]+)\n\n```\w+\n(.*?)```", file.read_text("utf-8"), re.M | re.S)
    )
    for file in (Path(__file__).parent / "azure_samples").glob("*.md")
}
(PICTURE_ADDRESS,) = re.findall(r'image_url = "(.*)"', SAMPLES["python"]["data url"])

# What is replaced in a sample, and why.
PYTHON = {
    # No service here issues tokens: the API key is the token.
    "entra client": [
        (
            "from azure.identity import DefaultAzureCredential",
            "from azure.core.credentials import AccessToken\n"
            "class DefaultAzureCredential:\n"
            "    def get_token(self, *scopes, **options):\n"
            f"        return AccessToken({API_KEY!r}, 2**40)",
        )
    ],
    # The tests have no internet; Python opens data URLs too.
    "data url": [(PICTURE_ADDRESS, chart())],
    # The class takes ``image_url`` in every release.
    "image": [("ImageContentItem(image=", "ImageContentItem(image_url=")],
}
PYTHON_OF = {
    # The enumeration is gone; its value is a plain string now.
    "1.0.0b9": {
        "parameters": [
            ("from azure.ai.inference.models import ChatCompletionsResponseFormat", ""),
            ('{ "type": ChatCompletionsResponseFormat.TEXT }', '"text"'),
        ]
    },
    # The seed's month: messages take keywords only.
    "1.0.0b3": {"image": [("SystemMessage(", "SystemMessage(content=")]},
}
JAVASCRIPT = {
    "entra client": [
        (
            'import { DefaultAzureCredential }  from "@azure/identity";',
            "class DefaultAzureCredential {\n"
            f"  async getToken() {{ return {{ token: {API_KEY!r}, expiresOnTimestamp: 2 ** 42 }}; }}\n"
            "}",
        )
    ],
    # Without ``stream: true`` the whole answer comes at once.
    "stream": [("messages: messages,", "messages: messages, stream: true,")],
    # The import is missing, and no function is there to return from.
    "print stream": [
        ("var stream", 'import { createSseStream } from "@azure/core-sse";\nvar stream'),
        ("return;", "break;"),
    ],
    # The next sample declares ``response`` again, which a constant does not allow.
    "data url": [
        (PICTURE_ADDRESS, chart()),
        ("const response", "const download"),
        ("response.arrayBuffer", "download.arrayBuffer"),
    ],
}
# What the article prints of no sample: that its extra parameter is honoured.
SAMPLES["python"]["print extras"] = """
print("Log probabilities:", len(response.choices[0]["logprobs"]["content"]))
"""
SAMPLES["javascript"]["print extras"] = """
console.log("Log probabilities:", response.body.choices[0].logprobs.content.length);
"""
# The samples that make up a program, and the one with the output that the article shows for it.
# Those that visualize the picture need a notebook or a browser, and no server.
STORIES = {
    "info": (["client", "info", "print info"], "info output"),
    "entra": (["entra client", "info", "print info"], "info output"),
    "complete": (["client", "complete", "print response"], "response output"),
    "parameters": (["client", "parameters", "print response"], "response output"),
    "extras": (["client", "extras", "print response", "print extras"], "response output"),
}
PYTHON_STORIES = {
    **{
        # They use the classes that the sample "complete" imports.
        name: (samples if samples[1] == "info" else ["client", "complete", *samples[1:]], output)
        for name, (samples, output) in STORIES.items()
    },
    "stream": (["client", "complete", "stream", "print_stream", "call print_stream"], None),
    "image": (
        ["client", "complete", "data url", "image", "print image response"],
        "image response output",
    ),
}
JAVASCRIPT_STORIES = {
    **STORIES,
    "stream": (["client", "stream", "print stream"], None),
    "image": (["client", "data url", "image", "print image response"], "image response output"),
}


def program(language: str, names: list[str], *corrections: dict[str, Any]) -> str:
    """The samples one after the other, corrected; a correction that no longer fits is an error."""
    lines = []
    for name in names:
        code = SAMPLES[language][name]
        for old, new in [pair for given in corrections for pair in given.get(name, [])]:
            assert old in code
            code = code.replace(old, new)
        lines.append(code)
    return "\n".join(lines)


def run(command: list[str | Path], code: str, secure: tuple[LiveServer, Path], cwd: Path) -> str:
    live, authority = secure
    done = subprocess.run(
        command,
        input=code,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "AZURE_INFERENCE_ENDPOINT": live.url,
            "AZURE_INFERENCE_CREDENTIAL": API_KEY,
            "REQUESTS_CA_BUNDLE": str(authority),
            "NODE_EXTRA_CA_CERTS": str(authority),
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_output(output: str, documented: str | None, language: str) -> None:
    """What is printed has the lines that the article shows."""
    if documented is None:
        assert len(output.strip()) > 100
        return
    shown = SAMPLES[language][documented]
    labels = [line.partition(":")[0].strip() for line in shown.splitlines()]
    pattern = ".*".join(re.escape(label) + ":" for label in labels)
    assert re.search(pattern, output, re.S | re.I), output
    if documented == "info output":
        assert "Phi-3-vision-128k-Instruct" in output
        assert "chat-completions" in output
    else:
        found = re.findall(r"(Prompt|Completion|Total) tokens:\s+(\d+)", output)
        usage = {name: int(count) for name, count in found}
        assert usage["Prompt"] + usage["Completion"] == usage["Total"]
        assert (usage["Prompt"] > 313) == documented.startswith("image")  # the picture was seen


@pytest.mark.parametrize("release", PYTHON_OF)
@pytest.mark.parametrize("story", PYTHON_STORIES)
def test_python(
    story: str, release: str, secure_server: tuple[LiveServer, Path], tmp_path: Path
) -> None:
    names, documented = PYTHON_STORIES[story]
    python = sys.executable if release == "1.0.0b9" else python_with("azure-b3")
    code = program("python", names, PYTHON, PYTHON_OF[release])
    check_output(run([python, "-"], code, secure_server, tmp_path), documented, "python")


@pytest.mark.parametrize("story", JAVASCRIPT_STORIES)
def test_javascript(story: str, secure_server: tuple[LiveServer, Path]) -> None:
    names, documented = JAVASCRIPT_STORIES[story]
    code = program("javascript", names, JAVASCRIPT)
    command: list[str | Path] = ["node", "--input-type=module"]
    output = run(command, code, secure_server, node_directory())
    check_output(output, documented, "javascript")


@cache
def trust(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


def send(head: str, body: str | None, secure: tuple[LiveServer, Path]) -> httpx2.Response:
    """A request with the method, path and headers that a sample shows."""
    live, authority = secure
    (method, path, _), *lines = (line.split(" ", 2) for line in head.strip().splitlines())
    headers = {name.rstrip(":"): " ".join(value) for name, *value in lines}
    headers["Authorization"] = headers["Authorization"].replace("<TOKEN>", API_KEY)
    del headers["Host"]
    with httpx2.Client(base_url=live.url, verify=trust(authority), timeout=120) as client:
        return client.request(method, path, headers=headers, content=body)


REST = SAMPLES["rest"]
POST = REST["extras headers"].replace("extra-parameters: pass-through\n", "")


def shape(value: Any) -> Any:
    """The keys of a body at any depth, and the types of what they hold."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if key != "prompt_tokens_details"}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value)


def test_rest_info(secure_server: tuple[LiveServer, Path]) -> None:
    info = send(REST["info"], None, secure_server).json()
    documented = json.loads(REST["info response"])
    # The provider is who serves it: Microsoft there, this program here.
    assert {**info, "model_provider_name": "Microsoft"} == documented


@pytest.mark.parametrize("name", ["complete", "parameters", "image"])
def test_rest_answers_have_the_documented_shape(
    name: str, secure_server: tuple[LiveServer, Path]
) -> None:
    """The picture's base64 is only hinted at in the sample."""
    body = REST[name].replace("data:image/jpg;base64,0xABCDFGHIJKLMNOPQRSTUVWXYZ...", chart("jpg"))
    answer = send(POST, body, secure_server)
    assert answer.status_code == 200, answer.text
    assert shape(answer.json()) == shape(json.loads(REST[f"{name} response"]))


def test_rest_stream_has_the_documented_chunks(secure_server: tuple[LiveServer, Path]) -> None:
    text = send(POST, REST["stream"], secure_server).text
    first, *_, last, done = [event.removeprefix("data: ") for event in text.strip().split("\n\n")]
    assert done == "[DONE]"
    assert shape(json.loads(first)) == shape(json.loads(REST["first chunk"]))
    assert shape(json.loads(last)) == shape(json.loads(REST["last chunk"]))


def test_rest_extras(secure_server: tuple[LiveServer, Path]) -> None:
    answer = send(REST["extras headers"], REST["extras"], secure_server).json()
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
