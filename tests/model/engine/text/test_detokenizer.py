"""Text out of tokens: whole characters, stop strings across token borders."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.engine.text.detokenizer import Detokenizer
from model.phi3v.inputs.chat import Text
from model.phi3v.inputs.tokenizer import WORD_BOUNDARY, Phi3VTokenizer


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Phi3VTokenizer:
    return Phi3VTokenizer(tiny)


@pytest.fixture(scope="module")
def reference(tiny: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tiny / "tokenizer.json"))


def run(tokenizer: Phi3VTokenizer, ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    """The pieces, up to a stop string or the end."""
    detokenizer = Detokenizer(tokenizer, stop)
    pieces = []
    for token_id in ids:
        text, stopped = detokenizer.add(token_id)
        pieces.append(text)
        if stopped:
            return pieces
    return [*pieces, detokenizer.finish()[0]]


def ids_of(tokenizer: Phi3VTokenizer, text: str) -> list[int]:
    return tokenizer.encode([Text(text)])[1:]


@given(st.text(max_size=60))
def test_pieces_add_up_to_the_text(tokenizer: Phi3VTokenizer, text: str) -> None:
    pieces = run(tokenizer, ids_of(tokenizer, text))
    # The mark that stands for a space inside tokens cannot be told from one.
    assert "".join(pieces) == text.replace(WORD_BOUNDARY, " ")


# Words, and bytes that are part of no character. (Of bytes that form a character and then go on
# wrongly we keep the character; the library blanks the whole run.)
TOKENS = st.one_of(st.integers(300, 32063), st.integers(0xF8 + 3, 0xFF + 3))


@given(st.lists(TOKENS, max_size=30))
def test_any_tokens_decode_as_the_library_decodes(
    tokenizer: Phi3VTokenizer, reference: Tokenizer, ids: list[int]
) -> None:
    whole = reference.decode([i for i in ids if i < 32045], skip_special_tokens=True)
    assert "".join(run(tokenizer, ids)) == whole


def test_a_character_in_bytes_comes_whole(tokenizer: Phi3VTokenizer) -> None:
    ids = [byte + 3 for byte in "é日😀".encode()]
    pieces = run(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["é", "日", "😀"]


def test_broken_bytes_become_replacement_characters(tokenizer: Phi3VTokenizer) -> None:
    (word,) = ids_of(tokenizer, "ab")[:1]
    assert "".join(run(tokenizer, [0xE3 + 3, 0x81 + 3, word])).startswith("\ufffd\ufffd")
    assert run(tokenizer, [0xF0 + 3]) == ["", "\ufffd"]


def test_special_tokens_and_unused_ids_add_nothing(tokenizer: Phi3VTokenizer) -> None:
    assert "".join(run(tokenizer, [32010, 32007, 1, 32050, 32063])) == ""


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two three", ("two",), "one "),
        ("one two three", ("two", "e t"), "on"),
        ("one two three", ("ree",), "one two th"),
        ("one two three", ("thx", "zzz"), "one two three"),
        ("aaab", ("aab",), "a"),
        ("日本語です", ("語",), "日本"),
        ("one", ("one",), ""),
    ],
)
def test_stop_strings(
    tokenizer: Phi3VTokenizer, text: str, stop: tuple[str, ...], expected: str
) -> None:
    assert "".join(run(tokenizer, ids_of(tokenizer, text), stop)) == expected


@given(st.text("abc ", max_size=40), st.lists(st.text("abc ", min_size=1, max_size=4), max_size=3))
def test_stop_strings_cut_at_the_first_match(
    tokenizer: Phi3VTokenizer, text: str, stops: list[str]
) -> None:
    detokenizer = Detokenizer(tokenizer, tuple(stops))
    streamed, stopped = "", False
    for token_id in ids_of(tokenizer, text):
        piece, stopped = detokenizer.add(token_id)
        streamed += piece
        if stopped:
            break
    if not stopped:
        streamed += detokenizer.finish()[0]
    assert text.startswith(streamed)
    assert not [stop for stop in stops if stop in streamed]
    if stopped:
        assert any(text[len(streamed) :].startswith(stop) for stop in stops)
    else:
        assert streamed == text
