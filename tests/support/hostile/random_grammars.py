"""Grammars at random, of every kind a request can ask for: sound, broken, ambiguous, deep and large."""

from __future__ import annotations

import json
import random
from typing import Any

ALPHABET = "abcxyz019 _-,"
LEXEMES = [
    "/a+/",
    "/a*b?/",
    "/[a-z]+/",
    "/(ab)+/",
    "/./",
    "/x{1,3}/",
    "/a|b|ab/",
    '"a"',
    '"ab"',
    '""',
]
OPERATORS = ["", "", "", "?", "*", "+", "{2,4}", "~2", "{0,1000}"]


Request = dict[str, Any]  # parameters


def request(chance: random.Random) -> Request:
    """The parameters that ask for one."""
    kind = chance.choice(["regex", "lark", "gbnf", "schema", "chain", "choice", "noise"])
    if kind == "regex":
        return {"guided_regex": regex(chance, chance.randint(1, 5)) or "a"}
    if kind == "lark":
        return {"guided_grammar": lark(chance)}
    if kind == "gbnf":
        return {"guided_grammar": gbnf(chance)}
    if kind == "schema":
        return formatted(schema(chance, chance.randint(0, 4)))
    if kind == "choice":
        return {"guided_choice": [word(chance) for _ in range(chance.randint(1, 30))]}
    if kind == "noise":
        text = "".join(chance.choice("aé{}[]()|*+?:=\"'/\\ \n0,.~%#$") for _ in range(40))
        return {chance.choice(["guided_regex", "guided_grammar"]): text}
    return chain(chance, int(10 ** chance.uniform(0.5, 3.4)))


def formatted(wanted: Any) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": wanted}}
    }


def word(chance: random.Random) -> str:
    return "".join(chance.choice(ALPHABET) for _ in range(chance.randint(0, 8)))


def regex(chance: random.Random, depth: int) -> str:
    if depth == 0:
        return chance.choice(["a", "b", "[a-c]", ".", "[^a]", r"\d", "é", "", "$", "(?i:x)"])
    inner = [regex(chance, depth - 1) for _ in range(chance.randint(1, 3))]
    made = chance.choice(["", "|"]).join(inner)
    times = chance.choice(["", "", "*", "+", "?", "{2}", "{1,20}", "{0,3000}"])
    return f"({made}){times}"


def lark(chance: random.Random) -> str:
    names = [f"r{i}" for i in range(chance.randint(1, 6))]

    def sequence() -> str:
        parts = [chance.choice([*names, *LEXEMES]) for _ in range(chance.randint(1, 4))]
        return " ".join(part + chance.choice(OPERATORS) for part in parts)

    def rule() -> str:
        return " | ".join(sequence() for _ in range(chance.randint(1, 3)))

    return "\n".join([f"start: {rule()}", *(f"{name}: {rule()}" for name in names), ""])


def gbnf(chance: random.Random) -> str:
    names = [f"r{i}" for i in range(chance.randint(1, 6))]
    words = ['"a"', '"ab"', "[a-z]", "[^x]", '"\\n"', '"é"']

    def sequence() -> str:
        parts = [chance.choice([*names, *words, *words]) for _ in range(chance.randint(1, 4))]
        return " ".join(part + chance.choice(["", "", "*", "+", "?"]) for part in parts)

    rules = [f"{name} ::= {sequence()} | {sequence()}" for name in names]
    return "\n".join([f"root ::= {sequence()}", *rules, ""])


def schema(chance: random.Random, depth: int) -> Any:
    if depth == 0 or chance.random() < 0.2:
        return chance.choice(
            [
                {"type": "string", "maxLength": chance.randint(0, 30)},
                {"type": "string", "pattern": regex(chance, 2)},
                {"type": "string", "format": chance.choice(["date", "uuid", "email", "nothing"])},
                {"type": "integer", "minimum": chance.randint(-99, 9), "multipleOf": 7},
                {"type": "number", "maximum": chance.random()},
                {"enum": [word(chance), chance.randint(0, 9), None, True]},
                {"const": {"a": [word(chance)]}},
                {"type": "boolean"},
                {"type": "nonsense"},
                {},
                True,
            ]
        )
    inner = [schema(chance, depth - 1) for _ in range(chance.randint(1, 4))]
    names = [word(chance) for _ in inner]
    return chance.choice(
        [
            {"type": "array", "items": inner[0], "minItems": chance.randint(0, 3)},
            {"type": "array", "prefixItems": inner, "maxItems": 5},
            {"anyOf": inner},
            {"oneOf": inner},
            {"allOf": inner},
            {
                "type": "object",
                "properties": dict(zip(names, inner, strict=True)),
                "required": names,
                "additionalProperties": chance.choice([False, inner[0]]),
            },
            {"type": "object", "patternProperties": {regex(chance, 1): inner[0]}},
            {"$defs": {"a": inner[0]}, "type": "array", "items": {"$ref": "#/$defs/a"}},
            {"not": inner[0]},
        ]
    )


def chain(chance: random.Random, length: int) -> dict[str, Any]:
    """One thing after another, or inside it."""
    kind = chance.choice(["rules", "gbnf", "objects", "references", "repeats", "arrays"])
    if kind == "rules":
        rules = [f'r{i}: "a" r{i + 1}' for i in range(length)]
        return {"guided_grammar": "\n".join(["start: r0", *rules, f'r{length}: "b"', ""])}
    if kind == "gbnf":
        rules = [f'r{i} ::= "a" r{i + 1}' for i in range(length)]
        return {"guided_grammar": "\n".join(["root ::= r0", *rules, f'r{length} ::= "b"', ""])}
    if kind == "repeats":
        return {"guided_regex": chance.choice(["(ab)?", "(a|b)*", "a+", "[a-z]{2}"]) * length}
    if kind == "arrays":
        depth = min(length, 150)  # JSON itself ends at 200 levels
        return formatted(json.loads('{"type": "array", "items": ' * depth + "{}" + "}" * depth))
    length = min(length, 1000)
    defs: dict[str, Any] = {f"d{length}": {"type": "integer"}}
    for i in range(length):
        link: Any = {"$ref": f"#/$defs/d{i + 1}"}
        if kind == "objects":
            link = {"type": "object", "properties": {"a": link}, "required": ["a"]}
        defs[f"d{i}"] = link
    return formatted({"$defs": defs, "$ref": "#/$defs/d0"})
