"""From a data URL to a decoded picture. Refuses everything else, by name, before it costs much."""

from __future__ import annotations

import base64
import io
import re

from PIL import Image

import model

# The parameters of the media type are bounded: nothing is searched for in megabytes of them.
DATA_URL = re.compile(
    r"data:image/(jpeg|jpg|png|webp|gif|bmp|tiff)(;[^,;]{0,100}){0,8}?;base64,", re.IGNORECASE
)
# The bytes decide; what the URL says of them is often wrong.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
Loc = tuple[str | int, ...]


class DataUrl:
    """A data URL of an image, checked for its form; its bytes are looked at by ``decode``.

    Args:
        url: ``data:image/...;base64,...``.
        max_pixels: largest width times height.
        loc: where the URL stands in the request, for errors.

    Raises:
        model.ModalityError: the URL is not a data URL of an image.
    """

    def __init__(self, url: str, max_pixels: int, loc: Loc) -> None:
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
        self._max_pixels = max_pixels

    def decode(self) -> Image.Image:
        """The picture. Takes a while for large ones.

        Raises:
            model.ImageError: the data is no readable image, or too large.
        """
        try:
            characters = re.sub(r"\s+", "", self._url[self._start :])
            data = base64.b64decode(characters, validate=True)
        except ValueError as error:
            raise model.ImageError(
                f"the image's base64 is broken or cut off ({error}); encode the whole file again"
            ) from error
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise model.ImageError(self._too_large(str(error))) from error
        except Exception as error:
            raise model.ImageError(
                "the image's data is no JPEG, PNG, WebP, GIF, BMP or TIFF file"
            ) from error
        if image.width * image.height > self._max_pixels:
            raise model.ImageError(self._too_large(f"it is {image.width}x{image.height}"))
        try:
            # The decoder forgives a PNG that ends early once it has all pixels; its check does not.
            image.verify()
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            image.load()
        except Exception as error:  # decoders raise anything on broken files
            raise model.ImageError(
                f"the {image.format} image is cut off or broken ({error}); send the whole file"
            ) from error
        return image

    def _too_large(self, reason: str) -> str:
        limit = self._max_pixels
        return f"the image has more than {limit} pixels, the limit here ({reason}); scale it down"
