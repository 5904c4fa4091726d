"""Pictures on the playground: picked, dropped, pasted, samples; and those the server would refuse."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from PIL import Image
from playwright.sync_api import FilePayload, expect

from tests.playground.page import Playground, browser, open_page, playground
from tests.support.servers.live_server import LiveServer

__all__ = ["browser", "open_page", "playground"]


def encoded(format_: str, size: tuple[int, int] = (300, 200), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "green").save(file, format_, **options)
    return file.getvalue()


def noise(size: tuple[int, int]) -> bytes:
    """A PNG that cannot be compressed."""
    file = io.BytesIO()
    Image.merge("RGB", [Image.effect_noise(size, 100) for _ in "RGB"]).save(file, "PNG")
    return file.getvalue()


def pick(playground: Playground, name: str, kind: str, data: bytes) -> str:
    """Pick a file; what the page says of it."""
    file: FilePayload = {"name": name, "mimeType": kind, "buffer": data}
    playground.page.get_by_label("Add picture").set_input_files(file)
    attachment = playground.page.locator("#attachment")
    attachment.get_by_text(name).wait_for()
    return attachment.inner_text()


def sent(playground: Playground, message: int = -1) -> tuple[str, bytes]:
    """Media type and bytes of the picture in a message of the last request."""
    content = playground.bodies[-1]["messages"][message]["content"]
    (part,) = [part for part in content if part["type"] == "image_url"]
    head, data = part["image_url"]["url"].split(",")
    return head.removeprefix("data:").removesuffix(";base64"), base64.b64decode(data)


def test_a_picked_file_is_sent_as_it_is(playground: Playground) -> None:
    data = encoded("JPEG", quality=80)
    said = pick(playground, "green.jpg", "image/jpeg", data)
    assert "300 × 200" in said
    assert "scaled" not in said
    image = playground.page.locator("#attachment img")
    assert image.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == [300, 200]
    turn = playground.ask("what is this?")
    assert playground.shown(turn)
    assert sent(playground) == ("image/jpeg", data)
    _, text = playground.bodies[-1]["messages"][0]["content"]
    assert text == {"type": "text", "text": "what is this?"}
    expect(turn.get_by_role("img", name="green.jpg")).to_be_visible()
    expect(playground.page.locator("#attachment")).to_be_hidden()


def test_only_the_last_picture_is_sent(playground: Playground) -> None:
    """The model sees no other; the text of its question stays."""
    pick(playground, "one.png", "image/png", encoded("PNG"))
    playground.ask("one")
    playground.ask("and?")
    assert sent(playground, 0)[0] == "image/png"
    pick(playground, "two.webp", "image/webp", encoded("WEBP"))
    playground.set(detail="low")
    playground.ask("two")
    messages = playground.bodies[-1]["messages"]
    assert [message["content"] for message in messages[:4:2]] == ["one", "and?"]
    assert messages[4]["content"][0]["image_url"]["detail"] == "low"
    assert sent(playground)[0] == "image/webp"


def test_a_picture_needs_no_words_and_can_be_removed(playground: Playground) -> None:
    pick(playground, "one.png", "image/png", encoded("PNG"))
    playground.page.get_by_role("button", name="Remove the picture").click()
    expect(playground.page.locator("#attachment")).to_be_hidden()
    playground.page.get_by_role("button", name="Send").click()
    assert playground.bodies == []
    pick(playground, "one.png", "image/png", encoded("PNG"))
    playground.ask("")
    (part,) = playground.bodies[0]["messages"][0]["content"]
    assert part["type"] == "image_url"


def test_drop(playground: Playground) -> None:
    data = encoded("PNG")
    transfer = playground.page.evaluate_handle(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        base64.b64encode(data).decode(),
    )
    zone = playground.page.locator("#drop")
    playground.page.dispatch_event("#log", "dragenter", {"dataTransfer": transfer})
    expect(zone).to_be_visible()
    playground.page.dispatch_event("#log", "drop", {"dataTransfer": transfer})
    playground.page.locator("#attachment").get_by_text("dropped.png").wait_for()
    expect(zone).to_be_hidden()
    playground.ask("what is this?")
    assert sent(playground) == ("image/png", data)


def test_paste(playground: Playground) -> None:
    """From the clipboard, with the keys that do it; text is pasted as ever."""
    playground.page.evaluate(
        """async (url) => {
            const bytes = Uint8Array.from(atob(url), (c) => c.charCodeAt(0));
            const blob = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": blob })]);
        }""",
        base64.b64encode(encoded("PNG")).decode(),
    )
    message = playground.page.get_by_label("Message", exact=True)
    message.press("Control+V")
    playground.page.locator("#attachment").get_by_text("300 × 200").wait_for()
    playground.page.evaluate("navigator.clipboard.writeText('some words')")
    message.press("Control+V")
    assert message.input_value() == "some words"
    playground.ask("what is this?")
    image = Image.open(io.BytesIO(sent(playground)[1]))
    assert (image.size, image.convert("RGB").getpixel((9, 9))) == ((300, 200), (0, 128, 0))


def test_samples(playground: Playground) -> None:
    """Drawn as SVG, sent as PNG; each brings a question."""
    playground.set(max_tokens=1)
    for sample in ("Two shapes", "Green star", "A letter", "A digit", "Bar chart"):
        playground.add_sample(sample)
        message = playground.page.get_by_label("Message", exact=True)
        assert message.input_value().endswith(("?", "."))
        message.press("Enter")
        playground.finished()
        kind, data = sent(playground)
        image = Image.open(io.BytesIO(data))
        assert (kind, image.format, image.size) == ("image/png", "PNG", (640, 480))
        colours = image.convert("RGB").getcolors(100_000)
        assert colours is not None
        assert len(colours) > 1
        playground.page.get_by_role("button", name="New chat").click()


def test_other_formats(playground: Playground) -> None:
    """What the server reads goes as it is, shown or not; what the browser alone reads, as PNG."""
    tiff = encoded("TIFF")
    pick(playground, "scan.tiff", "image/tiff", tiff)
    expect(playground.page.locator("#attachment img")).to_be_hidden()
    assert playground.shown(playground.ask("what is this?"))
    assert sent(playground) == ("image/tiff", tiff)
    pick(playground, "photo.avif", "image/avif", encoded("AVIF"))
    assert playground.shown(playground.ask("and this?"))
    assert sent(playground)[0] == "image/png"
    file: FilePayload = {
        "name": "notes.txt",
        "mimeType": "text/plain",
        "buffer": b"no picture",
    }
    playground.page.get_by_label("Add picture").set_input_files(file)
    complaint = playground.page.get_by_role("alert").filter(has_text="notes.txt")
    assert "This browser cannot read" in complaint.inner_text()


def test_what_is_too_large_is_scaled_down(
    open_page: Callable[..., Playground], server: LiveServer
) -> None:
    """To the limits that the server names, of pixels and of bytes; upright, and no further."""
    limits = httpx2.get(f"{server.url}/playground/settings.json").json()
    limits |= {"max_image_pixels": 60_000, "max_body_bytes": 200_000}
    made = open_page()
    made.page.route("**/settings.json", lambda route: route.fulfill(json=limits))
    made.open(server.key)
    made.set(max_tokens=2)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    photo = encoded("JPEG", (600, 400), exif=turned)
    assert "scaled down from 400 × 600" in pick(made, "photo.jpg", "image/jpeg", photo)
    assert made.shown(made.ask("what is this?"))
    kind, data = sent(made)
    width, height = Image.open(io.BytesIO(data)).size
    assert kind == "image/jpeg"
    assert 58_000 < width * height <= 60_000
    assert width / height == pytest.approx(2 / 3, abs=0.01)
    said = pick(made, "noise.png", "image/png", noise((240, 250)))  # 180 KB, so 240 as base64
    assert "scaled" not in said
    assert made.shown(made.ask("what is this?"))
    assert sent(made)[0] == "image/jpeg"
    assert Image.open(io.BytesIO(sent(made)[1])).size == (240, 250)
    assert len(json.dumps(made.bodies[-1])) < 200_000
