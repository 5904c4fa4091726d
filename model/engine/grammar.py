"""Grammars that answers must match: compiled once, and how far one answer has come in one.

llguidance does the parsing. An answer is everything after the one space that the detokenizer drops,
so each grammar begins with that space, as answers of the model do.

Where a grammar leaves but one continuation, its canonical tokens are *forced*: they are the answer
however they are computed, one at a time or together.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, regex_to_lark
from llguidance.gbnf_to_lark import any_to_lark

from model.engine.request import GrammarSpec
from model.errors import GrammarError
from model.phi3v.tokenizer import Phi3VTokenizer

LARGEST_SOURCE = 200_000  # characters
LARGEST_MULTIPLE = 100_000
KEPT = 64  # compiled grammars
SEARCH_SECONDS = 0.5  # for the part of a broken schema that is at fault
Place = tuple[str | int, ...]
SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions")
LISTS_OF_SCHEMAS = ("anyOf", "oneOf", "allOf", "prefixItems")
SCHEMAS = ("items", "additionalProperties")
# The way models write JSON; and a fixed way, so that keys and marks can be forced.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# Bounds of what one grammar may take: some 10 ms to begin with and 3 ms per token, and some 50 MB.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 50_000,
    "max_lexer_states": 25_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}


class Grammars:
    """The grammars of one checkpoint, compiled; thread-safe.

    Args:
        tokenizer: of the checkpoint.
        vocabulary: size of the logits' rows.
        stop_ids: tokens that may end an answer.
    """

    def __init__(
        self, tokenizer: Phi3VTokenizer, vocabulary: int, stop_ids: frozenset[int]
    ) -> None:
        self.vocabulary = vocabulary
        self._source = tokenizer
        self._stop_ids = sorted(stop_ids)
        self._tokenizer: LLTokenizer | None = None  # made at the first use
        self._compiled: OrderedDict[tuple[str, str], LLMatcher] = OrderedDict()
        self._lock = threading.Lock()

    def compile(self, spec: GrammarSpec) -> LLMatcher:
        """A matcher at the start of the grammar, to be copied. May take a second.

        Raises:
            GrammarError: the grammar is broken, not supported, or too complex.
        """
        key = (spec.kind, spec.source)
        with self._lock:
            if key in self._compiled:
                self._compiled.move_to_end(key)
                return self._compiled[key]
        if len(spec.source) > LARGEST_SOURCE:
            raise GrammarError(
                f"{'.'.join(map(str, spec.loc))} has {len(spec.source)} characters, the limit is {LARGEST_SOURCE}",
                spec.loc,
            )
        grammar = _grammar(spec)
        matcher = self._matcher(grammar)
        if matcher.is_error():
            place = self._culprit(json.loads(spec.source)) if spec.kind == "json_schema" else ()
            raise _error(spec, matcher.get_error(), place)
        first = matcher.deep_copy()  # some grammars show only now that they take too much
        first.consume_tokens(first.compute_ff_tokens())
        first.compute_bitmask()
        if first.is_error():
            raise _error(spec, first.get_error())
        with self._lock:
            self._compiled[key] = matcher
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        return matcher

    def _matcher(self, grammar: str) -> LLMatcher:
        limits = LLParserLimits(**LIMITS)
        return LLMatcher(self._ll_tokenizer(), grammar, log_level=0, limits=limits)

    def _culprit(self, schema: dict[str, Any]) -> Place:
        """Place of the smallest part of a schema that cannot be used by itself."""
        shared = {name: schema[name] for name in ("$defs", "definitions") if name in schema}
        path: Place = ()
        deadline = time.monotonic() + SEARCH_SECONDS
        part: Any = schema
        while True:
            for step, inner in _parts(part):
                if time.monotonic() > deadline:
                    return path
                whole = {**shared, **inner} if isinstance(inner, dict) else inner
                if self._matcher(_json_grammar(whole)).is_error():
                    path, part = path + step, inner
                    break
            else:
                return path

    def _ll_tokenizer(self) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                words = TokenizerWrapper(_Words(self._source, self.vocabulary, self._stop_ids[0]))
                self._tokenizer = LLTokenizer(words, self.vocabulary, self._stop_ids)
            return self._tokenizer


class Guide:
    """How far one answer has come in its grammar.

    Args:
        matcher: a copy of its own; tells what may come next where nothing is forced.
        spec: what it was compiled from, for errors.
    """

    def __init__(self, matcher: LLMatcher, spec: GrammarSpec) -> None:
        self.matcher = matcher
        self._spec = spec
        self._forced = deque(matcher.compute_ff_tokens())

    @property
    def is_finished(self) -> bool:
        """Whether nothing may follow."""
        matcher = self.matcher
        return not self._forced and matcher.is_stopped() and not matcher.is_error()

    @property
    def forced(self) -> int | None:
        """The only token that may come next, where there is but one."""
        return self._forced[0] if self._forced else None

    @property
    def error(self) -> GrammarError | None:
        """What went wrong, if anything: the grammar took too much."""
        return _error(self._spec, self.matcher.get_error()) if self.matcher.is_error() else None

    def accept(self, token_id: int) -> None:
        """Go on by a token that was allowed, and does not end the answer."""
        self.matcher.consume_token(token_id)
        if self._forced:
            self._forced.popleft()
        if not self._forced:
            self._forced.extend(self.matcher.compute_ff_tokens())


class _Words:
    """A checkpoint's vocabulary in the form that llguidance takes."""

    def __init__(self, tokenizer: Phi3VTokenizer, vocabulary: int, stop_id: int) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = None
        self.eos_token_id = stop_id
        nothing = [i for i in range(vocabulary) if not tokenizer.token_bytes(i)]
        # By llguidance's convention a 0xFF begins the name of what is no text.
        self.tokens = [tokenizer.token_bytes(i) or b"\xff<%d>" % i for i in range(vocabulary)]
        self.special_token_ids = nothing

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode_inner(text.decode())


