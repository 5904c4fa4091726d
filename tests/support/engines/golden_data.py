"""The golden cases as messages and as prompt inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.image_processing import ImageProcessor
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.inputs.tokenizer import Phi3VTokenizer

START, END = "<|user|>\n", "<|end|>\n<|assistant|>\n"
IMAGE = "<|image_1|>\n"
CASES = [
    "text_short",
    "text_system_folded",
    "image_crops1",
    "image_crops4_tall",
    "image_crops16_long",
    "text_long",
    "text_crossing",
]


def image_processor(golden: Path, num_crops: int) -> ImageProcessor:
    config = json.loads((golden / "tiny-phi3v" / "preprocessor_config.json").read_text())
    return ImageProcessor(num_crops, tuple(config["image_mean"]), tuple(config["image_std"]))


def user_message(case: dict[str, Any], golden: Path) -> Message:
    """The user's message that renders to the case's prompt."""
    assert case["prompt"].startswith(START)
    assert case["prompt"].endswith(END)
    text = case["prompt"][len(START) : -len(END)]
    if case["image"] is None:
        return Message("user", text)
    picture = MessageImage(lambda: Image.open(golden / "images" / case["image"]))
    return Message("user", text.removeprefix(IMAGE), (picture,))


def golden_inputs(case: dict[str, Any], golden: Path) -> PromptInputs:
    processor = Processor(
        Phi3VTokenizer(golden / "tiny-phi3v"), image_processor(golden, case["num_crops"])
    )
    return processor([user_message(case, golden)], max_tokens=8191)
