"""A file whose embedding is cached is not decoded again, and answers stay the same."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from PIL import Image

from model.engine.engine import Engine
from model.engine.in_flight import Footprint
from model.errors import ImageError
from model.phi3v.inputs.chat import ImageFile, Message, MessageImage
from model.phi3v.inputs.processing import PromptInputs
from tests.support.engines.engine_runs import GREEDY, MakeEngine, run

SIZE = (300, 200)


class Files:
    """Image files of one colour each, and the colours decoded so far."""

    def __init__(self) -> None:
        self.decoded: list[str] = []
        self.counted: list[int] = []

    def __call__(self, colour: str, num_crops: int = 1, kind: str = "PNG") -> MessageImage:
        file = io.BytesIO()
        Image.new("RGB", SIZE, colour).save(file, kind)

        def decode(data: bytes) -> Image.Image:
            self.decoded.append(colour)
            return Image.open(io.BytesIO(data))

        opened = ImageFile(file.getvalue(), decode, self.counted.append)
        return MessageImage(lambda: opened, num_crops)


@pytest.fixture
def files() -> Files:
    return Files()


def prepare(engine: Engine, *images: MessageImage, salt: str = "") -> PromptInputs:
    params = replace(GREEDY, cache_salt=salt)
    return engine.prepare([Message("user", "look", images)], params)[0]


def test_a_file_seen_before_is_not_decoded(make_engine: MakeEngine, files: Files) -> None:
    engine = make_engine(prefix_caching=False)
    first = prepare(engine, files("red"))
    again = prepare(engine, files("red"))  # its embedding is not computed yet
    assert files.decoded == ["red", "red"]
    answers = run(engine, (first, GREEDY), (again, GREEDY))
    seen = prepare(engine, files("red"))
    assert files.decoded == ["red", "red"]
    assert files.counted == [SIZE[0] * SIZE[1]]
    assert seen.token_ids == first.token_ids
    assert run(engine, (seen, GREEDY))[0, 0] == answers[0, 0] == answers[1, 0]
    assert engine.stats().images_computed == 1


def test_other_files_salts_and_crops_are_decoded(make_engine: MakeEngine, files: Files) -> None:
    engine = make_engine()
    run(engine, (prepare(engine, files("red")), GREEDY))
    prepare(engine, files("red"), salt="another caller")
    prepare(engine, files("red", num_crops=4))
    prepare(engine, files("red", kind="BMP"))
    prepare(engine, files("blue"))
    assert files.decoded == ["red"] * 4 + ["blue"]


def test_a_cached_prefix_is_found_by_its_file(make_engine: MakeEngine, files: Files) -> None:
    engine = make_engine()
    first = run(engine, (prepare(engine, files("red")), GREEDY))
    before = engine.stats().totals.cached_tokens
    assert run(engine, (prepare(engine, files("red")), GREEDY)) == first
    assert engine.stats().totals.cached_tokens > before + 300


def test_without_the_embedding_cache_every_file_is_decoded(
    make_engine: MakeEngine, files: Files
) -> None:
    engine = make_engine(embedding_cache_memory=0)
    first = run(engine, (prepare(engine, files("red")), GREEDY))
    assert run(engine, (prepare(engine, files("red")), GREEDY)) == first
    assert files.decoded == ["red", "red"]


def test_an_embedding_is_not_evicted_while_a_request_waits(
    make_engine: MakeEngine, files: Files
) -> None:
    engine = make_engine(prefix_caching=False)
    first = run(engine, (prepare(engine, files("red")), GREEDY))
    bytes_of_one = engine.stats().embedding_bytes
    engine = make_engine(prefix_caching=False, embedding_cache_memory=1.5 * bytes_of_one / 2**30)
    assert run(engine, (prepare(engine, files("red")), GREEDY)) == first
    waiting = prepare(engine, files("red"))
    for colour in ("green", "blue"):
        run(engine, (prepare(engine, files(colour)), GREEDY))
        assert engine.stats().embedding_bytes == bytes_of_one
    files.decoded.clear()
    assert run(engine, (waiting, GREEDY)) == first
    del waiting
    run(engine, (prepare(engine, files("green")), GREEDY))
    prepare(engine, files("red"))
    assert files.decoded == ["green", "red"]


def test_a_seen_image_takes_no_memory_of_its_own(make_engine: MakeEngine, files: Files) -> None:
    engine = make_engine()
    first = prepare(engine, files("red"))
    assert Footprint.of(first, GREEDY, 8).image_bytes == first.decoded[0].pixels.nbytes
    run(engine, (first, GREEDY))
    seen = prepare(engine, files("red"))
    assert Footprint.of(seen, GREEDY, 8).image_bytes == 0
    assert seen.decoded == []


def test_seen_images_count_towards_the_limit(make_engine: MakeEngine, files: Files) -> None:
    engine = make_engine()
    run(engine, (prepare(engine, files("red")), GREEDY))

    def refuse(num_pixels: int) -> None:
        raise ImageError(f"{num_pixels} pixels are too many")

    opened = files("red").open()
    assert isinstance(opened, ImageFile)
    strict = MessageImage(lambda: replace(opened, count=refuse), 1, ("the", "image"))
    with pytest.raises(ImageError, match="60000 pixels are too many") as refused:
        prepare(engine, strict)
    assert refused.value.loc == ("the", "image")
