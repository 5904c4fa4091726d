"""A grammar's processes: one compiles it, and its child follows sequences."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import re
import socket
from array import array
from collections.abc import Iterator
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from tokenizers import Tokenizer

from model.confined import confine, limit_cpu
from model.confined.forking import fork
from model.confined.limits import resident_memory
from model.confined.zygote import Work
from model.engine.grammars.protocol import (
    COMPILE_SECONDS,
    COUNT,
    DROP,
    HEAD,
    MEMORY,
    MOST_FORCED,
    NOBODY,
    STEP_SECONDS,
    mask_bytes,
)
from model.engine.grammars.source import BrokenGrammarError, culprit, to_llguidance

PROCESS_BYTES = 4 << 20  # of a worker without its grammar
LONGEST_REASON = 1000  # characters
NOTHING_MATCHES = "NoExtensionBias"  # what llguidance says then
EXCERPT = re.compile(r"\n *[0-9]+ \| ")  # a line of the grammar
MOST_AT_ONCE = 20  # tokens
# Limits of llguidance per grammar: about 10 ms to start and 3 ms per token.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 50_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Words:
    """A checkpoint's vocabulary in llguidance's format.

    Args:
        words: bytes of each token; empty if it adds no text.
        stop_ids: tokens that end an answer.
        inner: the tokenizer for continued text, as JSON; see ``Phi3VTokenizer.inner_json``.
    """

    def __init__(self, words: list[bytes], stop_ids: list[int], inner: str) -> None:
        self.bos_token_id = None
        self.eos_token_id = stop_ids[0]
        # llguidance's convention: a name that starts with 0xFF is not text.
        self.tokens = [word or b"\xff<%d>" % i for i, word in enumerate(words)]
        self.special_token_ids = [i for i, word in enumerate(words) if not word]
        self._inner = Tokenizer.from_str(inner)

    def __call__(self, text: bytes) -> list[int]:
        """Token ids of text that continues other text."""
        ids: list[int] = self._inner.encode(text.decode()).ids
        return ids


def prepare(words: list[bytes], stop_ids: list[int], inner: str) -> Work:
    """Return the work of a worker; called once, before forking. For the arguments see ``Words``."""
    wrapped = TokenizerWrapper(Words(words, stop_ids, inner))
    tokenizer = LLTokenizer(wrapped, len(words), stop_ids)
    return partial(_compile_and_begin, tokenizer, mask_bytes(len(words)))


def _compile_and_begin(tokenizer: LLTokenizer, num_bytes: int, server: socket.socket) -> None:
    """Compile the grammar that the server sends, then fork children that follow sequences."""
    confine(MEMORY)
    limit_cpu(COMPILE_SECONDS)
    before = resident_memory()
    connection = Connection(server.fileno())
    spec = json.loads(connection.recv_bytes())
    try:
        grammar = to_llguidance(spec["kind"], spec["source"])
    except BrokenGrammarError as error:
        _refuse(connection, str(error))
        return
    matcher = _matcher(tokenizer, grammar)
    if matcher.is_error():
        _refuse(connection, matcher.get_error())
        if spec["kind"] in ("json_schema", "calls"):
            source = json.loads(spec["source"])
            place = culprit(source, lambda part: _matcher(tokenizer, part).is_error())
            connection.send_bytes(json.dumps({"place": place}).encode())
        return
    first = matcher.deep_copy()  # some grammars exceed limits only here
    first.consume_tokens(first.compute_ff_tokens())
    first.compute_bitmask()
    if first.is_error():
        _refuse(connection, first.get_error())
        return
    taken = max(0, resident_memory() - before) + PROCESS_BYTES
    connection.send_bytes(json.dumps({"bytes": taken}).encode())
    while True:
        command, descriptors, _, _ = socket.recv_fds(server, 1, 2)
        if not command:
            return
        limit_cpu(COMPILE_SECONDS)
        if descriptors:
            engine, shared = descriptors

            def follow(engine: socket.socket, shared: int = shared) -> None:
                _Follower(matcher, num_bytes, shared)(engine)

            fork(socket.socket(fileno=engine), server, follow)
            os.close(shared)


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def _refuse(connection: Connection, told: str) -> None:
    """Send llguidance's error without the copy of the grammar that it contains."""
    reason = EXCERPT.split(told)[0].replace("<non-verbose/>", "").strip()
    reason = reason.rpartition("JSON schema: ")[2]
    if reason == NOTHING_MATCHES:
        reason = "no text matches it"
    if len(reason) > LONGEST_REASON:
        reason = reason[:LONGEST_REASON] + "..."
    connection.send_bytes(json.dumps({"error": reason}).encode())


