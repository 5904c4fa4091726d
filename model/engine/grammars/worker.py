"""What happens in a grammar's processes: one compiles it, a child of that one follows answers."""

from __future__ import annotations

import json
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
    STEP_SECONDS,
    mask_bytes,
)
from model.engine.grammars.source import BrokenGrammarError, culprit, to_llguidance

PROCESS_BYTES = 4 << 20  # of a worker, besides what it has compiled
LONGEST_REASON = 1000  # characters
MOST_AT_ONCE = 1000  # tokens
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
    """Compile the grammar that the server sends, then fork a child that follows answers when asked to."""
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


def _follow(start: LLMatcher, num_bytes: int, server: socket.socket) -> None:
    """Follow answers, batch by batch."""
    matchers: dict[int, LLMatcher] = {}
    while count := server.recv(COUNT.size, socket.MSG_WAITALL):
        batch = array("i")
        batch.frombytes(server.recv(4 * COUNT.unpack(count)[0], socket.MSG_WAITALL))
        go_on = [
            number
            for number, tokens in _asked(batch)
            if _went_on(start, matchers, number, tokens, server)
        ]
        for number in go_on:
            limit_cpu(STEP_SECONDS)
            matcher = matchers[number]
            mask = matcher.compute_bitmask()[:num_bytes]
            _send(server, number, matcher, mask)  # it may have become too much only now


def _asked(batch: array[int]) -> Iterator[tuple[int, list[int] | None]]:
    """The numbers of answers, and the tokens by which they go on; None where one ends."""
    at = 0
    while at < len(batch):
        number, count = batch[at : at + 2]
        at += 2
        if count == DROP:
            yield number, None
        else:
            yield number, batch[at : at + count].tolist()
            at += count


def _went_on(
    start: LLMatcher,
    matchers: dict[int, LLMatcher],
    number: int,
    tokens: list[int] | None,
    server: socket.socket,
) -> bool:
    """Go on with an answer and say what is forced; whether there is a mask to be computed."""
    if tokens is None:
        matchers.pop(number, None)
        return False
    limit_cpu(STEP_SECONDS)
    matcher = matchers.get(number)
    if matcher is None:
        matcher = matchers[number] = start.deep_copy()
    for at in range(0, len(tokens), MOST_AT_ONCE):  # many where a process goes on for another
        limit_cpu(STEP_SECONDS)
        matcher.consume_tokens(tokens[at : at + MOST_AT_ONCE])
    return _send(server, number, matcher, _forced(matcher)) and not matcher.is_stopped()


def _send(server: socket.socket, number: int, matcher: LLMatcher, content: bytes) -> bool:
    """Send something of an answer; or, where something is wrong, what that is."""
    is_error = matcher.is_error()
    if is_error:
        content = matcher.get_error()[:LONGEST_REASON].encode()
    head = HEAD.pack(number, matcher.is_stopped(), is_error, len(content))
    server.sendall(head + content)
    return not is_error


def _forced(matcher: LLMatcher) -> bytes:
    """Take the tokens that are the only ones that may come next, as far as one reply goes."""
    forced: list[int] = []
    while len(forced) < MOST_FORCED and (tokens := matcher.compute_ff_tokens()):
        tokens = tokens[: MOST_FORCED - len(forced)]
        matcher.consume_tokens(tokens)
        forced += tokens
    return array("i", forced).tobytes()
