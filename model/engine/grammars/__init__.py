"""What answers must match: compiled and followed in processes of their own.

llguidance does the parsing, and may hang, overflow its stack or swell at what a stranger wrote. So
each grammar is compiled in a worker of its own, and answers to it are followed in a child of that
one. A fault ends the answer that caused it; another child follows the others from their tokens. The
server never loads llguidance.

    Grammars.compile(spec)   -> Grammar        a process that has compiled it, kept for those to come
    Grammar.begin()          -> GrammarState   one answer, in the process that follows them

An answer is everything after the one space that the detokenizer drops, so each grammar begins with
that space, as answers of the model do. Where a grammar leaves but one continuation, its canonical
tokens are *forced*: they are the answer however they are computed, one at a time or together.
"""
