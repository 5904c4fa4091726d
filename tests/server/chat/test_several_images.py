"""Several images per prompt, from a request's body to the prompt's tokens.

The oracle follows the rule of the processor that Microsoft published with Phi-3.5-vision: the rendered text
is split at its image tags, each piece is tokenized on its own with its ``<s>``, and image k takes as many
positions ``-k`` as it has embeddings.
"""

from __future__ import annotations

import io
import re
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.demo.random_checkpoint import CLIP_MEAN, CLIP_STD
from model.errors import ContextLengthError, ImageError, TooManyImagesError
from model.phi3v.inputs.image_processing import ImageProcessor
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from server.chat.messages import to_messages
from server.chat.parse import parse_chat
from server.images.decode_pool import decode_image
from server.images.fetching import Fetcher
from server.images.urls import Images
from tests.support.servers.wire import data_url

TAG = re.compile(r"<\|image_(\d+)\|>")
ONE_CROP = ImageProcessor(1, tuple(CLIP_MEAN), tuple(CLIP_STD))  # 313 tokens an image
COLOURS = ["red", "green", "blue", "white", "black"]
WINDOW = 100_000


class Decoder:
    """Decodes without a process of its own, and counts how often."""

    def __init__(self, max_pixels: int = 1_000_000) -> None:
        self.max_pixels = max_pixels
        self.count = 0

    def __call__(self, data: bytes) -> Image.Image:
        self.count += 1
        return Image.frombytes("RGB", *decode_image(data, self.max_pixels))


def picture(colour: str, size: tuple[int, int] = (20, 10)) -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return {"type": "image_url", "image_url": {"url": data_url(file.getvalue())}}


def inputs_of(
    messages: list[dict[str, Any]],
    processor: Processor,
    max_tokens: int = WINDOW,
    decoder: Decoder | None = None,
) -> PromptInputs:
    """What the engine gets for a body with these messages."""
    request = parse_chat({"messages": messages}, "error", 50).request
    most = processor.images_per_prompt
    images = Images(decoder or Decoder(), Fetcher([], 1, 1), lambda _: None, most)  # type: ignore[arg-type]
    converting = to_messages(request.messages, images, 50)
    with pytest.raises(StopIteration) as ended:
        converting.send(None)  # it waits for nothing
    return processor(ended.value.value, max_tokens)


@pytest.fixture(scope="module")
def tokenizer(official: Path) -> Phi3VTokenizer:
    return Phi3VTokenizer(official)


@pytest.fixture(scope="module")
def reference(official: Path) -> PreTrainedTokenizerFast:
    made: Any = PreTrainedTokenizerFast  # whose constructor has no types
    tokenizer: PreTrainedTokenizerFast = made(tokenizer_file=str(official / "tokenizer.json"))
    return tokenizer


def original_ids(prompt: str, sizes: list[int], reference: PreTrainedTokenizerFast) -> list[int]:
    """The original processor's token ids, for images of these numbers of tokens."""
    ids: list[int] = []
    chunks, tags = TAG.split(prompt)[::2], TAG.findall(prompt)
    for number, chunk in enumerate(chunks):
        ids += reference(chunk).input_ids
        if number < len(tags):
            image = int(tags[number])
            ids += [-image] * sizes[image - 1]
    return ids


Turns = list[tuple[str, list[str | dict[str, Any]]]]


def kept_turns(conversation: Turns, most: int) -> Turns:
    """The turns, with the last ``most`` images; beside images, empty texts are none."""
    turns: Turns = []
    left = most
    for role, parts in reversed(conversation):
        seen: list[str | dict[str, Any]] = []
        has_images = any(isinstance(part, dict) for part in parts)
        for is_text, group in groupby(reversed(parts), lambda part: isinstance(part, str)):
            if is_text:
                text = "\n".join(reversed(list(map(str, group))))
                seen += [text] if text or not has_images else []
                continue
            for part in group:
                left -= 1
                seen += [part] if left >= 0 else []
        turns.insert(0, (role, seen[::-1]))
    return turns


