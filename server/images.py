"""From a data URL to a decoded picture. Refuses everything else, by name, before it costs much."""

from __future__ import annotations

import base64
import re

from PIL import Image

import model
from server.decoding import Decoder

# The parameters of the media type are bounded: nothing is searched for in megabytes of them.
DATA_URL = re.compile(
    r"data:image/(jpeg|jpg|png|webp|gif|bmp|tiff)(;[^,;]{0,100}){0,8}?;base64,", re.IGNORECASE
)
WHITE_SPACE = b" \t\r\n\f\v"
Loc = tuple[str | int, ...]


class DataUrl:
    """A data URL of an image, checked for its form; its bytes are looked at by ``decode``.

    Args:
        url: ``data:image/...;base64,...``.
        decoder: of its file.
        loc: where the URL stands in the request, for errors.

    Raises:
        model.ModalityError: the URL is not a data URL of an image.
    """

    def __init__(self, url: str, decoder: Decoder, loc: Loc) -> None:
        match = DATA_URL.match(url)
        if match is None:
            raise model.ModalityError(
                "the image's URL is not a data URL of a kind of image that is taken; this server "
                "fetches nothing: send the file itself as data:image/png;base64,... (jpeg, jpg, "
                "png, webp, gif, bmp or tiff)",
                loc,
                url,
            )
        self._url = url
        self._start = match.end()
        self._decoder = decoder

    def decode(self) -> Image.Image:
        """The picture, in RGB. Takes a while for large ones.

        Raises:
            model.ImageError: the data is no readable image, or too large.
        """
        try:
            # Bytes, because to search text for white space would stop all threads for seconds.
            characters = self._url[self._start :].encode("ascii").translate(None, WHITE_SPACE)
            data = base64.b64decode(characters, validate=True)
        except ValueError as error:
            raise model.ImageError(
                f"the image's base64 is broken or cut off ({error}); encode the whole file again"
            ) from error
        return self._decoder(data)
