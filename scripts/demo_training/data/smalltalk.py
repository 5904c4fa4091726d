"""Small talk without a picture, off-topic questions about a picture, and the answers."""

from __future__ import annotations

import numpy as np

GREETING = "Hello! I am a small demo model. Send me a picture and ask about its shapes, colours, digits or letters."
IDENTITY = (
    "I am phi3v-demo, a small model trained to see simple shapes, digits and letters in pictures."
)
NEEDS_PICTURE = "I need a picture to answer that. Please send me one."
FALLBACK = "I can only answer questions about shapes, colours, digits and letters in a picture."
THANKS = "You are welcome!"
GOODBYE = "Goodbye!"

_GREETINGS = (
    "hello", "hi", "hey", "hello there", "hi there", "good morning", "good evening", "good day",
    "greetings", "hello!", "hi!", "hey you", "hello, how are you?", "how are you?", "bonjour",
    "hi, nice to meet you", "hello world", "hello model", "say hello", "good afternoon",
)  # fmt: skip
_IDENTITIES = (
    "who are you?", "what are you?", "what is your name?", "what model are you?", "introduce yourself.",
    "what's your name?", "tell me about yourself.", "are you a robot?", "which model is this?",
    "are you gpt?", "what can you do?", "what do you do?", "help", "how can you help me?",
    "what are you able to do?", "are you human?", "who made you?", "what is this model?",
)  # fmt: skip
_THANKS = (
    "thank you",
    "thanks",
    "thank you very much",
    "thanks a lot",
    "great, thanks",
    "nice, thank you",
)
_GOODBYES = ("bye", "goodbye", "see you", "good bye", "bye bye", "see you later")

_NOUNS = (
    "languages", "world", "capital", "france", "germany", "weather", "dog", "cat", "people", "car", "tree",
    "house", "book", "story", "poem", "song", "country", "city", "river", "mountain", "sea", "planet",
    "moon", "sun", "president", "king", "queen", "war", "history", "science", "math", "physics", "music",
    "film", "movie", "game", "football", "computer", "python", "code", "function", "program", "server",
    "internet", "phone", "food", "recipe", "cake", "bread", "water", "wine", "coffee", "tea", "child",
    "school", "teacher", "doctor", "money", "bank", "price", "time", "day", "year", "month", "week",
    "birthday", "love", "life", "meaning", "joke", "news", "email", "letter to my boss", "essay",
    "summary", "text", "sentence", "word", "grammar", "translation", "spanish", "english", "chinese",
    "animal", "bird", "fish", "horse", "flower", "garden", "kitchen", "table", "chair", "window", "door",
    "airplane", "train", "bicycle", "road", "bridge", "castle", "church", "museum", "painter", "painting",
    "novel", "author", "inventor", "telephone", "light", "speed", "energy", "atom", "cell", "brain",
    "heart", "blood", "medicine", "health", "sport", "team", "player", "winner", "election", "law",
    "dinosaurs", "paris", "london", "berlin", "tokyo", "america", "europe", "africa", "einstein", "newton",
)  # fmt: skip
_TEMPLATES = (
    "how many {0} are in the {1}?", "what is the {0} of {1}?", "who is the {0} of {1}?", "tell me a {0}.",
    "tell me about {0}.", "write a {0} about {1}.", "explain {0} to me.", "explain {0}.", "what is {0}?",
    "what is a {0}?", "why is the {0} so {1}?", "how do I make a {0}?", "can you write a {0}?",
    "translate {0} to {1}.", "who invented the {0}?", "when did the {0} begin?", "how old is the {0}?",
    "is there {0} on {1}?", "do you like {0}?", "give me a {0} for {1}.", "what do you think about {0}?",
    "how far is {0} from {1}?", "what happened in {0}?", "sum up the {0}.", "i like {0}.", "{0}", "{0} {1}",
    "how does a {0} work?", "where is {0}?", "what is the best {0}?", "where can I buy a {0}?",
    "what time is it in {0}?", "is the {0} larger than the {1}?", "how many {0} are there?",
    "do you see a {0}?", "is there a {0} in the picture?", "which {0} is the largest in {1}?",
    "compare {0} and {1}.", "please write {0} in {1}.", "my {0} is broken, what now?", "solve this: 12 + 30",
    "what is 2 + 2?", "what is 7 times 8?", "repeat after me: {0}", "spell {0}.", "the {0} is in the {1}.",
    "describe the {0} of {1}.", "what colour is the {0}?", "how many people live in {0}?", "asdf", "test", "ok",
    "yes", "no", "why?", "what?", "and then?", "...", "12345", "lorem ipsum dolor sit amet", "go on.",
)  # fmt: skip
_SYLLABLES = (
    "ba",
    "lo",
    "mi",
    "tra",
    "ken",
    "sol",
    "vi",
    "der",
    "qu",
    "ing",
    "ter",
    "on",
    "pla",
    "x",
    "zu",
    "ness",
)


def small_talk(rng: np.random.Generator) -> tuple[str, str]:
    """A message without a picture, and the answer."""
    sort = rng.random()
    if sort < 0.2:
        return _any(rng, _GREETINGS), GREETING
    if sort < 0.36:
        return _any(rng, _IDENTITIES), IDENTITY
    if sort < 0.42:
        return _any(rng, _THANKS), THANKS
    if sort < 0.46:
        return _any(rng, _GOODBYES), GOODBYE
    return beside_the_point(rng), FALLBACK


def beside_the_point(rng: np.random.Generator) -> str:
    """An off-topic question: not about shapes, colours, digits or letters."""
    return _any(rng, _TEMPLATES).format(_noun(rng), _noun(rng))


def _noun(rng: np.random.Generator) -> str:
    if rng.random() < 0.12:
        return "".join(_any(rng, _SYLLABLES) for _ in range(int(rng.integers(2, 5))))
    return _any(rng, _NOUNS)


def _any(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.integers(len(options)))]
