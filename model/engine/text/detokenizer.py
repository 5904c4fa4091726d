"""Token ids to text, piece by piece: never half a character, never part of a stop string.

The pieces of one answer add up to what the tokenizer's own decoder makes of all its tokens, cut at
the first stop string. One exception: bytes that are complete characters are given out at once, even
if a stray byte follows, where the tokenizers library would then blank them as well.
"""

from __future__ import annotations

from model.phi3v.inputs.tokenizer import Phi3VTokenizer

REPLACEMENT = "\ufffd"


class Detokenizer:
    """The text of one answer.

    Args:
        tokenizer: of the checkpoint.
        stop: strings that end the answer.
        partial: what stands at the end for each byte of an incomplete character.
    """

    def __init__(
        self, tokenizer: Phi3VTokenizer, stop: tuple[str, ...], partial: str = REPLACEMENT
    ) -> None:
        self._tokenizer = tokenizer
        self._stop = stop
        self._partial = partial
        self._bytes = b""  # byte tokens that are not yet characters
        self._held = ""  # text that may be the start of a stop string
        self._at_start = True  # the decoder drops one space at the start of an answer

    def add(self, token_id: int) -> tuple[str, bool]:
        """Take a token; returns the text that is now certain, and whether a stop string came."""
        if self._tokenizer.is_byte(token_id):
            return self._release(self._take_byte(self._tokenizer.token_bytes(token_id)))
        text = self._tokenizer.token_bytes(token_id).decode()
        return self._release(self._end_bytes() + text)

    def finish(self) -> tuple[str, bool]:
        """The rest: incomplete characters as U+FFFD, and text held back for a stop string.

        Those characters may themselves complete a stop string; then the flag is True.
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
        """A run of byte tokens ended without forming characters: one mark for each byte."""
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
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stop), default=0)
        for length in range(min(longest - 1, len(self._held)), 0, -1):
            end = self._held[-length:]
            if any(string.startswith(end) for string in self._stop):
                return length
        return 0
