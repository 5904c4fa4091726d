"""The command line: starts the server or runs a subcommand.

Slow modules are imported only after the settings are read, to keep ``--help`` fast, and the settings
only after Ctrl-C is handled. Startup errors print one sentence and exit with a non-zero status.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar, get_args

from server import __version__
from server.telemetry import logs

if TYPE_CHECKING:
    from pydantic_settings import BaseSettings


Command = TypeVar("Command", bound="BaseSettings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the server or a subcommand; returns the exit status."""
    try:
        return _main(argv)
    finally:
        gc.freeze()  # otherwise a final collection delays the exit by most of a second


def _main(argv: Sequence[str] | None) -> int:
    logs.open_standard_streams()
    # Until the server handles signals itself, Ctrl-C exits like SIGTERM, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    given = list(sys.argv[1:] if argv is None else argv)
    if any(word == "" or (word.startswith("--") and word.endswith("=")) for word in given):
        # Such as --api-key "$UNSET", which would otherwise disable authentication.
        logs.complain("text", "a flag has an empty value; remove the flag")
        return 2
    if given[:1] == ["--version"]:
        print(f"phi3v-server {__version__}")
        return 0
    if given and not given[0].startswith("-"):
        from server.commands import COMMANDS

        if given[0] in COMMANDS:
            task = _read(COMMANDS[given[0]], given[1:])
            return 2 if task is None else _end(task.run())
    from server.settings import Settings

    settings = _read(Settings, given)
    if settings is None:
        return 2
    from server.run import run

    return _end(run(settings))


def _end(status: int) -> int:
    """Return the exit status; exit at once if a download is running, which could take hours."""
    from model import abandon_downloads

    if abandon_downloads():
        os._exit(status)
    return status


def _read(command: type[Command], given: list[str]) -> Command | None:
    """Read settings from flags and environment; if they are invalid, print why and return None."""
    from pydantic import ValidationError
    from pydantic_settings import CliPositionalArg

    positional = get_args(CliPositionalArg[object])[1]
    try:
        return command(_cli_parse_args=given)
    except ValidationError as error:
        for problem in error.errors():
            message = problem["msg"]
            if problem["loc"]:
                name = str(problem["loc"][0])
                given_as = "--" + name.replace("_", "-") + " (or its PHI3V_ variable)"
                if positional in command.model_fields[name].metadata:
                    given_as = name.upper()
                message = f"{given_as}: {message}"
                if problem["type"] != "missing":  # its input is all other settings
                    message += f", got {problem['input']!r}"
            logs.complain("text", message)
        return None
