"""Finds the thing that a word of a conversation names.

An auxiliary loss trains the decoder to read the thing's code from the picture at such a word. Answers
alone would teach this too, but more slowly.
"""

from __future__ import annotations

from collections.abc import Iterator

from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from scripts.demo_training.data.answers import FRENCH_COLOURS, FRENCH_SHAPES
from scripts.demo_training.data.scenes import COLOURS, THINGS, Scene

NOBODY = -1


class Names:
    """Words for things and colours that are a single token.

    Args:
        tokenizer: of the rows.
    """

    def __init__(self, tokenizer: Phi3VTokenizer) -> None:
        self._things = _tokens(tokenizer, THINGS)
        self._colours = _tokens(tokenizer, COLOURS)

    def named(self, ids: list[int], scene: Scene) -> list[int]:
        """For each token, the index of the only thing in the scene that it names, or ``NOBODY``.

        A shape after a colour names the thing with both.
        """
        found = []
        for before, token in zip([NOBODY, *ids], ids, strict=False):
            thing, colour = self._things.get(token), self._colours.get(token)
            if thing is not None:
                colour = self._colours.get(before)
            fitting = [
                i
                for i, one in enumerate(scene.things)
                if thing in (None, one.name) and colour in (None, one.colour)
            ]
            known = thing is not None or colour is not None
            found.append(fitting[0] if known and len(fitting) == 1 else NOBODY)
        return found


def _tokens(tokenizer: Phi3VTokenizer, words: tuple[str, ...]) -> dict[int, str]:
    tokens = {}
    for word in words:
        for form in _forms(word):
            ids = tokenizer.encode_inner(form)
            if len(ids) == 1:
                tokens[ids[0]] = word
    return tokens


def _forms(word: str) -> Iterator[str]:
    french = {*FRENCH_COLOURS.get(word, ()), FRENCH_SHAPES.get(word, word)}
    for form in {word, word.upper(), *french}:
        yield from (form, f" {form}", form.capitalize(), f" {form.capitalize()}")
