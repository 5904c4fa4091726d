"""Anything at all as an image, a URL or a body: it is taken or refused by name, soon, and leaves nothing.

In this process and without a model, for speed; ``-m slow`` tries more than 100,000 inputs.
"""

from __future__ import annotations

import base64
import contextlib
import gc
import json
import logging
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any, get_args

import psutil
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from PIL import Image
from pydantic_core import from_json

from model import ImageError, ModalityError, ModelError
from model.phi3v.inputs.chat import render
from server.chat.messages import to_messages
from server.chat.parse import ExtraPolicy, parse_chat, parse_tokenize
from server.chat.tools import describe_functions
from server.errors import ApiError, error_body, error_response, from_model_error
from server.images.decode_pool import decode_image
from server.images.fetching import Fetcher
from server.images.urls import DataUrl, Images
from server.schemas.requests import ChatCompletionRequest
from tests.support.hostile.image_files import saved
from tests.support.servers.wire import data_url

logger = logging.getLogger(__name__)

PIXELS = 20_000
LONGEST = timedelta(seconds=20)  # for one input, on a machine that has much else to do
LARGEST_ANSWER = 20_000  # bytes
HOSTS = ["images.example", "images.example:8443"]
Check = Callable[[Any], bool]  # whether it was taken

FILES = [
    *(saved(kind, size=(16, 12)) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")),
    *(
        saved(kind, mode, (16, 12))
        for kind, mode in (("PNG", "P"), ("JPEG", "CMYK"), ("TIFF", "F"))
    ),
    saved("TIFF", size=(16, 12), compression="tiff_lzw"),
    saved("GIF", "P", (16, 12), save_all=True, append_images=[Image.new("P", (16, 12))] * 3),
]


def refused(error: ApiError | ModelError) -> bool:
    """What a client would get is one of our errors, its own fault, and short; False."""
    answer = error if isinstance(error, ApiError) else from_model_error(error)
    assert 400 <= answer.status < 500
    body = error_response(answer).body
    assert json.loads(bytes(body)) == error_body(answer)
    assert answer.message
    assert len(body) < LARGEST_ANSWER
    return False


class Decoder:
    """As a process of the decoder does it."""

    max_pixels = PIXELS

    def __call__(self, data: bytes) -> Image.Image:
        size, pixels = decode_image(data, PIXELS)
        assert size[0] * size[1] <= PIXELS
        return Image.frombytes("RGB", size, pixels)


decoded = Decoder()


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """Image files with a few bytes replaced, put in, or cut out."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        # Heads decide about most, so half of the changes are there.
        end = 64 if draw(st.booleans()) else len(data)
        start = draw(st.integers(0, end))
        new = draw(st.binary(max_size=6))
        data[start : start + draw(st.sampled_from([0, len(new), len(new), 40, 1 << 20]))] = new
    return bytes(data)


def check_file(data: bytes) -> bool:
    try:
        decoded(data)
    except ImageError as error:
        return refused(error)
    return True


def check_url(url: str) -> bool:
    try:
        decoded(DataUrl(url, ("url",)).read())
    except (ImageError, ModalityError) as error:
        return refused(error)
    return True


def check_remote_url(url: str, fetcher: Fetcher) -> bool:
    try:
        allowed = fetcher.allowed(url)
    except ModalityError as error:
        return refused(error)
    assert allowed.scheme in ("http", "https")
    assert allowed.host == "images.example"
    assert allowed.port in (None, 80, 443, 8443)
    return True


def check_body(given: tuple[Any, ExtraPolicy]) -> bool:
    """All that is done with a body before the engine gets it, and the template after that."""
    value, policy = given
    try:
        body = from_json(json.dumps(value), allow_inf_nan=False)
    except ValueError:  # numbers that are none
        return False
    with contextlib.suppress(ApiError):
        parse_tokenize(body, 50)
    try:
        request, _, call, _ = parse_chat(body, policy, 50)
        for most in (1, 3):
            images = Images(decoded, Fetcher([], 1, 1), lambda _: None, most)  # type: ignore[arg-type]
            messages = finished(to_messages(request.messages, images, 20))
            if call is not None:
                messages = describe_functions(messages, call)
            prompt = render(messages, most)
            assert len(prompt.pieces) == len(prompt.images) + 1 <= most + 1
            for image in prompt.images:
                image.open()
    except (ApiError, ModelError) as error:
        return refused(error)
    return True


def finished(coroutine: Any) -> Any:
    """The result of what waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waits")


TEXT = st.text(max_size=20)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
URLS = st.one_of(
    st.sampled_from([data_url(file) for file in FILES]),
    st.builds(data_url, files()),
    st.builds(
        "data:image/{}{},{}".format,
        st.sampled_from(["png", "JPEG", "svg+xml", "", "png;a=b;c"]) | TEXT,
        st.sampled_from([";base64", ";base64;", "", ";BASE64"]) | TEXT,
        st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode()) | TEXT,
    ),
    st.sampled_from(["https://images.example/x", "file:///etc/passwd", "data:", "//x", ""]),
    TEXT,
)
REMOTE_URLS = st.one_of(
    st.builds(
        "{}://images.example{}/{}".format,
        st.sampled_from(["http", "https"]),
        st.sampled_from(["", ":8443"]),
        TEXT,
    ),
    st.builds(
        "{}://{}{}{}{}".format,
        st.sampled_from(["http", "https", "HTTPS", "ftp"]),
        st.sampled_from(["", "a@", "a:b@", "images.example@", "\\", "images.example\\@"]) | TEXT,
        st.sampled_from(["images.example", "IMAGES.example", "127.0.0.1", "[::1]", "xn--a"]) | TEXT,
        st.sampled_from(["", ":8443", ":443", ":80", ":0", ":-1", ":", ":99999999", "."]) | TEXT,
        st.sampled_from(["", "/", "/x?y#z", "\r\nHost: x", "/../.."]) | TEXT,
    ),
    TEXT,
)


