"""Runs the vision tower for waiting sequences, in time slices between steps.

The tower takes as long as hundreds of decode steps. It runs in parts, one layer of a few crops each, so
that it can pause for running streams. Images of several sequences share a pass if their crops fit;
sequences with the same image share its embedding.

A GPU works through a queue of parts. While it computes one, the next is queued: with none the GPU would
idle, and with more the streams would wait for all of them.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from model.engine.execution.device_clock import DeviceClock, Mark
from model.engine.execution.embedding_cache import EmbeddingCache
from model.engine.request import SequenceKey
from model.engine.scheduling.placed_image import PlacedImage
from model.engine.scheduling.sequence import Sequence
from model.phi3v.inputs.image_processing import ImageInputs
from model.phi3v.vision import Phi3VImageEmbedding

logger = logging.getLogger(__name__)


@dataclass
class _Pass:
    """Images that go through the tower together."""

    images: dict[bytes, ImageInputs]
    parts: Generator[None, None, list[Tensor]]


class _Slice:
    """A slice of the device's time.

    Args:
        clock: of the device.
        seconds: length of the slice.
        part_seconds: duration of a part in the slice before.
    """

    def __init__(self, clock: DeviceClock, seconds: float, part_seconds: float) -> None:
        self.part_seconds = part_seconds
        self._clock = clock
        self._seconds = seconds
        self._spent = 0.0
        self._done = clock.mark()  # the device got at least here
        self._queued: deque[Mark] = deque()

    def has_time_after(self) -> bool:
        """Whether there is time for a part after the one just launched; waits for those before it."""
        self._queued.append(self._clock.mark())
        if len(self._queued) > 1 or not self._clock.queues:
            done = self._queued.popleft()
            done.wait()
            self.part_seconds = done.since(self._done)
            self._spent += self.part_seconds
            self._done = done
        ahead = len(self._queued) + 1
        return self._spent + ahead * self.part_seconds < self._seconds


class VisionRunner:
    """The vision tower with its embedding cache.

    Args:
        tower: the vision tower.
        cache: of its embeddings.
        single_images: run the tower on one image at a time.
        clock: of the tower's device.

    Attributes:
        num_images: number of images computed.
    """

    def __init__(
        self,
        tower: Phi3VImageEmbedding,
        cache: EmbeddingCache,
        single_images: bool,
        clock: DeviceClock,
    ) -> None:
        self.cache = cache
        self.num_images = 0
        self._tower = tower
        self._pass: _Pass | None = None
        self._single_images = single_images
        self._clock = clock
        self._part_seconds = 0.0
        self._alone: set[bytes] = set()  # images of failed passes, to be retried alone

    def advance(
        self, sequences: list[Sequence], seconds: float
    ) -> list[tuple[Sequence, Exception]]:
        """Compute images of ``sequences``, which take turns, for about ``seconds`` of the device's time.

        Sets the embeddings of finished images; returns sequences with failed images.
        """
        time_slice = _Slice(self._clock, seconds, self._part_seconds)
        rounds = zip_longest(*([(s, image) for image in s.unseen_images] for s in sequences))
        unseen = [each for one_of_each in rounds for each in one_of_each if each is not None]
        wanted = {image.digest: _inputs(image) for _, image in unseen}
        done: dict[bytes, Tensor | Exception] = {}
        for digest in list(wanted):
            if (embedding := self.cache.get(digest)) is not None:
                done[digest] = embedding
                del wanted[digest]
        while wanted:
            results = self._work(wanted, time_slice)
            self._part_seconds = time_slice.part_seconds
            if results is None:
                break
            done |= results
            wanted = {digest: image for digest, image in wanted.items() if digest not in done}
        failures: dict[SequenceKey, tuple[Sequence, Exception]] = {}
        for sequence, image in unseen:
            result = done.get(image.digest)
            if isinstance(result, Exception):
                failures[sequence.key] = (sequence, result)
            elif result is not None:
                image.embed(result)
        return list(failures.values())

    def _work(
        self, wanted: dict[bytes, ImageInputs], time_slice: _Slice
    ) -> dict[bytes, Tensor | Exception] | None:
        """Results of one pass; None if it is not finished within the slice."""
        if self._pass is None or not self._pass.images.keys() & wanted.keys():
            self._pass = self._start(wanted)
        images = self._pass.images
        digests = list(images)
        embeddings: list[Tensor] = []
        try:
            while True:
                next(self._pass.parts)
                if not time_slice.has_time_after():
                    return None
        except StopIteration as end:
            embeddings = end.value
        except torch.AcceleratorError:  # not caused by an image; see StepRunner
            raise
        except Exception as error:
            failed = "1 image" if len(digests) == 1 else f"{len(digests)} images"
            logger.exception("the vision tower failed on %s", failed)
            self._pass = None
            if len(digests) == 1:
                return {digests[0]: error}
            self._alone.update(digests)  # only the faulty image must fail
            return {}
        self._pass = None
        self.num_images += len(digests)
        self._alone.difference_update(digests)
        for digest, embedding in zip(digests, embeddings, strict=True):
            self.cache.put(digest, embedding, images[digest].num_pixels)
        return dict(zip(digests, embeddings, strict=True))

    def _start(self, wanted: dict[bytes, ImageInputs]) -> _Pass:
        """Start a pass of the first image, and of the following ones while their crops fit."""
        images: dict[bytes, ImageInputs] = {}
        crops = 0
        for digest, image in wanted.items():
            crops += image.num_crops
            if images and (crops > self._tower.crops_per_pass or digest in self._alone):
                break
            images[digest] = image
            if self._single_images or digest in self._alone:
                break
        device, dtype = self._tower.device, self._tower.dtype
        pixels = [image.crops(device).to(dtype) for image in images.values()]
        return _Pass(images, self._tower.in_parts(pixels, [i.grid for i in images.values()]))


def _inputs(image: PlacedImage) -> ImageInputs:
    assert image.inputs is not None
    return image.inputs
