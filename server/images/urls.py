"""Turns image URLs into image files. Unsupported URLs are refused before any work is done."""

from __future__ import annotations

import asyncio
import base64
import re
from collections import deque
from collections.abc import Callable
from functools import partial
from urllib.parse import unquote_to_bytes

import httpx2
from PIL import Image

import model
from server.errors import Loc
from server.images.decode_pool import DecodePool
from server.images.fetching import HTTP, Fetcher

# The media type's parameters are bounded, so that matching does not scan megabytes.
DATA_URL = re.compile(
    r"data:image/(jpeg|jpg|png|webp|gif|bmp|tiff)(;[^,;]{0,100}){0,8}?;base64,", re.IGNORECASE
)
WHITE_SPACE = b" \t\r\n\f\v"
PIECE = 1 << 20  # characters of base64


class Images:
    """The images of one request. Only the last ones are fetched, because the model sees no others.

    Args:
        decode_pool: decodes image files.
        fetcher: fetches remote images.
        hold: called with the size of each fetched part; its exceptions are propagated.
        images_per_prompt: number of images that the model sees.
    """

    def __init__(
        self,
        decode_pool: DecodePool,
        fetcher: Fetcher,
        hold: Callable[[int], None],
        images_per_prompt: int,
    ) -> None:
        self._decode_pool = decode_pool
        self._fetcher = fetcher
        self._hold = hold
        self._last: deque[DataUrl | RemoteUrl] = deque(maxlen=images_per_prompt)
        self._pixels: dict[DataUrl | RemoteUrl, int] = {}  # of the images so far

    def add(self, url: str, loc: Loc) -> Callable[[], model.ImageFile]:
        """Add an image; returns the function that reads its file.

        Call that after ``fetch``, on any thread; it raises model.ImageError, like the file's ``decode``.

        Args:
            url: ``data:image/...;base64,...``, or ``https://...`` of an allowed host.
            loc: path of the URL in the request, for errors.

        Raises:
            model.ModalityError: the URL is neither.
        """
        image = RemoteUrl(url, self._fetcher, loc) if HTTP.match(url) else DataUrl(url, loc)
        self._last.append(image)
        return partial(self._open, image)

    async def fetch(self) -> None:
        """Fetch those of the last images that are remote; raises model.ImageError."""
        remote = [image for image in self._last if isinstance(image, RemoteUrl)]
        if not remote:
            return
        fetches = [asyncio.ensure_future(image.fetch(self._hold)) for image in remote]
        try:
            await asyncio.gather(*fetches)
        finally:
            for fetch in fetches:
                fetch.cancel()

    def _open(self, image: DataUrl | RemoteUrl) -> model.ImageFile:
        return model.ImageFile(
            image.read(), partial(self._decode, image), partial(self._count, image)
        )

    def _decode(self, image: DataUrl | RemoteUrl, file: bytes) -> Image.Image:
        decoded = self._decode_pool(file)
        self._count(image, decoded.width * decoded.height)
        return decoded

    def _count(self, image: DataUrl | RemoteUrl, num_pixels: int) -> None:
        """Raise model.ImageError if all images so far are too large together."""
        self._pixels[image] = num_pixels
        total, limit = sum(self._pixels.values()), self._decode_pool.max_pixels
        if total > limit:
            raise model.ImageError(
                f"the images of the conversation have {total} pixels or more together; the limit is "
                f"{limit} (--max-image-pixels); scale them down or send fewer"
            )


class RemoteUrl:
    """The URL of a remote image.

    Raises:
        model.ModalityError: the URL may not be fetched.
    """

    def __init__(self, url: str, fetcher: Fetcher, loc: Loc) -> None:
        try:
            self._url: httpx2.URL = fetcher.allowed(url)
        except model.ModalityError as error:
            raise model.ModalityError(error.message, loc, url) from error
        self._fetcher = fetcher
        self._loc = loc
        self._file = b""

    async def fetch(self, hold: Callable[[int], None]) -> None:
        """Fetch the file; raises model.ImageError."""
        try:
            self._file = await self._fetcher(self._url, hold)
        except model.ImageError as error:
            raise type(error)(error.message, self._loc) from error

    def read(self) -> bytes:
        """The fetched file."""
        return self._file


class DataUrl:
    """A data URL of an image; ``read`` validates its base64.

    Raises:
        model.ModalityError: the URL is not a data URL of an image.
    """

    def __init__(self, url: str, loc: Loc) -> None:
        match = DATA_URL.match(url)
        if match is None:
            raise model.ModalityError(
                "the image's URL is not a data URL of a supported type; send the image as "
                "data:image/png;base64,... (jpeg, jpg, png, webp, gif, bmp or tiff)",
                loc,
                url,
            )
        self._url = url
        self._start = match.end()

    def read(self) -> bytes:
        """The file; slow for large ones. Raises model.ImageError if the base64 is invalid."""
        try:
            # On bytes, because removing white space from a str would hold the GIL for seconds.
            characters = self._url[self._start :].encode("ascii")
            if b"%" in characters:  # percent-encoding
                characters = unquote_to_bytes(characters)
            return _from_base64(characters)
        except ValueError as error:
            raise model.ImageError(
                f"the image's base64 is invalid or truncated ({error}); encode the whole file again"
            ) from error


def _from_base64(characters: bytes) -> bytes:
    """Decode base64 that may contain white space; raises ValueError.

    Works in pieces, so that other threads can run in between.
    """
    pieces: list[bytes] = []
    rest = b""
    for at in range(0, len(characters), PIECE):
        rest += characters[at : at + PIECE].translate(None, WHITE_SPACE)
        if at + PIECE < len(characters):
            whole = (len(rest) - 1) // 4 * 4  # keep at least one character for the next piece
            piece, rest = rest[:whole], rest[whole:]
            if piece.endswith(b"="):
                raise ValueError("Excess data after padding")
            pieces.append(base64.b64decode(piece, validate=True))
    return b"".join([*pieces, base64.b64decode(rest, validate=True)])
