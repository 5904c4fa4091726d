"""Azure AI Projects' client, which gives out OpenAI's for a project's endpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from azure.ai.projects import AIProjectClient
from cells import IMAGE, KEY, LOOK, MODEL, QUESTION, REFUSED, URL, WRONG_KEY, Token, report, result

GIVEN: dict[str, Any] = {
    "model": MODEL,
    "input": QUESTION,
    "temperature": 0,
    "max_output_tokens": 256,
}
CONTENT = [{"type": "input_text", "text": LOOK}, {"type": "input_image", "image_url": IMAGE}]


def client(key: str = KEY) -> Any:
    project = AIProjectClient(endpoint=f"{URL}/api/projects/any", credential=Token(key))
    return project.get_openai_client(max_retries=0)


def told(response: Any, pieces: list[str]) -> dict[str, Any]:
    return result(pieces, response.usage.input_tokens, response.usage.output_tokens)


def respond(key: str = KEY, **changes: Any) -> dict[str, Any]:
    response = client(key).responses.create(**{**GIVEN, **changes})
    return told(response, [response.output_text])


def stream() -> dict[str, Any]:
    pieces = []
    with client().responses.stream(**GIVEN) as events:
        for event in events:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
    # Some releases of OpenAI's client find no final response where the answer was cut short.
    return told(event.response, pieces)


def continued() -> bool:
    first = client().responses.create(**GIVEN)
    second = client().responses.create(**{**GIVEN, "previous_response_id": first.id})
    return bool(second.usage.input_tokens > first.usage.input_tokens + 256)


def chat() -> dict[str, Any]:
    messages: Any = [{"role": "user", "content": QUESTION}]
    answer = client().chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=256
    )
    text = answer.choices[0].message.content
    return result([text], answer.usage.prompt_tokens, answer.usage.completion_tokens)


CELLS: dict[str, Callable[[], Any]] = {
    "answer": respond,
    "stream": stream,
    "image": lambda: respond(input=[{"role": "user", "content": CONTENT}]),
    "error": lambda: respond(**REFUSED),
    "auth": lambda: respond(WRONG_KEY),
    "continued": continued,
    "chat": chat,
}
report({"get_openai_client": CELLS})
