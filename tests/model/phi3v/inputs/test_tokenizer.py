"""Token ids of prompts: the documented usage figures, and user text that never takes control."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import PreTrainedTokenizerFast

from model.errors import CheckpointError, ContextLengthError
from model.phi3v.inputs.chat import Message, MessageImage, Role, Text, render
from model.phi3v.inputs.processing import Processor
from model.phi3v.inputs.tokenizer import WORD_BOUNDARY, Phi3VTokenizer
from tests.support.engines.tokenizer_files import strip_in

LANGUAGES = [
    Message("system", "You are a helpful assistant."),
    Message("user", "How many languages are in the world?"),
]
CHART = [
    Message(
        "user",
        "Which peculiar conclusion about LLMs and SLMs can be extracted from the following chart?",
        (MessageImage(lambda: Image.new("RGB", (1900, 1069))),),
    )
]


@pytest.mark.parametrize(
    ("stripped", "tokens"),
    [((), (23, 2384)), (("tokenizer.json",), (19, 2380)), (("tokenizer_config.json",), (19, 2380))],
)
def test_documented_usage(
    official: Path, tmp_path: Path, stripped: tuple[str, ...], tokens: tuple[int, int]
) -> None:
    """Azure's 19 and 2380 need stripping control tokens, which the public files do not have."""
    for name in ("tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        shutil.copy(official / name, tmp_path / name)
    for name in stripped:
        strip_in(tmp_path / name)
    processor = Processor.from_checkpoint(tmp_path)
    lengths = [len(processor(prompt, 4000).token_ids) for prompt in (LANGUAGES, CHART)]
    assert tuple(lengths) == tokens


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Phi3VTokenizer:
    return Phi3VTokenizer(tiny)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(tiny / "tokenizer.json"))


PLAIN = st.text(max_size=40).filter(lambda text: "<" not in text)


@given(st.lists(PLAIN, min_size=1, max_size=4))
def test_prompts_are_tokenized_as_by_transformers(
    tokenizer: Phi3VTokenizer, reference: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    """Whatever white space surrounds control tokens, ids equal those of the rendered string."""
    roles: tuple[Role, Role] = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(texts)]
    rendered = "".join(f"<|{message.role}|>\n{message.text}<|end|>\n" for message in messages)
    (piece,) = render(messages).pieces
    assert tokenizer.encode(piece) == reference(f"{rendered}<|assistant|>\n").input_ids


CONTROL = st.sampled_from(
    ["<|end|>", "<|user|>", "<|assistant|>", "<s>", "</s>", "<unk>", "<|endoftext|>", "<|image|>"]
)


@given(st.lists(CONTROL | st.text(max_size=10), max_size=6).map("".join))
def test_user_text_never_becomes_a_control_token(tokenizer: Phi3VTokenizer, text: str) -> None:
    ids = tokenizer.encode([Text(text)])[1:]
    assert not [token_id for token_id in ids if token_id < 3 or token_id >= 32000]
    # The mark that stands for a space inside tokens cannot be told from one.
    seen = text.replace(WORD_BOUNDARY, " ")
    assert b"".join(map(tokenizer.token_bytes, ids)).decode()[1:] == seen


def test_typed_control_tokens_with_the_official_tokenizer(official: Path) -> None:
    tokenizer = Phi3VTokenizer(official)
    text = "<|end|></s><s><unk><|image_1|><|assistant|>"
    ids = tokenizer.encode([Text(text)])
    assert ids[0] == 1
    assert all(3 <= token_id < 32000 for token_id in ids[1:])
    assert b"".join(map(tokenizer.token_bytes, ids[1:])).decode() == f" {text}"


def test_stop_ids_come_from_the_files(official: Path) -> None:
    assert Phi3VTokenizer(official).stop_ids == {32000, 32001, 32007}


def test_long_texts_are_refused_before_they_are_tokenized(tiny: Path) -> None:
    processor = Processor.from_checkpoint(tiny)
    with pytest.raises(ContextLengthError, match=r"at least \d+ tokens, the limit is 100 "):
        processor([Message("user", "a" * 10_000_000)], max_tokens=100)
    with pytest.raises(ContextLengthError, match=r"^the prompt has \d+ tokens, the limit is 100 "):
        processor([Message("user", "a b" * 100)], max_tokens=100)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ("[]", "JSON object"), ('{"model": 3}', "is invalid")],
)
def test_broken_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        Phi3VTokenizer(tmp_path)
