"""Incremental detokenization: never returns part of a character or of a stop string.

The pieces of an answer add up to the text that the tokenizer decodes from all its tokens, cut at the
first stop string. One exception: complete characters made of byte tokens are returned at once, while
the tokenizers library replaces them if an invalid byte follows.
"""

from __future__ import annotations

from model.phi3v.inputs.tokenizer import Phi3VTokenizer

REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one answer.

    Args:
        tokenizer: of the checkpoint.
        stop: strings that end the answer.
        partial: replacement for each byte of an incomplete character.
        skip_special: leave control tokens out of the text.
    """

    def __init__(
        self,
        tokenizer: Phi3VTokenizer,
        stop: tuple[str, ...],
        partial: str = REPLACEMENT,
        skip_special: bool = True,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._partial = partial
        self._skip_special = skip_special
        self._bytes = b""  # byte tokens of an incomplete character
        self._held = ""  # text that may be the start of a stop string
        self._at_start = True  # the decoder drops one space at the start of an answer

    def add(self, token_id: int) -> tuple[str, bool]:
        """Add a token; returns the text that is now final, and whether a stop string was found."""
        if self._tokenizer.is_byte(token_id):
            return self._release(self._take_byte(self._tokenizer.token_bytes(token_id)))
        text = self._tokenizer.token_bytes(token_id).decode()
        if not (text or self._skip_special):
            text = self._tokenizer.token_text(token_id)
        return self._release(self._end_bytes() + text)

    def finish(self) -> tuple[str, bool]:
        """Return the rest: replacements of incomplete characters, and held back text.

        The flag is True if the replacements complete a stop string.
        """
        text, stopped = self._release(self._end_bytes())
        if stopped:
            return text, True
        rest, self._held = self._held, ""
        return text + rest, False

    def _take_byte(self, byte: bytes) -> str:
        self._bytes += byte
        try:
            text = self._bytes.decode()
        except UnicodeDecodeError:
            return ""
        self._bytes = b""
        return text

    def _end_bytes(self) -> str:
        """Replace bytes that form no character, one replacement per byte."""
        text = self._partial * len(self._bytes)
        self._bytes = b""
        return text

    def _release(self, text: str) -> tuple[str, bool]:
        if self._at_start and text:
            text = text.removeprefix(" ")
            self._at_start = False
        self._held += text
        found = [(at, string) for string in self._stop if (at := self._held.find(string)) >= 0]
        if found:
            at, _ = min(found)
            certain, self._held = self._held[:at], ""
            return certain, True
        keep = self._possible_stop()
        cut = len(self._held) - keep
        certain, self._held = self._held[:cut], self._held[cut:]
        return certain, False

    def _possible_stop(self) -> int:
        """Length of the longest suffix of the held text that starts a stop string."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(string.startswith(end) for string in self._stop):
                return length
        return 0
