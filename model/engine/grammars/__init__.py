"""Grammars that answers must match, compiled and followed in confined processes.

llguidance parses the grammars; untrusted ones may make it hang, overflow its stack or exhaust memory.
So each grammar is compiled in its own worker process, and a child of the worker follows the answers. A
fault fails only the answer that caused it; a new child follows the others from their tokens. The server
process never loads llguidance.

    Grammars.compile(spec)   -> Grammar        a process with the compiled grammar, cached
    Grammar.begin()          -> GrammarState   the state of one answer

The detokenizer drops the leading space of an answer, so each grammar starts with that space, like the
model's answers. Where a grammar allows only one continuation, its canonical tokens are *forced*: the
answer is the same whether they are computed one at a time or together.
"""
