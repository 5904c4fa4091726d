"""Writes our own tokenizer in the official format: byte-fallback BPE with Phi-3's control tokens.

Ids are laid out as in the official tokenizer (``<s>`` 1, bytes from 3, control tokens from 32000), and
every id has a different text. By default the vocabulary is synthetic: all pairs and triples of
lowercase letters, with and without a leading space.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from string import ascii_lowercase, printable
from typing import Any

from model.phi3v.inputs.tokenizer import WORD_BOUNDARY

Words = tuple[list[str], list[list[str]]]  # characters, and pairs of pieces to merge, in order
TEXT_VOCAB_SIZE = 32000
VOCAB_SIZE = 32064  # rows of the embedding; the last ones are unused

CONTROL_TOKENS = [
    "<|endoftext|>",
    "<|assistant|>",
    *(f"<|placeholder{i}|>" for i in range(1, 5)),
    "<|system|>",
    "<|end|>",
    *(f"<|placeholder{i}|>" for i in range(5, 7)),
    "<|user|>",
    *(f"<|placeholder{i}|>" for i in range(7, 40)),
    "<|image|>",
]
# As in the official files, only these four do not strip the whitespace after them.
KEEPS_SPACE_AFTER = {"<|endoftext|>", "<|system|>", "<|end|>", "<|user|>"}
# With <s>: the official template leaves it to the tokenizer, but most programs then omit it.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def write_tokenizer(
    directory: Path, chat_template: bool = False, words: Words | None = None
) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and ``special_tokens_map.json``.

    Args:
        directory: must exist.
        chat_template: include one, for programs without their own.
        words: a learned vocabulary; the control tokens follow it.
    """
    vocab, merges = _vocabulary(words or _made_words())
    added = list(_added_tokens(len(vocab)))
    special = {
        name: {"content": content, **_flags(rstrip=False)}
        for name, content in {
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
        }.items()
    }
    config: dict[str, Any] = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added
        },
        **{name: token["content"] for name, token in special.items()},
        "clean_up_tokenization_spaces": False,
        "legacy": False,
        "model_max_length": 131072,
        "padding_side": "right",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if chat_template:
        config["chat_template"] = CHAT_TEMPLATE
    _write(directory / "tokenizer.json", _tokenizer(added, vocab, merges))
    _write(directory / "tokenizer_config.json", config)
    _write(directory / "special_tokens_map.json", special)


def _tokenizer(
    added: list[dict[str, Any]], vocab: dict[str, int], merges: list[list[str]]
) -> dict[str, Any]:
    begin = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    pair = [{"SpecialToken": {"id": "<s>", "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": WORD_BOUNDARY},
                {"type": "Replace", "pattern": {"String": " "}, "content": WORD_BOUNDARY},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, text],
            "pair": [begin, text, *pair],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": WORD_BOUNDARY}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _vocabulary(words: Words) -> tuple[dict[str, int], list[list[str]]]:
    """The vocabulary (``<unk>``, ``<s>``, ``</s>``, bytes, characters, merged pieces) and the merges."""
    characters, merges = words
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += [*characters, *(left + right for left, right in merges)]
    return {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, merges


def _made_words() -> Words:
    """Characters and merges that fill ``TEXT_VOCAB_SIZE`` exactly."""
    characters = [WORD_BOUNDARY, *(c for c in printable if not c.isspace())]
    count = TEXT_VOCAB_SIZE - 3 - 256 - len(characters)
    return characters, [list(pair) for pair in islice(_merges(), count)]


def _merges() -> Iterator[tuple[str, str]]:
    yield from ((WORD_BOUNDARY, letter) for letter in ascii_lowercase)
    yield from product(ascii_lowercase, repeat=2)
    yield from ((WORD_BOUNDARY + a, b) for a, b in product(ascii_lowercase, repeat=2))
    yield from ((a + b, c) for a, b, c in product(ascii_lowercase, repeat=3))
    yield from ((WORD_BOUNDARY + a + b, c) for a, b, c in product(ascii_lowercase, repeat=3))


def _added_tokens(first: int) -> Iterator[dict[str, Any]]:
    yield {"id": 0, "content": "<unk>", **_flags(rstrip=False)}
    yield {"id": 1, "content": "<s>", **_flags(rstrip=False)}
    yield {"id": 2, "content": "</s>", **_flags(rstrip=True, special=False)}
    for i, content in enumerate(CONTROL_TOKENS):
        flags = _flags(rstrip=content not in KEEPS_SPACE_AFTER)
        yield {"id": first + i, "content": content, **flags}


def _flags(*, rstrip: bool, special: bool = True) -> dict[str, bool]:
    return {
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
