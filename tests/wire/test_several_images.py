"""``--images-per-prompt 3`` over HTTP, with the OpenAI SDK: several images in a message and in a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from tests.support.peers.image_host import GOOD, ImageHost
from tests.support.servers.live_server import API_KEY, LiveServer, check_log, start_server
from tests.support.servers.wire import AUTHORIZED, chat, check_error, data_url, png

LOW = 313  # tokens of an image in one crop


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageHost]:
    made = ImageHost(tmp_path_factory.mktemp("images"))
    yield made
    made.stop()


@pytest.fixture(scope="module")
def several(tiny: Path, host: ImageHost) -> Iterator[LiveServer]:
    live = start_server(
        *("--model", str(tiny), "--dtype", "float32", "--api-key", API_KEY),
        *("--images-per-prompt", "3", "--max-image-pixels", "100000"),
        *("--allow-image-hosts", ",".join(host.hosts)),
        program=("-m", "tests.support.servers.fetching_server"),
        SSL_CERT_FILE=str(host.authority),
    )
    yield live
    assert live.stop() == 0
    check_log("".join(live.log))


@pytest.fixture
def client(several: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{several.url}/v1", api_key=API_KEY, max_retries=0) as made:
        yield made


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def image(width: int, url: str = "", detail: str = "low") -> dict[str, Any]:
    """An image that differs from others by its width."""
    image_url = {"url": url or data_url(png(width, 20)), "detail": detail}
    return {"type": "image_url", "image_url": image_url}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def complete(client: openai.OpenAI, *messages: dict[str, Any], **more: Any) -> Any:
    asked: Any = {"model": "any", "messages": list(messages), "max_tokens": 8, "temperature": 0}
    return client.chat.completions.create(**{**asked, **more})


def tokens_of(live: LiveServer, *messages: dict[str, Any]) -> tuple[list[int], list[str]]:
    body = {"messages": list(messages), "return_token_strs": True}
    response = httpx2.post(f"{live.url}/tokenize", json=body, headers=AUTHORIZED)
    assert response.status_code == 200, response.text
    answer = response.json()
    return answer["tokens"], answer["token_strs"]


def test_several_images_in_a_message(client: openai.OpenAI, several: LiveServer) -> None:
    message = user(text("First"), image(10), text("second"), image(20), image(30), text("Which?"))
    answer = complete(client, message)
    tokens, texts = tokens_of(several, message)
    assert answer.usage.prompt_tokens == len(tokens)
    assert [tokens.count(-number) for number in (1, 2, 3, 4)] == [LOW, LOW, LOW, 0]
    assert [texts.count(f"<|image_{number}|>") for number in (1, 2, 3)] == [LOW] * 3
    assert texts.count("<s>") == 4  # one of each piece
    shown = "".join(texts[i] for i in range(len(texts)) if i == 0 or texts[i] != texts[i - 1])
    assert shown == (
        "<s><|user|> \nFirst\n<|image_1|><s> \nsecond\n<|image_2|><s> \n<|image_3|><s> \nWhich?"
        "<|end|> \n<|assistant|>"
    )
    streamed = complete(client, message, stream=True)
    pieces = [chunk.choices[0].delta.content for chunk in streamed if chunk.choices]
    assert "".join(pieces) == answer.choices[0].message.content


def test_the_order_of_images_matters(client: openai.OpenAI) -> None:
    """Each is seen at its place, cached or not."""

    def logprobs(*widths: int) -> list[float]:
        message = user(*map(image, widths), text("Compare."))
        answer = complete(client, message, logprobs=True)
        return [token.logprob for token in answer.choices[0].logprobs.content]

    first, other = logprobs(40, 60), logprobs(60, 40)
    assert first != other
    assert logprobs(40, 60) == pytest.approx(first, abs=1e-4)


def test_the_last_three_of_a_conversation_are_kept(
    client: openai.OpenAI, several: LiveServer
) -> None:
    answer = {"role": "assistant", "content": "I see."}
    turns = [user(image(11), text("a")), answer, user(image(12), image(13), text("b")), answer]
    turns.append(user(text("c"), image(14)))
    tokens, _ = tokens_of(several, *turns)
    dropped = [user(text("a")), *turns[1:]]
    assert tokens == tokens_of(several, *dropped)[0]
    assert [tokens.count(-number) for number in (1, 2, 3, 4)] == [LOW, LOW, LOW, 0]
    assert complete(client, *turns).usage.prompt_tokens == len(tokens)


def test_images_share_cached_prefixes(client: openai.OpenAI) -> None:
    pictures = [image(15), image(16)]
    first = complete(client, user(*pictures, text("What?")))
    again = complete(client, user(*pictures, text("Which is darker?")))
    assert again.usage.prompt_tokens_details.cached_tokens >= 2 * LOW - 15
    other = complete(client, user(image(15), image(17), text("What?")))
    assert LOW - 15 <= other.usage.prompt_tokens_details.cached_tokens <= LOW + 20
    assert first.usage.prompt_tokens == other.usage.prompt_tokens


def test_too_many_in_a_message(several: LiveServer, server: LiveServer) -> None:
    message = user(*map(image, (10, 20, 30, 40)))
    body = check_error(
        chat(several, messages=[message]), 422, "too_many_images", ["messages", 0, "content"]
    )
    assert "at most 3 per prompt (--images-per-prompt)" in body["message"]
    message = user(image(10), image(20))
    assert chat(several, messages=[message]).status_code == 200
    body = check_error(
        chat(server, messages=[message]), 422, "too_many_images", ["messages", 0, "content"]
    )
    assert "one image per turn" in body["message"]


def test_by_default_one_image_comes_first(server: LiveServer, several: LiveServer) -> None:
    message = user(text("Look."), image(10))
    default, _ = tokens_of(server, message)
    assert default == tokens_of(several, user(image(10), text("Look.")))[0]
    assert default != tokens_of(several, message)[0]


def test_pixels_of_all_images_count(several: LiveServer) -> None:
    large = image(0, data_url(png(200, 200)))
    assert chat(several, messages=[user(large, large)]).status_code == 200
    response = chat(several, messages=[user(large, large, large)])
    loc = ["messages", 0, "content", 2, "image_url", "url"]
    body = check_error(response, 422, "invalid_image", loc)
    assert "120000 pixels or more together; the limit is 100000" in body["message"]


def test_prompts_that_are_too_long(several: LiveServer) -> None:
    words = text("many words " * 3600)
    response = chat(several, messages=[user(words, *map(image, (10, 20, 30)))])
    body = check_error(response, 400, "context_length_exceeded", ["messages"])
    assert "at least" in body["message"]


def test_the_last_three_are_fetched(several: LiveServer, host: ImageHost) -> None:
    host.asked.clear()
    urls = [f"{host.http}/{name}" for name in ("first", "second", "third", "fourth")]
    turns = [user(image(0, url)) for url in urls]
    tokens, _ = tokens_of(several, *turns)
    assert sorted(path for _, path in host.asked) == ["/fourth", "/second", "/third"]
    same = [user(image(0, data_url(GOOD)))] * 3
    assert tokens == tokens_of(several, *same)[0]
    loc = ["messages", 0, "content", 1, "image_url", "url"]
    bad = user(image(0, urls[0]), image(0, f"{host.http}/missing"), image(0, urls[2]))
    check_error(chat(several, messages=[bad]), 422, "invalid_image", loc)


def test_the_playground_is_told(several: LiveServer, server: LiveServer) -> None:
    for live, count in ((several, 3), (server, 1)):
        settings = httpx2.get(f"{live.url}/playground/settings.json").json()
        assert settings["images_per_prompt"] == count
