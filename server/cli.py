"""The command line: read settings, listen, load, say so, serve until told to stop.

Everything slow is imported after the settings are read, so that ``--help`` answers at once, and the
settings after Ctrl-C is dealt with. What goes wrong at start ends in one sentence and a non-zero
status.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from server import logs


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server; returns the exit status."""
    logs.open_standard_streams()
    # Until the server handles signals itself, Ctrl-C ends it as SIGTERM does: without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pydantic import ValidationError

    from server.settings import Settings

    given = list(sys.argv[1:] if argv is None else argv)
    if any(word == "" or (word.startswith("--") and word.endswith("=")) for word in given):
        # Such as --api-key "$UNSET", which would otherwise serve everybody.
        print("phi3v-server: the value of a flag is empty; leave the flag out", file=sys.stderr)
        return 2
    try:
        settings = Settings(_cli_parse_args=given)
    except ValidationError as error:
        for problem in error.errors():
            message = problem["msg"]
            if problem["loc"]:
                flag = "--" + str(problem["loc"][0]).replace("_", "-")
                message = f"{flag} (or its PHI3V_ variable): {message}, got {problem['input']!r}"
            print(f"phi3v-server: {message}", file=sys.stderr)
        return 2
    from server.run import run

    return run(settings)