def official_prompt(turns: Turns) -> str:
    """The prompt as Microsoft's examples write it: each image is a tag and a line break."""
    prompt, number = "", 0
    for role, group in groupby(turns, lambda turn: turn[0]):
        prompt += f"<|{role}|>\n"
        body = ""
        for part in (part for _, parts in group for part in parts):
            number += isinstance(part, dict)
            body += f"{part}\n" if isinstance(part, str) else f"<|image_{number}|>\n"
        ends_with_text = not body.endswith("|>\n")
        prompt += f"{body[:-1] if ends_with_text else body}<|end|>\n"
    return f"{prompt}<|assistant|>\n"


def body_of(conversation: Turns) -> list[dict[str, Any]]:
    return [
        {
            "role": role,
            "content": [
                {"type": "text", "text": part} if isinstance(part, str) else part for part in parts
            ],
        }
        for role, parts in conversation
    ]


TEXTS = st.text(max_size=12).filter(lambda text: "<" not in text and ">" not in text)
PICTURES = [picture(colour) for colour in COLOURS]


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Turns, int]:
    """User turns with texts and images in any order, answers between some, and how many are kept."""
    most = draw(st.integers(2, 5))
    conversation: Turns = []
    for _ in range(draw(st.integers(1, 4))):
        parts = draw(st.lists(TEXTS | st.sampled_from(PICTURES), min_size=1, max_size=6))
        pictures = [number for number, part in enumerate(parts) if isinstance(part, dict)]
        for number in reversed(pictures[most:]):
            del parts[number]
        conversation.append(("user", parts))
        if draw(st.booleans()):
            conversation.append(("assistant", [draw(TEXTS)]))
    return conversation, most


@settings(max_examples=60)
@given(conversations())
def test_tokens_are_those_of_the_original_processor(
    tokenizer: Phi3VTokenizer,
    reference: PreTrainedTokenizerFast,
    given: tuple[Turns, int],
) -> None:
    conversation, most = given
    inputs = inputs_of(body_of(conversation), Processor(tokenizer, ONE_CROP, most))
    turns = kept_turns(conversation, most)
    expected = original_ids(official_prompt(turns), [313] * most, reference)
    assert inputs.token_ids == expected
    shown = [part for _, parts in turns for part in parts if isinstance(part, dict)]
    drawn = [ONE_CROP(Image.new("RGB", (20, 10), COLOURS[PICTURES.index(p)])) for p in shown]
    for image, expected_image in zip(inputs.decoded, drawn, strict=True):
        assert torch.equal(image.pixels, expected_image.pixels)


def test_the_example_of_microsofts_model_card(
    tokenizer: Phi3VTokenizer, reference: PreTrainedTokenizerFast
) -> None:
    content = [*PICTURES[:4], {"type": "text", "text": "Summarize the deck of slides."}]
    inputs = inputs_of([{"role": "user", "content": content}], Processor(tokenizer, ONE_CROP, 4))
    prompt = (
        "<|user|>\n<|image_1|>\n<|image_2|>\n<|image_3|>\n<|image_4|>\n"
        "Summarize the deck of slides.<|end|>\n<|assistant|>\n"
    )
    assert inputs.token_ids == original_ids(prompt, [313] * 4, reference)


def test_an_empty_piece_is_a_piece(tokenizer: Phi3VTokenizer) -> None:
    """With its ``<s>``, as the original's tokenizer makes of an empty string."""
    assert tokenizer.encode([]) == [1]


def test_system_texts_come_before_the_images_of_their_turn(
    tokenizer: Phi3VTokenizer, reference: PreTrainedTokenizerFast
) -> None:
    content = [*PICTURES[:2], {"type": "text", "text": "Compare."}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": content},
    ]
    inputs = inputs_of(messages, Processor(tokenizer, ONE_CROP, 2))
    prompt = "<|user|>\nBe brief.\n<|image_1|>\n<|image_2|>\nCompare.<|end|>\n<|assistant|>\n"
    assert inputs.token_ids == original_ids(prompt, [313] * 2, reference)


