"""What the server and a grammar's processes say to each other, and what those may take.

The process that compiles gets ``{"kind", "source"}`` in JSON and answers with ``{"bytes"}``, its
memory; or with ``{"error"}`` and, for a schema, ``{"place"}``. Then each ``BEGIN`` comes with a
socket, for a child that follows an answer.

That child is sent tokens, and replies to each, and once unasked, with one message or two: the ids of
the forced tokens; and, unless the answer must end, the mask of what may come next, as soon as it has
been computed. A message begins with ``HEAD``: whether the answer must end, whether something is wrong,
and how many bytes follow. Where something is wrong they say what, and are the last.
"""

from __future__ import annotations

import struct

COMPILE_SECONDS = 2.0  # of processor time
STEP_SECONDS = 0.5  # of processor time, for a reply and a mask
MEMORY = 256 << 20  # bytes beyond what a process begins with
MOST_FORCED = 256  # tokens in a reply
BEGIN = b"b"
TOKEN = struct.Struct("<i")
GO_ON = -1  # in place of a token: the forced ones have been taken, and there may be more
HEAD = struct.Struct("<BBI")


def mask_bytes(vocabulary: int) -> int:
    """Size of a mask: a bit for each token, in llguidance's words of 32 bits."""
    return -(-vocabulary // 32) * 4
