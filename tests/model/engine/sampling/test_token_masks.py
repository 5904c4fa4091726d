"""Answers match their grammars, whatever the weights and parameters; forced tokens change no text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.engine.engine import Engine
from model.engine.request import GrammarSpec, SamplingParams, TextDelta, TokenLogprob
from model.errors import GrammarError
from model.phi3v.inputs.chat import Message

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        "at": {"type": "string", "format": "date"},
        "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
        "size": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": 9}, {"const": "?"}]},
    },
    "required": ["name", "age", "kind", "tags", "at", "code", "size"],
    "additionalProperties": False,
    "$defs": {
        "tag": {
            "type": "object",
            "properties": {"t": {"type": "boolean"}},
            "required": ["t"],
            "additionalProperties": False,
        }
    },
}


def schema_spec(schema: Any) -> GrammarSpec:
    return GrammarSpec("json_schema", json.dumps(schema), ("schema",))


def run(engine: Engine, requests: list[SamplingParams]) -> list[tuple[str, str, list[int], int]]:
    """Text, finish reason and tokens of each answer, all in one batch; and the steps it took."""
    messages = [Message("user", "Answer, please!")]
    for number, params in enumerate(requests):
        inputs, grammar = engine.prepare(messages, params)
        engine.add(number, inputs, params, grammar=grammar)
    texts: dict[tuple[int, int], str] = {}
    reasons: dict[tuple[int, int], str] = {}
    tokens: dict[tuple[int, int], list[int]] = {}
    steps = 0
    while engine.has_work:
        steps += 1
        for output in engine.step():
            assert not isinstance(output.result, Exception), output.result
            texts[output.key] = texts.get(output.key, "") + output.result.text
            tokens.setdefault(output.key, []).extend(output.result.token_ids)
            if output.result.finish_reason:
                reasons[output.key] = output.result.finish_reason
    assert engine.blocks.num_free == engine.blocks.num_blocks
    return [(texts[key], reasons[key], tokens[key], steps) for key in sorted(texts)]


def params(spec: GrammarSpec, **more: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 400, "seed": 1, "grammar": spec, **more})


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Engine:
    return make_engine(max_num_seqs=8)


@pytest.mark.parametrize("temperature", [0, 1.0, 5.0])
def test_answers_validate(engine: Engine, temperature: float) -> None:
    spec = schema_spec(PERSON)
    requests = [params(spec, temperature=temperature, seed=seed) for seed in range(8)]
    for text, reason, _, _ in run(engine, requests):
        assert reason == "stop"
        jsonschema_rs.validate(PERSON, json.loads(text), validate_formats=True)


def test_jump_ahead_changes_no_text_and_saves_steps(make_engine: Callable[..., Engine]) -> None:
    jumping, walking = make_engine(), make_engine(jump_ahead=False)
    for temperature in (0, 1.0):
        requests = [params(schema_spec(PERSON), temperature=temperature, seed=s) for s in range(6)]
        fast, slow = run(jumping, requests), run(walking, requests)
        assert [answer[:3] for answer in fast] == [answer[:3] for answer in slow]
        assert fast[0][3] * 1.5 < slow[0][3]


def test_other_rows_do_not_notice(engine: Engine) -> None:
    plain = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    (alone,) = run(engine, [plain])
    together = run(engine, [plain, params(schema_spec(PERSON)), plain])
    assert together[0][:3] == together[2][:3] == alone[:3]


def test_log_probabilities_of_every_token(engine: Engine) -> None:
    """Of the raw logits, forced tokens included; the text is the one without them."""
    spec = schema_spec(PERSON)
    (expected,) = run(engine, [params(spec, temperature=0)])
    asked = params(spec, temperature=0, logprobs=2)
    inputs, grammar = engine.prepare([Message("user", "Answer, please!")], asked)
    engine.add(0, inputs, asked, grammar=grammar)
    tokens: list[int] = []
    logprobs: list[TokenLogprob] = []
    while engine.has_work:
        for output in engine.step():
            assert isinstance(output.result, TextDelta)
            tokens += output.result.token_ids
            logprobs += output.result.logprobs
    assert tokens == expected[2]
    assert len(logprobs) == len(tokens)
    assert all(token.chosen.logprob <= token.top[0].logprob for token in logprobs)


@pytest.mark.parametrize(
    "more",
    [
        {"presence_penalty": 2.0, "frequency_penalty": 2.0, "repetition_penalty": 3.0},
        {"top_k": 1, "temperature": 1.0},
        {"top_p": 0.01, "min_p": 0.5, "temperature": 2.0},
        {"min_tokens": 390},
        {"n": 3},
    ],
)
def test_other_parameters_bend_nothing(engine: Engine, more: dict[str, Any]) -> None:
    for text, reason, _, _ in run(engine, [params(schema_spec(PERSON), **more)]):
        assert reason == "stop"
        jsonschema_rs.validate(PERSON, json.loads(text))


def test_a_bias_against_what_is_forced(engine: Engine) -> None:
    (expected,) = run(engine, [params(GrammarSpec("regex", "yes"), temperature=0)])
    biased = params(GrammarSpec("regex", "yes"), logit_bias=dict.fromkeys(expected[2], -100.0))
    assert run(engine, [biased])[0][0] == "yes"


def test_cut_off_answers_are_prefixes(engine: Engine) -> None:
    spec = schema_spec(PERSON)
    ((whole, *_),) = run(engine, [params(spec, temperature=0)])
    for length in range(1, 30, 3):
        ((text, reason, tokens, _),) = run(engine, [params(spec, temperature=0, max_tokens=length)])
        assert reason == "length"
        assert len(tokens) == length
        assert whole.startswith(text)


def test_a_stop_string_cuts(engine: Engine) -> None:
    ((text, reason, *_),) = run(engine, [params(schema_spec(PERSON), stop=('"age"',))])
    assert reason == "stop"
    assert text.startswith('{"name": "')
    assert text.endswith('", ')


@pytest.mark.parametrize(
    ("kind", "source", "pattern"),
    [
        ("regex", r"(yes|no), [a-z]{3,5}!", r"(yes|no), [a-z]{3,5}!"),
        ("regex", r" two  spaces?", r" two  spaces?"),
        ("regex", r"a/b\n[é世🎉]{2}", "a/b\n[é世🎉]{2}"),
        ("regex", r"a|b|", r"a|b|"),
        ("grammar", 'start: item ("," item)~2\nitem: /[0-9]{2}/', r"\d\d(,\d\d){2}"),
        ("grammar", 'root ::= "a" ("b" | "c") root2\nroot2 ::= "d"', r"a[bc]d"),
    ],
)
def test_expressions_and_grammars(engine: Engine, kind: Any, source: str, pattern: str) -> None:
    requests = [params(GrammarSpec(kind, source), seed=seed, temperature=3.0) for seed in range(6)]
    for text, reason, _, _ in run(engine, requests):
        assert reason == "stop"
        assert re.fullmatch(pattern, text)


@pytest.mark.parametrize(
    ("spec", "place", "word"),
    [
        (schema_spec({"type": "object", "properties": {"a": {"not": {}}}}), "properties.a", "not"),
        (schema_spec({"items": {"type": "strin"}, "type": "array"}), "items", "strin"),
        (
            schema_spec({"anyOf": [{"type": "null"}, {"type": "string", "pattern": "(x"}]}),
            "anyOf.1",
            "unclosed",
        ),
        (schema_spec({"$ref": "#/$defs/no"}), "", "no"),
        (schema_spec({"$ref": "#"}), "", "no text matches it"),
        (GrammarSpec("regex", r"[^\s\S]", ("schema",)), "", "no text matches it"),
        (schema_spec({"type": "string", "minLength": 5, "maxLength": 3}), "", "minLength"),
        (schema_spec({"type": "integer", "multipleOf": 999983}), "", "multipleOf"),
        (schema_spec({"enum": ["x" * 1000] * 500}), "", "characters"),
        (GrammarSpec("regex", "(a", ("schema",)), "", "unclosed"),
        (GrammarSpec("grammar", "start: nowhere", ("schema",)), "", "nowhere"),
        (GrammarSpec("grammar", "}}{{", ("schema",)), "", "}}{{"),
    ],
)
def test_what_cannot_be_used_is_named(
    engine: Engine, spec: GrammarSpec, place: str, word: str
) -> None:
    with pytest.raises(GrammarError) as caught:
        engine.prepare([Message("user", "hi")], params(spec))
    assert ".".join(map(str, caught.value.loc)) == f"schema.{place}".rstrip(".")
    assert word in caught.value.message
    assert "schema" in caught.value.message


def schemas() -> st.SearchStrategy[Any]:
    """Schemas of all kinds that are supported, of which some answer is short."""
    texts = st.text(st.characters(codec="utf-8"), max_size=8)
    strings = st.one_of(
        st.builds(lambda n: {"type": "string", "maxLength": n}, st.integers(0, 12)),
        st.sampled_from(["^[a-f]{2,4}$", "^(x|yy)+z$", "^\\\\d{3}-[^a]?$"]).map(
            lambda pattern: {
                "type": "string",
                "pattern": pattern.replace("\\\\", "\\"),
                "maxLength": 9,
            }
        ),
        st.sampled_from(["date", "time", "date-time", "uuid", "ipv4"]).map(
            lambda name: {"type": "string", "format": name}
        ),
    )
    numbers = st.one_of(
        st.builds(
            lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size},
            st.integers(-1000, 1000),
            st.integers(0, 500),
        ),
        st.builds(
            lambda low, size: {"type": "number", "minimum": low, "exclusiveMaximum": low + size},
            st.integers(-50, 50),
            st.integers(1, 50),
        ),
        st.integers(1, 40).map(
            lambda m: {"type": "integer", "multipleOf": m, "maximum": 9999, "minimum": 0}
        ),
    )
    values = st.one_of(texts, st.integers(-99, 99), st.booleans(), st.none())
    leaves = st.one_of(
        strings,
        numbers,
        st.just({"type": "boolean"}),
        st.just({"type": "null"}),
        st.lists(values, min_size=1, max_size=4).map(lambda items: {"enum": items}),
        values.map(lambda value: {"const": value}),
    )

    def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        def array(items: Any, least: int, more: int) -> Any:
            return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}

        def record(fields: dict[str, Any], required: bool) -> Any:
            return {
                "type": "object",
                "properties": fields,
                "required": list(fields) if required else [],
                "additionalProperties": False,
            }

        return st.one_of(
            st.builds(array, inner, st.integers(0, 2), st.integers(0, 2)),
            st.builds(record, st.dictionaries(texts, inner, max_size=4), st.booleans()),
            st.lists(inner, min_size=1, max_size=3).map(lambda options: {"anyOf": options}),
        )

    return st.recursive(leaves, grown, max_leaves=6)


@settings(max_examples=250, derandomize=True)
@given(schema=schemas(), seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 1.0, 8.0]))
def test_random_schemas(engine: Engine, schema: Any, seed: int, temperature: float) -> None:
    """``stop`` means valid, ``length`` a prefix, whatever the schema, the seed, the temperature."""
    request = params(schema_spec(schema), seed=seed, temperature=temperature, max_tokens=300)
    ((text, reason, _, _),) = run(engine, [request])
    if reason == "stop":
        jsonschema_rs.validate(schema, json.loads(text), validate_formats=True)
    else:
        assert len(text) > 100
