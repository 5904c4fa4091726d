"""Decodes image files in processes of their own, where a hostile one harms nothing.

A process that dies, hangs or wants too much memory is replaced. What comes back is plain RGB, and is
read as bytes: nothing that a process says can do more than be a wrong picture.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import queue
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection

from PIL import Image

import model

# The bytes decide; what a URL says of them is often wrong.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
BYTES_PER_PIXEL = 32  # at most, of a picture and its conversions
MEMORY_BESIDE = 1 << 30  # bytes of address space for everything else
SIZE = struct.Struct("<II")  # how a process begins the answer that a picture follows

Picture = tuple[tuple[int, int], bytes]  # width and height, and the pixels in RGB
Decode = Callable[[bytes, int], Picture]


class _Worker:
    """A process that decodes one image after another."""

    def __init__(self, max_pixels: int, decode: Decode) -> None:
        # Forked from a process without threads, which has imported what is needed.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, max_pixels, decode), name="decode", daemon=True
        )
        self._process.start()
        theirs.close()

    def __call__(self, data: bytes, timeout: float) -> Image.Image:
        """The picture; raises ImageError, TimeoutError, or another OSError or EOFError if it died."""
        self._connection.send_bytes(data)
        if not self._connection.poll(timeout):
            raise TimeoutError
        answer = self._connection.recv_bytes()
        if len(answer) != SIZE.size:
            raise model.ImageError(answer.decode())
        return Image.frombytes("RGB", SIZE.unpack(answer), self._connection.recv_bytes())

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._connection.close()


class Decoder:
    """As many processes as decode at a time; each starts with its first image, or before.

    Args:
        max_pixels: largest width times height.
        timeout: seconds that an image may take.
        decode: how, in a process.
    """

    def __init__(self, max_pixels: int, timeout: float, decode: Decode | None = None) -> None:
        self._max_pixels = max_pixels
        self._timeout = timeout
        self._decode = decode or decode_image
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(max(2, (os.cpu_count() or 1) // 2)):
            self._idle.put(None)

    def start(self) -> None:
        """Start a process, so that the first image need not wait for it."""
        worker = self._idle.get()
        try:
            worker = worker or _Worker(self._max_pixels, self._decode)
        finally:
            self._idle.put(worker)

    def __call__(self, data: bytes) -> Image.Image:
        """The picture in an image file, upright and in RGB. Takes a while; called on any thread.

        Raises:
            model.ImageError: it is no readable image, too large, or takes too long.
        """
        for _ in range(2):  # a process may have died before, for a reason of its own
            worker = self._idle.get()
            healthy = False
            try:
                worker = worker or _Worker(self._max_pixels, self._decode)
                picture = worker(data, self._timeout)
                healthy = True
                return picture
            except model.ImageError:
                healthy = True
                raise
            except TimeoutError as error:
                raise model.ImageError(
                    f"the image took longer than {self._timeout:g} seconds to decode, the limit "
                    "here; scale it down or save it as a plain PNG or JPEG"
                ) from error
            except (OSError, EOFError, ValueError):
                continue
            finally:
                if worker is not None and not healthy:
                    worker.end()
                self._idle.put(worker if healthy else None)
        raise model.ImageError("the image's decoder ended at it; save it as a plain PNG or JPEG")

    def close(self) -> None:
        """End the processes that are idle; the others end with the server."""
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.end()


def _work(connection: Connection, max_pixels: int, decode: Decode) -> None:
    """What a process does until the server ends."""
    _confine(max_pixels)
    with contextlib.suppress(EOFError, OSError):
        while True:
            data = connection.recv_bytes()
            try:
                size, pixels = decode(data, max_pixels)
            except model.ImageError as error:
                connection.send_bytes(error.message.encode(errors="replace")[:1000].ljust(20))
            else:
                connection.send_bytes(SIZE.pack(*size))
                connection.send_bytes(pixels)


def decode_image(data: bytes, max_pixels: int) -> Picture:
    """The picture in an image file; raises model.ImageError."""
    warnings.simplefilter("ignore")  # of odd files; what matters is an error
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise model.ImageError(_too_large(max_pixels, str(error))) from None
    except Exception:
        raise model.ImageError(
            "the image's data is no JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    if image.width * image.height > max_pixels:
        raise model.ImageError(_too_large(max_pixels, f"it is {image.width}x{image.height}"))
    kind = image.format
    try:
        # The decoder forgives a PNG that ends early once it has all pixels; its check does not.
        image.verify()
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        rgb = model.to_rgb(image)
    except MemoryError:
        raise model.ImageError(
            f"the {kind} image takes too much memory to decode; save it as a plain PNG or JPEG"
        ) from None
    except Exception as error:  # decoders raise anything on broken files
        raise model.ImageError(
            f"the {kind} image is cut off or broken ({error}); send the whole file"
        ) from None
    return rgb.size, rgb.tobytes()


def _too_large(limit: int, reason: str) -> str:
    return f"the image has more than {limit} pixels, the limit here ({reason}); scale it down"


def _confine(max_pixels: int) -> None:
    """Bound what this process takes; running answers come first."""
    Image.MAX_IMAGE_PIXELS = max_pixels  # also of what a file holds inside
    memory = max_pixels * BYTES_PER_PIXEL + MEMORY_BESIDE
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the server ends it
    with contextlib.suppress(OSError):
        os.nice(5)
    if sys.platform == "linux":
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
