"""Decodes image files in confined processes, where hostile files do no harm.

A process that dies, hangs or uses too much memory is replaced. Processes return plain RGB bytes, so
even a compromised one can only return a wrong picture.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import queue
import signal
import socket
import struct
import warnings
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection

from PIL import Image

import model
from model.confined import Worker, WorkerError, Zygote, confine

# The format is detected from the bytes, because media types in URLs are often wrong.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
BYTES_PER_PIXEL = 32  # upper bound for a picture and its conversions
MEMORY_BESIDE = 1 << 30  # bytes of address space for everything else
IMAGES_PER_PROCESS = 1000  # libraries leak memory on broken files
START_TIMEOUT = 60.0  # seconds for a process to start; long, because the machine may be busy
LONGEST_MESSAGE = 1000  # characters
RATIO = struct.Struct("<d")
SIZE = struct.Struct("<II")  # header of a reply
NO_PICTURE = (0, 0)  # a size that marks an error message instead of pixels

Picture = tuple[tuple[int, int], bytes]  # (width, height) and RGB pixels
Decode = Callable[[bytes, int, float], Picture]
ENDED = (OSError, EOFError, ValueError, struct.error)  # malformed replies included


class _Worker:
    """A decoder process.

    Attributes:
        left: images to decode before it is replaced.
    """

    def __init__(self, worker: Worker, max_pixels: int, timeout: float) -> None:
        """Wait until it is ready; raises WorkerError if it does not start."""
        self._worker = worker
        self._timeout = timeout
        self.left = IMAGES_PER_PROCESS
        self._longest = max(3 * max_pixels, 4 * LONGEST_MESSAGE)
        try:
            if not worker.connection.poll(START_TIMEOUT):
                raise TimeoutError
            worker.connection.recv_bytes()
        except (OSError, EOFError) as error:
            worker.end()
            raise WorkerError("an image decoder process did not start") from error

    def __call__(self, data: bytes, longest_ratio: float) -> Image.Image:
        """Decode an image; raises ImageError, TimeoutError, or one of ENDED if the process died."""
        self.left -= 1
        connection = self._worker.connection
        connection.send_bytes(RATIO.pack(longest_ratio))
        connection.send_bytes(data)
        if not connection.poll(self._timeout):
            raise TimeoutError
        size = SIZE.unpack(connection.recv_bytes(SIZE.size))
        answer = connection.recv_bytes(self._longest)
        if size == NO_PICTURE:
            raise model.ImageError(answer.decode(errors="replace"))
        return Image.frombytes("RGB", size, answer)

    def end(self) -> None:
        """Kill the process."""
        self._worker.end()


class DecodePool:
    """A pool of decoder processes, which start on demand.

    Args:
        max_pixels: maximum width times height.
        timeout: seconds to decode an image.
        decode: the function that decodes, for tests.

    Attributes:
        max_pixels: as given.
        longest_ratio: maximum ratio of an image's sides; set once the model is loaded.
    """

    def __init__(self, max_pixels: int, timeout: float, decode: Decode | None = None) -> None:
        self.longest_ratio = math.inf
        self.max_pixels = max_pixels
        self._timeout = timeout
        self._zygote = Zygote(
            "server.images.decode_pool:make_worker", max_pixels, timeout, decode or decode_image
        )
        self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(max(2, (os.cpu_count() or 1) // 2)):
            self._idle.put(None)

    def start(self) -> None:
        """Start one process early, so that the first image does not wait for it; raises WorkerError."""
        worker = self._idle.get()
        try:
            worker = worker or self._start()
        finally:
            self._idle.put(worker)

    def __call__(self, data: bytes) -> Image.Image:
        """Decode an image file to RGB and apply its orientation. Blocks; can be called on any thread.

        Raises:
            model.ImageError: the image is unreadable, too large, or takes too long.
            WorkerError: no process could be started.
        """
        for _ in range(2):  # the idle process may have died for another reason
            worker = self._idle.get()
            healthy = False
            try:
                worker = worker or self._start()
                picture = worker(data, self.longest_ratio)
                healthy = True
                return picture
            except model.ImageError:
                healthy = True
                raise
            except TimeoutError as error:
                raise model.ImageError(
                    f"decoding the image took longer than the limit of {self._timeout:g} seconds "
                    "(--image-timeout); scale it down or save it as a plain PNG or JPEG"
                ) from error
            except ENDED:
                continue
            finally:
                if worker is not None and not (healthy and worker.left > 0):
                    worker.end()
                    worker = None
                self._idle.put(worker)
        raise model.ImageError("the image crashed its decoder; save it as a plain PNG or JPEG")

    def close(self) -> None:
        """End the processes. No image may be in progress; none can be decoded afterwards."""
        with contextlib.suppress(queue.Empty):
            while True:
                worker = self._idle.get_nowait()
                if worker is not None:
                    worker.end()
        self._zygote.close()

    def _start(self) -> _Worker:
        return _Worker(self._zygote.fork(), self.max_pixels, self._timeout)


def make_worker(max_pixels: int, timeout: float, decode: Decode) -> Callable[[socket.socket], None]:
    """The main function of a process, created once before forking; for the arguments see ``DecodePool``."""
    Image.preinit()
    Image.MAX_IMAGE_PIXELS = max_pixels  # also applies to images embedded in a file
    return partial(_work, max_pixels, timeout, decode)


def _work(max_pixels: int, timeout: float, decode: Decode, server: socket.socket) -> None:
    """Decode images until the server closes the connection."""
    confine(max_pixels * BYTES_PER_PIXEL + MEMORY_BESIDE)
    with contextlib.suppress(OSError):
        os.nice(5)  # give running requests priority
    connection = Connection(server.detach())
    with contextlib.suppress(EOFError, OSError):
        connection.send_bytes(b"")  # ready
        while True:
            (longest_ratio,) = RATIO.unpack(connection.recv_bytes(RATIO.size))
            data = connection.recv_bytes()
            signal.setitimer(
                signal.ITIMER_REAL, 2 * timeout
            )  # ends the process even if the server was killed
            try:
                size, answer = decode(data, max_pixels, longest_ratio)
            except model.ImageError as error:
                size = NO_PICTURE
                answer = error.message[:LONGEST_MESSAGE].encode(errors="replace")
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(SIZE.pack(*size))
            connection.send_bytes(answer)


def decode_image(data: bytes, max_pixels: int, longest_ratio: float = math.inf) -> Picture:
    """Decode an image file; raises model.ImageError."""
    warnings.simplefilter("ignore")  # only errors matter
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise model.ImageError(_too_large(max_pixels, str(error))) from None
    except Exception:
        raise model.ImageError(
            "the image is not a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None
    if image.width * image.height > max_pixels:
        raise model.ImageError(_too_large(max_pixels, f"it is {image.width}x{image.height}"))
    model.check_sides(image.size, longest_ratio)
    kind = image.format
    try:
        # load() accepts a PNG that is truncated after its pixels; verify() does not.
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
            f"the {kind} image is truncated or corrupt ({error}); send the whole file"
        ) from None
    return rgb.size, rgb.tobytes()


def _too_large(limit: int, reason: str) -> str:
    return f"the image has more pixels than the limit of {limit} ({reason}); scale it down"
