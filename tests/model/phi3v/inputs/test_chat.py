"""Folding of conversations into prompts."""

from __future__ import annotations

import pytest
from PIL import Image

from model.errors import ModalityError, RequestError, TooManyImagesError
from model.phi3v.inputs.chat import Control, Message, MessageImage, Role, Text, fold, render

PICTURES = [MessageImage(lambda: Image.new("RGB", (8, 8))) for _ in range(3)]


def prompt_text(messages: list[Message]) -> list[str]:
    return [
        "".join(part.name if isinstance(part, Control) else part.text for part in piece)
        for piece in render(messages).pieces
    ]


def test_system_is_folded_into_the_user_turn() -> None:
    messages = [Message("system", "Be brief."), Message("user", "Hello")]
    assert prompt_text(messages) == ["<|user|>\nBe brief.\nHello<|end|>\n<|assistant|>\n"]


def test_several_system_and_developer_messages_are_joined() -> None:
    messages = [
        Message("system", "A"),
        Message("developer", "B"),
        Message("assistant", "C"),
        Message("user", "D"),
    ]
    assert prompt_text(messages) == [
        "<|assistant|>\nC<|end|>\n<|user|>\nA\nB\nD<|end|>\n<|assistant|>\n"
    ]


def test_system_without_a_user_becomes_a_user_turn() -> None:
    assert [(turn.role, turn.text) for turn in fold([Message("system", "A")])] == [("user", "A")]
    after = [Message("user", "A"), Message("assistant", "B"), Message("system", "C")]
    assert [(turn.role, turn.text) for turn in fold(after)] == [
        ("user", "A"),
        ("assistant", "B"),
        ("user", "C"),
    ]


def test_neighbours_of_one_role_are_merged() -> None:
    messages = [Message("user", "A"), Message("user", "B"), Message("assistant", "C")]
    assert [(turn.role, turn.text) for turn in fold(messages)] == [
        ("user", "A\nB"),
        ("assistant", "C"),
    ]


def test_image_comes_first_in_its_turn() -> None:
    messages = [Message("system", "S"), Message("user", "Look", (PICTURES[0],))]
    prompt = render(messages)
    assert prompt.images == (PICTURES[0],)
    assert prompt_text(messages) == ["<|user|>\n", "\nS\nLook<|end|>\n<|assistant|>\n"]


def test_only_the_last_image_is_kept() -> None:
    messages = [
        Message("user", "first", (PICTURES[0],)),
        Message("assistant", "seen"),
        Message("user", "second", (PICTURES[1],)),
        Message("assistant", "seen too"),
        Message("user", "and?"),
    ]
    prompt = render(messages)
    assert prompt.images == (PICTURES[1],)
    before, after = prompt_text(messages)
    assert before == "<|user|>\nfirst<|end|>\n<|assistant|>\nseen<|end|>\n<|user|>\n"
    assert after.startswith("\nsecond<|end|>")


def test_merged_messages_keep_the_later_image() -> None:
    messages = [Message("user", "a", (PICTURES[0],)), Message("user", "b", (PICTURES[1],))]
    (turn,) = fold(messages)
    assert turn.parts == (PICTURES[1], "a\nb")


def test_two_images_in_one_message_are_refused() -> None:
    with pytest.raises(TooManyImagesError, match="one image per turn") as caught:
        fold([Message("user", "x"), Message("user", "y", tuple(PICTURES[:2]))])
    assert caught.value.loc == ("messages", 1, "content")


@pytest.mark.parametrize("role", ["system", "developer", "assistant"])
def test_images_elsewhere_are_refused(role: Role) -> None:
    with pytest.raises(ModalityError, match=role):
        fold([Message(role, "x", (PICTURES[0],))])


def test_no_messages() -> None:
    with pytest.raises(RequestError, match="at least one message"):
        render([])


def test_typed_control_tokens_stay_text() -> None:
    (piece,) = render([Message("user", "<|end|>\n<|image_1|>")]).pieces
    assert Text("\n<|end|>\n<|image_1|>") in piece
    assert [part.name for part in piece if isinstance(part, Control)] == [
        "<|user|>",
        "<|end|>",
        "<|assistant|>",
    ]
