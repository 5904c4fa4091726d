"""From the URL of an image to a decoded picture. Refuses what it does not take, by name, before it costs."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from urllib.parse import unquote_to_bytes

import httpx2
from PIL import Image

import model
from server.errors import Loc
from server.images.decode_pool import DecodePool
from server.images.fetching import HTTP, Fetcher

# The parameters of the media type are bounded: nothing is searched for in megabytes of them.
DATA_URL = re.compile(
    r"data:image/(jpeg|jpg|png|webp|gif|bmp|tiff)(;[^,;]{0,100}){0,8}?;base64,", re.IGNORECASE
)
WHITE_SPACE = b" \t\r\n\f\v"
PIECE = 1 << 20  # characters of base64


class Images:
    """The images of one request. The model looks at the last one, so that is the one to be fetched.

    Args:
        decode_pool: decodes their files.
        fetcher: fetches those that are elsewhere.
        hold: called with the bytes that a file takes, as they come; what it raises is raised.
    """

    def __init__(
        self, decode_pool: DecodePool, fetcher: Fetcher, hold: Callable[[int], None]
    ) -> None:
        self._decode_pool = decode_pool
        self._fetcher = fetcher
        self._hold = hold
        self._last: DataUrl | RemoteUrl | None = None

    def add(self, url: str, loc: Loc) -> Callable[[], Image.Image]:
        """What makes the picture, after ``fetch``, on any thread; it raises model.ImageError.

        Args:
            url: ``data:image/...;base64,...``, or ``https://...`` of a host that is listed.
            loc: where the URL stands in the request, for errors.

        Raises:
            model.ModalityError: the URL is neither.
        """
        if HTTP.match(url):
            self._last = RemoteUrl(url, self._fetcher, self._decode_pool, loc)
        else:
            self._last = DataUrl(url, self._decode_pool, loc)
        return self._last.decode

    async def fetch(self) -> None:
        """Fetch the last image, if it is elsewhere; raises model.ImageError."""
        if isinstance(self._last, RemoteUrl):
            await self._last.fetch(self._hold)


class RemoteUrl:
    """The URL of an image elsewhere.

    Raises:
        model.ModalityError: it is not one that may be fetched.
    """

    def __init__(self, url: str, fetcher: Fetcher, decode_pool: DecodePool, loc: Loc) -> None:
        try:
            self._url: httpx2.URL = fetcher.allowed(url)
        except model.ModalityError as error:
            raise model.ModalityError(error.message, loc, url) from error
        self._fetcher = fetcher
        self._decode_pool = decode_pool
        self._loc = loc
        self._file = b""

    async def fetch(self, hold: Callable[[int], None]) -> None:
        """Fetch the file; raises model.ImageError."""
        try:
            self._file = await self._fetcher(self._url, hold)
        except model.ImageError as error:
            raise type(error)(error.message, self._loc) from error

    def decode(self) -> Image.Image:
        """The picture, in RGB; raises model.ImageError."""
        return self._decode_pool(self._file)


class DataUrl:
    """A data URL of an image, checked for its form; its bytes are looked at by ``decode``.

    Raises:
        model.ModalityError: the URL is not a data URL of an image.
    """

    def __init__(self, url: str, decode_pool: DecodePool, loc: Loc) -> None:
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
        self._decode_pool = decode_pool

    def decode(self) -> Image.Image:
        """The picture, in RGB. Takes a while for large ones.

        Raises:
            model.ImageError: the data is no readable image, or too large.
        """
        try:
            # Bytes, because to search text for white space would stop all threads for seconds.
            characters = self._url[self._start :].encode("ascii")
            if b"%" in characters:  # as URLs may spell any character
                characters = unquote_to_bytes(characters)
            data = _from_base64(characters)
        except ValueError as error:
            raise model.ImageError(
                f"the image's base64 is invalid or truncated ({error}); encode the whole file again"
            ) from error
        return self._decode_pool(data)


def _from_base64(characters: bytes) -> bytes:
    """The bytes that base64 stands for, white space in it or not; raises ValueError.

    Made in pieces, between which other threads run.
    """
    pieces: list[bytes] = []
    rest = b""
    for at in range(0, len(characters), PIECE):
        rest += characters[at : at + PIECE].translate(None, WHITE_SPACE)
        if at + PIECE < len(characters):
            whole = (len(rest) - 1) // 4 * 4  # at least one character is left
            piece, rest = rest[:whole], rest[whole:]
            if piece.endswith(b"="):
                raise ValueError("Excess data after padding")
            pieces.append(base64.b64decode(piece, validate=True))
    return b"".join([*pieces, base64.b64decode(rest, validate=True)])
