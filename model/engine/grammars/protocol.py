"""The messages between the server and a grammar's processes, and the processes' limits.

The compiling process receives ``{"kind", "source"}`` as JSON and replies with ``{"bytes"}``, its
memory, or with ``{"error"}`` and, for a schema, ``{"place"}``. Each following ``BEGIN`` carries a socket
and a file to map, for a child that follows sequences.

The child receives batches of 32-bit integers: their count, then for each sequence its number, the
number of tokens to advance by, and the tokens. A sequence starts with its first tokens, perhaps none,
and ends with ``DROP`` instead of a number of tokens.

The child first replies with one message per sequence: the ids of the tokens that are now forced. Then,
for each sequence that need not end, it sends an empty message when the mask of the next token is in the
mapped file. A message starts with ``HEAD``: the sequence's number, whether it must end, whether there
is an error, and the number of bytes that follow. After an error they are its text.

The rows of the mapped file have the size of a mask. The child writes into the first row which sequence
it is working on; the masks follow, by the sequences' numbers.
"""

from __future__ import annotations

import struct

COMPILE_SECONDS = 2.0  # of CPU time
STEP_SECONDS = 0.1  # of CPU time, per sequence and batch
MEMORY = 256 << 20  # bytes beyond a process's initial memory
MOST_FORCED = 256  # tokens in a message
BEGIN = b"b"
COUNT = struct.Struct("<i")
DROP = -1
NOBODY = -1
HEAD = struct.Struct("<iBBI")


def too_complex(what: str, seconds: float) -> str:
    """The error for a grammar whose process died: the limits on ``what``, and the remedy."""
    return (
        f"{what} took more than {seconds:g} seconds or {MEMORY >> 20} MiB, or it is nested too "
        "deeply; make it smaller, flatter or less ambiguous"
    )


def mask_bytes(vocabulary: int) -> int:
    """Size of a mask: a bit for each token, in llguidance's words of 32 bits."""
    return -(-vocabulary // 32) * 4
