"""The tokenizer and stop ids of a checkpoint, from its own files.

Control tokens are inserted by name. Text is encoded with a second tokenizer without added tokens, so
that ``<|end|>`` or ``</s>`` in user input is plain text. The checkpoint's flags decide whether control
tokens strip the whitespace next to them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.errors import CheckpointError
from model.phi3v.checkpoint import first_line, read_json
from model.phi3v.inputs.chat import ASSISTANT, END, USER, Control, Piece

# Unicode's White_Space, which the tokenizers library strips. Python's str.strip() also strips the
# separators U+001C to U+001F.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
WORD_BOUNDARY = "\u2581"  # SentencePiece's mark for a space
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Phi3VTokenizer:
    """The tokenizer of a Phi-3-vision checkpoint.

    Args:
        directory: checkpoint with ``tokenizer.json`` and, usually, ``tokenizer_config.json``.

    Raises:
        CheckpointError: a file is missing or invalid, or lacks Phi-3's control tokens.
    """

    def __init__(self, directory: Path) -> None:
        spec = read_json(directory / "tokenizer.json")
        config_path = directory / "tokenizer_config.json"
        config = read_json(config_path) if config_path.exists() else {}
        try:
            full = Tokenizer.from_str(json.dumps(spec))
            plain = {**spec, "added_tokens": [], "post_processor": None}
            self._text = Tokenizer.from_str(json.dumps(plain))
            self._inner = Tokenizer.from_str(json.dumps(_without_prefix(plain)))
        except Exception as error:
            raise CheckpointError(
                f"{directory}/tokenizer.json is invalid: {first_line(error)}"
            ) from error
        try:
            self._added = _added_tokens(spec, config)
        except (AttributeError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"the added tokens of {directory}/tokenizer.json or tokenizer_config.json are invalid: "
                f"{first_line(error)}"
            ) from error
        missing = [name for name in (USER, ASSISTANT, END) if name not in self._added]
        if missing:
            raise CheckpointError(
                f"{directory}/tokenizer.json lacks the tokens {', '.join(missing)}"
            )
        self._ids = {name: int(token["id"]) for name, token in self._added.items()}
        self._special_ids = {
            self._ids[name] for name, token in self._added.items() if token["special"]
        }
        # The post-processor's prefix of each piece: `<s>` in the official files.
        self._prefix_ids: list[int] = full.encode("", add_special_tokens=True).ids
        self._pieces = {i: piece for piece, i in full.get_vocab(with_added_tokens=True).items()}
        self._bytes = {
            i: _piece_bytes(piece)
            for i, piece in self._pieces.items()
            if i not in self._special_ids
        }
        self._byte_ids = {i for i, piece in self._pieces.items() if BYTE_PIECE.fullmatch(piece)}
        self.longest_piece = max(map(len, self._pieces.values()))
        eos = config.get("eos_token") or ""
        eos_name = eos["content"] if isinstance(eos, dict) else eos
        self.stop_ids = frozenset(
            self._ids[name] for name in (END, ASSISTANT, eos_name) if name in self._ids
        )

    def encode(self, piece: Piece, prefix: bool = True) -> list[int]:
        """Token ids of a piece, by default with the prefix (``<s>``)."""
        ids = list(self._prefix_ids) if prefix else []
        for i, part in enumerate(piece):
            if isinstance(part, Control):
                ids.append(self._ids[part.name])
                continue
            text = part.text
            if i > 0 and self._flag(piece[i - 1], "rstrip"):
                text = text.lstrip(WHITE_SPACE)
            if i + 1 < len(piece) and self._flag(piece[i + 1], "lstrip"):
                text = text.rstrip(WHITE_SPACE)
            if text:
                ids += self._text.encode(text).ids
        return ids

    def encode_inner(self, text: str) -> list[int]:
        """Token ids of text that continues other text, without a space prepended."""
        ids: list[int] = self._inner.encode(text).ids
        return ids

    def inner_json(self) -> str:
        """The tokenizer of ``encode_inner``, for ``tokenizers.Tokenizer.from_str``."""
        text: str = self._inner.to_str()
        return text

    @property
    def highest_id(self) -> int:
        """The highest token id; the embedding must have a row for it."""
        return max(self._pieces)

    def _flag(self, part: object, flag: str) -> bool:
        return isinstance(part, Control) and bool(self._added[part.name][flag])

    def token_bytes(self, token_id: int) -> bytes:
        """The token's text in UTF-8; a byte token may be part of a character.

        Empty for special tokens and ids beyond the vocabulary.
        """
        return self._bytes.get(token_id, b"")

    def special_id(self, text: str) -> int | None:
        """Id of the control token named ``text``, if there is one."""
        token_id = self._ids.get(text)
        return token_id if token_id in self._special_ids else None

    def is_byte(self, token_id: int) -> bool:
        """Whether the token is a single raw byte."""
        return token_id in self._byte_ids

    def token_text(self, token_id: int) -> str:
        """The token's displayable text; special tokens by name."""
        if token_id in self._special_ids:
            return self._pieces[token_id]
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def describe(self, token_id: int) -> tuple[str, bytes]:
        """The token's displayable text and its bytes; those of its name if it has no text."""
        text = self.token_text(token_id)
        return text, self.token_bytes(token_id) or text.encode()


def _piece_bytes(piece: str) -> bytes:
    if match := BYTE_PIECE.fullmatch(piece):
        return bytes.fromhex(match[1])
    return piece.replace(WORD_BOUNDARY, " ").encode()


def _without_prefix(spec: Any) -> Any:
    """The tokenizer's spec without the steps that prepend a space."""
    if isinstance(spec, list):
        steps = [_without_prefix(step) for step in spec]
        return [step for step in steps if not (isinstance(step, dict) and _is_prepend(step))]
    if not isinstance(spec, dict):
        return spec
    changed = {
        key: value if key == "model" else _without_prefix(value) for key, value in spec.items()
    }
    if changed.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
    if isinstance(spec.get("normalizer"), dict) and _is_prepend(spec["normalizer"]):
        changed["normalizer"] = None
    return changed


def _is_prepend(step: dict[str, Any]) -> bool:
    return step.get("type") == "Prepend"


def _added_tokens(spec: dict[str, Any], config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Added tokens by name. A strip flag may be set in either file, because people edit only one."""
    decoder = config.get("added_tokens_decoder") or {}
    overrides = {token["content"]: token for token in decoder.values()}
    return {
        token["content"]: {
            **token,
            **{
                flag: token.get(flag, False) or overrides.get(token["content"], {}).get(flag, False)
                for flag in ("lstrip", "rstrip")
            },
        }
        for token in spec.get("added_tokens", [])
    }
