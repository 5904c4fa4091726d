"""What the program does besides serving: ``download`` a checkpoint, ``check`` one.

The result goes to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, CliPositionalArg, SettingsConfigDict

from model import OFFICIAL, CheckpointError, find_checkpoint
from server import logs
from server.settings import Settings

class Download(BaseSettings):
    """Download a checkpoint into the hub's cache, if it is not there, and print its directory."""

    model_config = SettingsConfigDict(
        {**Settings.model_config, "cli_prog_name": "phi3v-server download"}
    )

    model: CliPositionalArg[str] = Field(
        OFFICIAL, min_length=1, description="hub id; Microsoft's by default"
    )
    revision: str | None = Field(
        None,
        min_length=1,
        description="branch, tag or commit; by default the commit that is pinned for Microsoft's "
        "models, or main",
    )

    def run(self) -> int:
        """Download; returns the exit status."""
        log = logs.start("text", "info")
        try:
            directory = find_checkpoint(self.model, self.revision)
        except CheckpointError as error:
            print(f"phi3v-server: {error}", file=sys.stderr)
            return 1
        finally:
            log.finish()
        print(directory)
        return 0