def _grammar(spec: GrammarSpec) -> str:
    """The grammar in llguidance's form, with the space before it."""
    if spec.kind == "regex":
        regex = regex_to_lark(spec.source, use_ascii="")
        return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: /{regex}/\n')
    if spec.kind == "grammar":
        try:
            lark = any_to_lark(spec.source)
        except Exception as error:  # its parser raises all kinds
            raise _error(spec, str(error)) from error
        return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: %lark {{\n{lark}\n}}\n')
    schema = json.loads(spec.source)
    _refuse_large_multiples(schema, spec)
    return _json_grammar(schema)


def _refuse_large_multiples(schema: Any, spec: GrammarSpec) -> None:
    """The automaton of a multiple has as many states, also of those that are combined."""
    common, waiting = 1, [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting += part
        elif isinstance(part, dict):
            waiting += part.values()
            multiple = part.get("multipleOf")
            if isinstance(multiple, int | float) and 0 < multiple < LARGEST_MULTIPLE:
                common = math.lcm(common, Fraction(str(multiple)).numerator)
            elif isinstance(multiple, int | float):
                common = LARGEST_MULTIPLE
    if common >= LARGEST_MULTIPLE:
        raise _error(spec, f"the common multiple of its multipleOf is not below {LARGEST_MULTIPLE}")


def _json_grammar(schema: Any) -> str:
    styled = {**schema, "x-guidance": JSON_STYLE} if isinstance(schema, dict) else schema
    return LLMatcher.grammar_from_lark(f'start: " " answer\nanswer: %json {json.dumps(styled)}\n')


def _parts(schema: Any) -> Iterator[tuple[Place, Any]]:
    """The schemas directly in a schema, and their paths."""
    if not isinstance(schema, dict):
        return
    for key in SCHEMAS_BY_NAME:
        named = schema.get(key)
        if isinstance(named, dict):
            yield from (((key, name), inner) for name, inner in named.items())
    for key in LISTS_OF_SCHEMAS:
        listed = schema.get(key)
        if isinstance(listed, list):
            yield from (((key, i), inner) for i, inner in enumerate(listed))
    for key in SCHEMAS:
        if isinstance(schema.get(key), dict):
            yield (key,), schema[key]


def _error(spec: GrammarSpec, told: str, place: Place = ()) -> GrammarError:
    """What llguidance told, without the copy of the grammar that it adds."""
    reason = told.split("\n   1 | ")[0].removesuffix("<non-verbose/>").strip()
    loc = (*spec.loc, *place)
    name = ".".join(map(str, loc)) or "the grammar"
    return GrammarError(f"{name} cannot be used: {reason.rpartition('JSON schema: ')[2]}", loc)