def known(*names: str, **values: SearchStrategy[Any]) -> SearchStrategy[dict[str, Any]]:
    """An object with some of the right names, mostly right values, and now and then more."""
    right = st.fixed_dictionaries(values, optional=dict.fromkeys(names, JSON))
    some = st.dictionaries(st.sampled_from([*names, *values, "x"]), JSON, max_size=2)
    return st.builds(
        lambda a, b, more: a | b if more else a, right, some, st.sampled_from([0, 0, 1])
    )


PARTS = st.one_of(
    known(type=st.just("text"), text=TEXT),
    known(
        type=st.just("image_url"),
        image_url=known(url=URLS, detail=st.sampled_from(["low", "high", "auto"])),
    ),
    known(type=st.sampled_from(["input_audio", "file", "video"])),
    JSON,
)
MESSAGES = known(
    "name",
    "tool_calls",
    role=st.sampled_from(["user", "user", "system", "developer", "assistant", "tool"]),
    content=st.one_of(TEXT, st.lists(PARTS, max_size=3), JSON),
)
NUMBERS = st.one_of(st.integers(-3, 300), st.floats(), st.floats(-3, 3).map(str), JSON)
FIELDS = sorted(set(ChatCompletionRequest.model_fields) - {"messages"})
BODIES = st.builds(
    lambda messages, more: {"messages": messages, **more},
    st.lists(MESSAGES, max_size=4) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), NUMBERS | JSON, max_size=4)
    | st.dictionaries(st.sampled_from(FIELDS) | TEXT, JSON, max_size=4),
)
RIGHT_TURNS = st.one_of(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": TEXT}
    ),
    st.builds(
        lambda text, url: {
            "role": "user",
            "content": [
                {"type": "text", "text": text},
                {"type": "image_url", "image_url": {"url": url}},
            ],
        },
        TEXT,
        st.sampled_from([data_url(file) for file in FILES]),
    ),
)
TOOLS = st.lists(
    st.builds(
        lambda name, more: {"type": "function", "function": {"name": name, **more}},
        st.sampled_from("fgh") | TEXT,
        st.fixed_dictionaries(
            {},
            optional={
                "description": TEXT,
                "parameters": st.dictionaries(TEXT | st.just("type"), JSON, max_size=4),
                "strict": st.booleans(),
            },
        ),
    ),
    max_size=4,
)
NAMED = {"type": "function", "function": {"name": "f"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
RIGHT_BODIES = st.fixed_dictionaries(
    {"messages": st.lists(RIGHT_TURNS, min_size=1, max_size=4)},
    optional={
        "temperature": st.floats(0, 2) | st.floats(0, 2).map(str),
        "max_tokens": st.integers(1, 10**9),
        "stop": TEXT.filter(bool) | st.lists(TEXT.filter(bool), max_size=4),
        "seed": st.integers(-(2**63), 2**63 - 1),
        "stream": st.booleans(),
        "logit_bias": st.dictionaries(st.integers(0, 9).map(str), st.floats(-100, 100), max_size=3),
        "response_format": st.sampled_from(["text", {"type": "json_object"}]),
        "tools": TOOLS,
        "tool_choice": st.sampled_from(["none", "required", NAMED, ALLOWED]),
    },
)
CHANGED_BODIES = st.builds(
    lambda body, name, value: body | {name: value},
    RIGHT_BODIES,
    st.sampled_from([*FIELDS, "messages"]) | TEXT,
    NUMBERS,
)
POLICIES = st.sampled_from(get_args(ExtraPolicy))

CHECKS: dict[str, tuple[SearchStrategy[Any], Check]] = {
    "files": (files() | st.binary(max_size=64), check_file),
    "URLs": (URLS, check_url),
    "remote URLs": (REMOTE_URLS, partial(check_remote_url, fetcher=Fetcher(HOSTS, 1, 1))),
    "bodies": (st.tuples(RIGHT_BODIES | CHANGED_BODIES | BODIES | JSON, POLICIES), check_body),
}

# In a round: bodies take ten times as long to make as the others.
EXAMPLES = {"files": 3500, "URLs": 3500, "remote URLs": 3200, "bodies": 600}


def attempt(name: str, examples: int, number: int) -> Counter[bool]:
    """Check that many inputs, the same ones for the same number; how many were taken and refused."""
    strategy, check = CHECKS[name]
    outcomes: Counter[bool] = Counter()

    def counted(value: Any) -> None:
        outcomes[check(value)] += 1

    run = given(strategy)(counted)
    run = settings(
        max_examples=examples,
        deadline=LONGEST,
        database=None,
        suppress_health_check=list(HealthCheck),
    )(run)
    seed(number)(run)()
    return outcomes


@pytest.mark.parametrize("name", CHECKS)
def test_some_inputs(name: str) -> None:
    outcomes = attempt(name, 200, 0)
    assert outcomes[True] > 5
    assert outcomes[False] > 20


@pytest.mark.slow
def test_more_than_100_000_inputs() -> None:
    process = psutil.Process()
    rounds, counts = 10, {name: Counter[bool]() for name in CHECKS}
    memory = []
    for number in range(1, rounds + 1):
        for name, examples in EXAMPLES.items():
            counts[name] += attempt(name, examples, number)
        gc.collect()
        memory.append(process.memory_info().rss)
    grown = memory[-1] - memory[2]  # the first rounds fill caches
    logger.info("%s inputs; %.1f MB more than after the third round", counts, grown / 1e6)
    assert sum(outcomes.total() for outcomes in counts.values()) >= 100_000
    # Libraries lose some at broken files, for which the server replaces its decoders.
    assert grown < 150e6
