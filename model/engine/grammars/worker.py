"""What happens in a grammar's processes: one compiles it, a child of that one follows each answer."""

from __future__ import annotations

import json
import socket
from array import array
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
    GO_ON,
    HEAD,
    MEMORY,
    MOST_FORCED,
    STEP_SECONDS,
    TOKEN,
    mask_bytes,
)
from model.engine.grammars.source import BrokenGrammarError, culprit, to_llguidance

PROCESS_BYTES = 4 << 20  # of a worker, besides what it has compiled
LONGEST_REASON = 1000  # characters
# What one grammar may take within the library: some 10 ms to begin with and 3 ms per token.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 50_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Words:
    """A checkpoint's vocabulary in the form that llguidance takes.

    Args:
        words: of each row of the logits, its bytes; none where it adds nothing to a text.
        stop_ids: tokens that may end an answer.
        inner: the tokenizer of text that goes on from other text, as JSON.
    """

    def __init__(self, words: list[bytes], stop_ids: list[int], inner: str) -> None:
        self.bos_token_id = None
        self.eos_token_id = stop_ids[0]
        # By llguidance's convention a 0xFF begins the name of what is no text.
        self.tokens = [word or b"\xff<%d>" % i for i, word in enumerate(words)]
        self.special_token_ids = [i for i, word in enumerate(words) if not word]
        self._inner = Tokenizer.from_str(inner)

    def __call__(self, text: bytes) -> list[int]:
        """Token ids of a text that goes on from another."""
        ids: list[int] = self._inner.encode(text.decode()).ids
        return ids


def prepare(words: list[bytes], stop_ids: list[int], inner: str) -> Work:
    """What a worker does; called once, before all of them. The arguments are those of ``Words``."""
    wrapped = TokenizerWrapper(Words(words, stop_ids, inner))
    tokenizer = LLTokenizer(wrapped, len(words), stop_ids)
    return partial(_compile_and_begin, tokenizer, mask_bytes(len(words)))


def _compile_and_begin(tokenizer: LLTokenizer, num_bytes: int, server: socket.socket) -> None:
    """Compile the grammar that the server sends, then have children follow answers."""
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
        if spec["kind"] == "json_schema":
            schema = json.loads(spec["source"])
            place = culprit(schema, lambda part: _matcher(tokenizer, part).is_error())
            connection.send_bytes(json.dumps({"place": place}).encode())
        return
    first = matcher.deep_copy()  # some grammars show only now that they take too much
    first.consume_tokens(first.compute_ff_tokens())
    first.compute_bitmask()
    if first.is_error():
        _refuse(connection, first.get_error())
        return
    taken = max(0, resident_memory() - before) + PROCESS_BYTES
    connection.send_bytes(json.dumps({"bytes": taken}).encode())
    while True:
        command, descriptors, _, _ = socket.recv_fds(server, 1, 1)
        if not command:
            return
        limit_cpu(COMPILE_SECONDS)
        if descriptors:
            answer = socket.socket(fileno=descriptors[0])
            fork(answer, server, partial(_follow, matcher, num_bytes))


def _matcher(tokenizer: LLTokenizer, grammar: str) -> LLMatcher:
    return LLMatcher(tokenizer, grammar, log_level=0, limits=LLParserLimits(**LIMITS))


def _refuse(connection: Connection, told: str) -> None:
    """Say what llguidance told, without the copy of the grammar that it adds."""
    reason = told.split("\n   1 | ")[0].removesuffix("<non-verbose/>").strip()
    reason = reason.rpartition("JSON schema: ")[2]
    if len(reason) > LONGEST_REASON:
        reason = reason[:LONGEST_REASON] + "..."
    connection.send_bytes(json.dumps({"error": reason}).encode())


def _follow(matcher: LLMatcher, num_bytes: int, server: socket.socket) -> None:
    """Follow one answer: a token comes, what it forces goes back, then the next mask."""
    token_id = GO_ON
    while True:
        limit_cpu(STEP_SECONDS)
        if token_id != GO_ON:
            matcher.consume_token(token_id)
        ids = _forced(matcher)
        if not _sent(server, matcher, ids):
            return
        if not matcher.is_stopped():
            mask = matcher.compute_bitmask()[:num_bytes]
            if not _sent(server, matcher, mask):  # it may have become too much only now
                return
        message = server.recv(TOKEN.size)
        if not message:
            return
        (token_id,) = TOKEN.unpack(message)


def _sent(server: socket.socket, matcher: LLMatcher, content: bytes) -> bool:
    """Send something; or, where something is wrong, what that is."""
    is_error = matcher.is_error()
    if is_error:
        content = matcher.get_error()[:LONGEST_REASON].encode()
    server.sendall(HEAD.pack(matcher.is_stopped(), is_error, len(content)) + content)
    return not is_error


def _forced(matcher: LLMatcher) -> bytes:
    """Take the tokens that are the only ones that may come next, as far as one reply goes."""
    forced: list[int] = []
    while len(forced) < MOST_FORCED and (tokens := matcher.compute_ff_tokens()):
        tokens = tokens[: MOST_FORCED - len(forced)]
        matcher.consume_tokens(tokens)
        forced += tokens
    return array("i", forced).tobytes()
