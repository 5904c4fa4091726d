"""What the server and a grammar's processes say to each other, and what those may take.

The process that compiles gets ``{"kind", "source"}`` in JSON and answers with ``{"bytes"}``, its
memory; or with ``{"error"}`` and, for a schema, ``{"place"}``. Then each ``BEGIN`` comes with a
socket and a file to be mapped, for a child that follows answers.

That child gets batches of 32-bit integers: how many there are, and for each answer its number, how
many tokens it goes on by, and those. An answer begins with its first tokens, which may be none, and ends
with ``DROP`` in place of a count. The child answers a batch with messages: for each answer the ids of
the tokens that are forced then; and after all of these, for each that need not end, an empty one once
the mask of what may come next is in the mapped file. A message begins with ``HEAD``: the answer's
number, whether it must end, whether something is wrong with it, and how many bytes follow. Where
something is wrong they say what.

The mapped file has rows of a mask's size. In the first one the child says which answer it is busy with;
then come the masks, by the answers' numbers.
"""

from __future__ import annotations

import struct

COMPILE_SECONDS = 2.0  # of processor time
STEP_SECONDS = 0.1  # of processor time, for an answer's part of a batch
MEMORY = 256 << 20  # bytes beyond what a process begins with
MOST_FORCED = 256  # tokens in a message
BEGIN = b"b"
COUNT = struct.Struct("<i")
DROP = -1
NOBODY = -1
HEAD = struct.Struct("<iBBI")


def mask_bytes(vocabulary: int) -> int:
    """Size of a mask: a bit for each token, in llguidance's words of 32 bits."""
    return -(-vocabulary // 32) * 4
