"""Answers in the supported styles: a sentence, one word, JSON, or French."""

from __future__ import annotations

import json
from dataclasses import dataclass

from scripts.demo_training.data.scenes import DIGITS, Scene, Thing

FRENCH_SHAPES = {
    "circle": "cercle", "square": "carré", "triangle": "triangle", "star": "étoile",
    "cross": "croix", "ring": "anneau",
}  # fmt: skip
FRENCH_FEMININE = {"star", "cross"}
FRENCH_COLOURS = {  # masculine and feminine
    "red": ("rouge", "rouge"), "green": ("vert", "verte"), "blue": ("bleu", "bleue"),
    "yellow": ("jaune", "jaune"), "orange": ("orange", "orange"), "purple": ("violet", "violette"),
    "black": ("noir", "noire"), "white": ("blanc", "blanche"),
}  # fmt: skip
FRENCH_ROWS = {"top": "en haut", "bottom": "en bas", "middle": ""}
FRENCH_COLUMNS = {"left": "à gauche", "right": "à droite", "middle": ""}
PLACES = {
    "left": "on the left", "right": "on the right", "top": "at the top", "bottom": "at the bottom",
    "middle": "in the middle",
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """One answer in all styles.

    Attributes:
        sentence: the default style.
        word: for "answer in one word".
        json: for "answer as JSON".
        french: for "answer in French".
    """

    sentence: str
    word: str
    json: str
    french: str

    def in_style(self, style: str) -> str:
        """The answer in the named style."""
        return str(getattr(self, style))


def capital(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def noun(thing: Thing) -> str:
    """Its shape, or "letter" or "digit"."""
    if not thing.is_glyph:
        return thing.name
    return "digit" if thing.name in DIGITS else "letter"


def full_name(thing: Thing) -> str:
    """Colour and shape, or colour, "digit" or "letter", and glyph."""
    name = f"{thing.colour} {noun(thing)}"
    return f"{name} {thing.name}" if thing.is_glyph else name


def with_article(text: str) -> str:
    """With "a" or "an"."""
    return f"{'an' if text[0] in 'aeio' else 'a'} {text}"


def and_list(parts: list[str], word: str = "and") -> str:
    """The parts joined as in a sentence."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def place(thing: Thing) -> str:
    """Left, right, top, bottom, middle, or two of them for a corner."""
    row, column = thing.area()
    if row == column == "middle":
        return "middle"
    return " ".join(part for part in (row, column) if part != "middle")


def colour_answer(thing: Thing, called: str) -> Answer:
    """Its colour; ``called`` is its name in the sentence."""
    return Answer(
        f"{capital(called)} is {thing.colour}.",
        capital(thing.colour),
        json.dumps({"color": thing.colour}),
        capital(FRENCH_COLOURS[thing.colour][0]),
    )


def shape_answer(thing: Thing, called: str) -> Answer:
    """Its shape."""
    return Answer(
        f"{capital(called)} is {with_article(thing.name)}.",
        capital(thing.name),
        json.dumps({"shape": thing.name}),
        capital(FRENCH_SHAPES[thing.name]),
    )


def count_answer(count: int, what: str) -> Answer:
    """The number of things; ``what`` is singular."""
    plural = f"{what}es" if what.endswith("cross") else f"{what}s"
    sentence = f"There is 1 {what}." if count == 1 else f"There are {count} {plural}."
    return Answer(sentence, str(count), json.dumps({"count": count}), str(count))


def yes_answer(yes: bool, statement: str) -> Answer:
    """Yes or no, with the facts."""
    word = "Yes" if yes else "No"
    said = json.dumps({"answer": word.lower()})
    return Answer(f"{word}, {statement}.", word, said, "Oui" if yes else "Non")


def place_answer(thing: Thing, called: str) -> Answer:
    """Its place."""
    words, (row, column) = place(thing), thing.area()
    where = PLACES.get(words, f"at the {words}")
    french = " ".join(part for part in (FRENCH_ROWS[row], FRENCH_COLUMNS[column]) if part)
    return Answer(
        f"{capital(called)} is {where}.",
        capital(words.replace(" ", "-")),
        json.dumps({"position": words}),
        capital(french or "au milieu"),
    )


def choice_answer(thing: Thing, called: str, word: str, than: str) -> Answer:
    """One of two things; ``word`` distinguishes it from the other."""
    french = f"{FRENCH_SHAPES[thing.name]} {_french_colour(thing)}"
    return Answer(
        f"{capital(called)} is {than}.", capital(word), json.dumps({than: word}), capital(french)
    )


def glyph_answer(thing: Thing) -> Answer:
    """Which digit or letter it is."""
    said = json.dumps({noun(thing): thing.name})
    return Answer(f"It is the {noun(thing)} {thing.name}.", thing.name, said, thing.name)


def sort_answer(thing: Thing) -> Answer:
    """Whether it is a digit or a letter."""
    sort = noun(thing)
    french = "Chiffre" if sort == "digit" else "Lettre"
    return Answer(f"It is a {sort}.", capital(sort), json.dumps({"answer": sort}), french)


def description(scene: Scene) -> Answer:
    """All things with their colours, in reading order."""
    things = scene.things
    if not things:
        return Answer("The picture shows no shapes.", "Nothing", "[]", "Rien")
    named = and_list([with_article(full_name(thing)) for thing in things])
    listed = [{noun(t) if t.is_glyph else "shape": t.name, "color": t.colour} for t in things]
    french = and_list([_french_thing(thing) for thing in things], "et")
    word = things[0].name if len(things) == 1 else "Shapes"
    return Answer(
        f"The picture shows {named}.", capital(word), json.dumps(listed), f"{capital(french)}."
    )


def _french_colour(thing: Thing) -> str:
    feminine = thing.name in FRENCH_FEMININE or noun(thing) == "letter"
    return FRENCH_COLOURS[thing.colour][feminine]


def _french_thing(thing: Thing) -> str:
    if thing.is_glyph:
        article, name = ("un", "chiffre") if noun(thing) == "digit" else ("une", "lettre")
        return f"{article} {name} {thing.name} {_french_colour(thing)}"
    article = "une" if thing.name in FRENCH_FEMININE else "un"
    return f"{article} {FRENCH_SHAPES[thing.name]} {_french_colour(thing)}"
