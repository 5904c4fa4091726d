"""Hostile and odd image files: each is shown or refused, soon, and nobody else notices."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import httpx2
import psutil
import pytest
from PIL import Image

from model import ImageError, to_rgb
from server.images import decode_pool as decoding
from server.images.decode_pool import DecodePool, decode_image
from server.images.urls import DataUrl
from tests.support.hostile.image_files import saved
from tests.support.hostile.nasty_images import NASTY
from tests.support.servers.confined_workers import workers
from tests.support.servers.live_server import LiveServer
from tests.support.servers.wire import AUTHORIZED, data_url, image_message

PIXELS = 50_000_000
SHOWN = {"one pixel", "animated gif", "CMYK JPEG", "I;16 PNG", "exif that points at itself"}
REFUSED = {"a page", "an svg", "postscript", "PNG cut in half", "png of the largest size", "zeros"}


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecodePool]:
    made = DecodePool(PIXELS, timeout=20)
    yield made
    made.close()


def test_there_are_many() -> None:
    assert len(NASTY) > 80
    assert NASTY.keys() >= SHOWN | REFUSED


@pytest.mark.parametrize("name", NASTY)
def test_nasty_images(server: LiveServer, name: str) -> None:
    body = {"messages": image_message(data_url(NASTY[name]()))}
    started = time.perf_counter()
    response = httpx2.post(f"{server.url}/tokenize", json=body, headers=AUTHORIZED, timeout=60)
    assert time.perf_counter() - started < 40
    if response.status_code != 200:
        assert (response.status_code, response.json()["code"]) == (422, "invalid_image")
        assert response.json()["error"]["param"] == "messages.0.content.0.image_url.url"
        assert len(response.content) < 3000
    if name in SHOWN:
        assert response.status_code == 200
    if name in REFUSED:
        assert response.status_code == 422


def test_pictures_are_those_that_pil_makes(decoder: DecodePool) -> None:
    for kind, mode in (("PNG", "RGBA"), ("JPEG", "CMYK"), ("GIF", "P"), ("TIFF", "F")):
        data = saved(kind, mode)
        expected = to_rgb(Image.open(io.BytesIO(data)))
        made = decoder(data)
        assert (made.mode, made.size) == ("RGB", expected.size)
        assert made.tobytes() == expected.tobytes()


def test_processes_that_were_killed_are_replaced(decoder: DecodePool) -> None:
    """By the system, say, between two images."""
    good = saved("PNG")
    others = set(workers())
    for _ in range(3):
        assert decoder(good).size == (64, 48)
        for worker in set(workers()) - others:
            worker.kill()


def test_processes_are_replaced_after_many_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "IMAGES_PER_PROCESS", 2)
    others = set(workers())
    decoder = DecodePool(PIXELS, timeout=60)
    try:
        seen = []
        for data in (saved("PNG"), b"broken", saved("PNG")):
            decoder.start()
            (worker,) = set(workers()) - others
            seen.append(worker.pid)
            with contextlib.suppress(ImageError):
                decoder(data)
        assert seen[0] == seen[1] != seen[2]
    finally:
        decoder.close()


def sometimes(data: bytes, max_pixels: int, longest_ratio: float) -> tuple[tuple[int, int], bytes]:
    """Stands in for a decoder with faults that no file is known to bring about."""
    if data == b"hang":
        time.sleep(1000)
    if data == b"die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"fill":
        return (1, 1), bytes(100 << 30)
    return decode_image(data, max_pixels, longest_ratio)


@pytest.mark.parametrize(
    ("bad", "timeout", "message"),
    [
        (b"hang", 3, "longer than the limit of 3 seconds"),
        (b"die", 60, "crashed"),
        (b"fill", 60, "crashed"),
    ],
)
def test_an_image_that_hangs_or_kills_its_decoder(bad: bytes, timeout: float, message: str) -> None:
    decoder = DecodePool(PIXELS, timeout, sometimes)
    try:
        good = saved("PNG")
        decoder.start()
        files = psutil.Process().num_fds()
        with ThreadPoolExecutor(1) as pool:
            for _ in range(2):
                waiting = pool.submit(decoder, bad)
                with pytest.raises(ImageError, match=message):
                    waiting.result(200)
                assert decoder(good).size == (64, 48)
        assert psutil.Process().num_fds() <= files + 6
    finally:
        decoder.close()


@pytest.mark.slow
def test_one_that_hangs_leaves_a_process_to_others() -> None:
    decoder = DecodePool(PIXELS, 5, sometimes)
    try:
        good = saved("PNG")
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(decoder, [good, good]))  # starts both processes
            waiting = pool.submit(decoder, b"hang")
            assert decoder(good).size == (64, 48)
            assert not waiting.done()
            with pytest.raises(ImageError):
                waiting.result(200)
    finally:
        decoder.close()


def test_a_decoder_that_was_never_asked_ends() -> None:
    DecodePool(PIXELS, timeout=1).close()


def test_white_space_in_base64_costs_little(decoder: DecodePool) -> None:
    """Of which there may be megabytes; a search through text would stop every stream meanwhile."""
    url = data_url(saved("PNG"))
    head, _, data = url.partition(",")
    url = head + "," + " ".join(data) + " \n" * 40_000_000
    started = time.thread_time()  # what others do on the machine does not count
    assert decoder(DataUrl(url, ()).read()).size == (64, 48)
    assert time.thread_time() - started < 2  # a search for each takes four


def test_percent_encoded_base64(decoder: DecodePool) -> None:
    """Its padding, its plus signs and slashes, or all of it."""
    head, _, data = data_url(saved("PNG")).partition(",")
    pixels = decoder(DataUrl(f"{head},{data}", ()).read()).tobytes()
    for url in (
        f"{head},{data.replace('=', '%3D').replace('=', '%3d')}",
        f"{head},{quote(data, safe='')}",
        head + "," + "".join(f"%{ord(character):02X}" for character in data),
    ):
        assert decoder(DataUrl(url, ()).read()).tobytes() == pixels


@pytest.mark.parametrize("data", ["QQ==QQ==", "QUJD-", "Q%UJD", "QUJDé"])
def test_broken_base64_of_any_length(decoder: DecodePool, data: str) -> None:
    """It is found broken wherever in a file that is."""
    for before in (0, 3 << 18, 1 << 20, 5 << 19):
        for after in ("", "QUJD" * 300_000):
            url = "data:image/png;base64," + "A" * before + data + after
            with pytest.raises(ImageError, match="base64 is invalid"):
                decoder(DataUrl(url, ()).read())