class _Follower:
    """Follows sequences.

    Args:
        start: a matcher at the start of the grammar.
        num_bytes: size of a mask.
        shared: descriptor of the file shared with the engine.
    """

    def __init__(self, start: LLMatcher, num_bytes: int, shared: int) -> None:
        self._start = start
        self._num_bytes = num_bytes
        self._matchers: dict[int, LLMatcher] = {}
        area = mmap.mmap(shared, 0)
        self._busy_with = memoryview(area).cast("i")
        self._masks = ctypes.addressof(ctypes.c_char.from_buffer(area, num_bytes))

    def __call__(self, server: socket.socket) -> None:
        """Reply to batches until the engine closes the connection."""
        while count := server.recv(COUNT.size, socket.MSG_WAITALL):
            batch = array("i")
            batch.frombytes(server.recv(4 * COUNT.unpack(count)[0], socket.MSG_WAITALL))
            go_on: list[int] = []
            server.sendall(b"".join(self._replies(batch, go_on)))
            server.sendall(b"".join(map(self._mask, go_on)))
            self._busy_with[0] = NOBODY

    def _replies(self, batch: array[int], go_on: list[int]) -> Iterator[bytes]:
        """Advance the sequences of a batch; appends those that need a mask to ``go_on``."""
        at = 0
        while at < len(batch):
            number, count = batch[at : at + 2]
            tokens = batch[at + 2 : at + 2 + max(count, 0)].tolist()
            at += 2 + len(tokens)
            if count == DROP:
                self._matchers.pop(number, None)
                continue
            self._begin_work(number)
            matcher = self._matchers.get(number)
            if matcher is None:
                matcher = self._matchers[number] = self._start.deep_copy()
            for first in range(0, count, MOST_AT_ONCE):  # many if it replaces another process
                limit_cpu(STEP_SECONDS)
                matcher.consume_tokens(tokens[first : first + MOST_AT_ONCE])
            forced = _forced(matcher)
            if not matcher.is_stopped():
                go_on.append(number)
            yield _message(number, matcher, matcher.is_stopped(), forced)

    def _mask(self, number: int) -> bytes:
        """Compute a mask, which may exceed a limit."""
        self._begin_work(number)
        matcher = self._matchers[number]
        address = self._masks + number * self._num_bytes
        matcher.unsafe_compute_mask_ptr(address, self._num_bytes)
        return _message(number, matcher, False, b"")

    def _begin_work(self, number: int) -> None:
        self._busy_with[0] = number
        limit_cpu(STEP_SECONDS)


def _message(number: int, matcher: LLMatcher, ends: bool, content: bytes) -> bytes:
    """A message about a sequence: ``content``, or the matcher's error."""
    is_error = matcher.is_error()
    if is_error:
        content = matcher.get_error()[:LONGEST_REASON].encode()
    return HEAD.pack(number, ends, is_error, len(content)) + content


def _forced(matcher: LLMatcher) -> bytes:
    """Advance by forced tokens, at most ``MOST_FORCED``, and return them."""
    forced: list[int] = []
    while len(forced) < MOST_FORCED and (tokens := matcher.compute_ff_tokens()):
        tokens = tokens[: MOST_FORCED - len(forced)]
        matcher.consume_tokens(tokens)
        forced += tokens
    return array("i", forced).tobytes()