@pytest.mark.parametrize(
    ("num_crops", "together", "alone"), [(16, 4, 16), (4, 4, 4), (2, 1, 1), (9, 4, 9)]
)
def test_images_in_company_have_fewer_crops(
    tokenizer: Phi3VTokenizer, num_crops: int, together: int, alone: int
) -> None:
    """Here of a square image: the largest square number of tiles that is allowed."""
    processor = Processor(
        tokenizer, ImageProcessor(num_crops, tuple(CLIP_MEAN), tuple(CLIP_STD)), 3
    )
    image = picture("red", (60, 60))

    def tiles(*parts: dict[str, Any]) -> list[int]:
        inputs = inputs_of([{"role": "user", "content": list(parts)}], processor)
        assert len(inputs.token_ids) > sum(image.num_tokens for image in inputs.images)
        return [image.num_crops - 1 for image in inputs.decoded]

    assert tiles(image) == [alone]
    assert tiles(image, image) == [together] * 2
    low = {**image, "image_url": {**image["image_url"], "detail": "low"}}
    assert tiles(low, image) == [1, together]


def test_more_images_in_a_message_than_a_prompt_may_have(tokenizer: Phi3VTokenizer) -> None:
    messages = [{"role": "user", "content": PICTURES[:3]}]
    decoder = Decoder()
    with pytest.raises(TooManyImagesError) as refused:
        inputs_of(messages, Processor(tokenizer, ONE_CROP, 2), decoder=decoder)
    assert refused.value.loc == ("messages", 0, "content")
    assert "has 3 images" in refused.value.message
    assert "at most 2 per prompt (--images-per-prompt)" in refused.value.message
    assert decoder.count == 0


@pytest.mark.parametrize(
    ("max_tokens", "decoded", "message"),
    [
        (3 * 313, 0, "at least 9[0-9]{2} tokens"),  # texts and three images do not fit
        (3 * 313 + 100, 1, "at least 1[0-9]{3} tokens"),  # the first has 757
        (3 * 757, 3, "^the prompt has 2[0-9]{3} tokens"),
    ],
)
def test_no_image_is_decoded_for_a_prompt_that_is_too_long(
    tokenizer: Phi3VTokenizer, max_tokens: int, decoded: int, message: str
) -> None:
    four = ImageProcessor(4, tuple(CLIP_MEAN), tuple(CLIP_STD))
    messages = [{"role": "user", "content": [picture(colour, (9, 9)) for colour in COLOURS[:3]]}]
    decoder = Decoder()
    with pytest.raises(ContextLengthError, match=message):
        inputs_of(messages, Processor(tokenizer, four, 3), max_tokens, decoder)
    assert decoder.count == decoded


def test_pixels_count_together(tokenizer: Phi3VTokenizer) -> None:
    content = [picture(colour, (20, 20)) for colour in COLOURS[:3]]
    messages = [{"role": "user", "content": content}]
    processor = Processor(tokenizer, ONE_CROP, 3)
    assert len(inputs_of(messages, processor, decoder=Decoder(1200)).images) == 3
    with pytest.raises(ImageError, match="1200 pixels or more together; the limit is 1199") as over:
        inputs_of(messages, processor, decoder=Decoder(1199))
    assert over.value.loc == ("messages", 0, "content", 2, "image_url", "url")
    # Images that are not kept do not count.
    alone = Processor(tokenizer, ONE_CROP, 1)
    turns = [{"role": "user", "content": [part]} for part in content]
    assert len(inputs_of(turns, alone, decoder=Decoder(400)).images) == 1


def test_one_image_per_prompt_comes_first_in_its_turn(
    tokenizer: Phi3VTokenizer, reference: PreTrainedTokenizerFast
) -> None:
    """The default: wherever the message puts it; with several per prompt it stays there."""
    content: list[Any] = [
        {"type": "text", "text": "Before"},
        PICTURES[0],
        {"type": "text", "text": "After"},
    ]
    messages = [{"role": "user", "content": content}]
    for most, lines in ((1, "<|image_1|>\nBefore\nAfter"), (2, "Before\n<|image_1|>\nAfter")):
        inputs = inputs_of(messages, Processor(tokenizer, ONE_CROP, most))
        prompt = f"<|user|>\n{lines}<|end|>\n<|assistant|>\n"
        assert inputs.token_ids == original_ids(prompt, [313], reference)
