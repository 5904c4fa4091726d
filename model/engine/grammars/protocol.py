"""The messages between the server and a grammar's processes, and the limits on those.

The process that compiles is sent ``{"kind", "source"}`` in JSON and replies with ``{"bytes"}``, its
memory; or with ``{"error"}`` and, for a schema, ``{"place"}``. Each ``BEGIN`` then comes with a socket
and a file to map, for a child that follows sequences.

The child is sent batches of 32-bit integers: their count, then for each sequence its number, how many
tokens it advances by, and those tokens. A sequence starts with its first tokens, perhaps none, and
ends with ``DROP`` in place of a count.

The child replies to a batch first with a message for each sequence: the ids of the tokens that are
now forced. Then, for each sequence that need not end, follows an empty message once the mask of what
may come next is in the mapped file. A message begins with ``HEAD``: the sequence's number, whether it
must end, whether there is an error, and how many bytes follow. After an error these are its text.

The mapped file has rows of a mask's size. In the first row the child writes which sequence it is busy
with; the masks follow, by the sequences' numbers.
"""

from __future__ import annotations

import struct

COMPILE_SECONDS = 2.0  # of processor time
STEP_SECONDS = 0.1  # of processor time, for a sequence's part of a batch
MEMORY = 256 << 20  # bytes beyond what a process begins with
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
