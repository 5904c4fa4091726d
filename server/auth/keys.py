"""API keys and their callers, from settings and from a file that is reloaded when it changes.

The file and the variable ``PHI3V_API_KEYS`` are TOML. Each entry is a caller's name and key, or a table
with limits. Unlike flags, variables and files do not show up in the process list.

    alice = "a-long-random-key"

    [bob]
    key = "another-long-random-key"
    requests-per-minute = 60
    tokens-per-minute = 100000
    concurrent-requests = 4
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import secrets
import tempfile
import tomllib
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from server.auth.limits import Caller, Limits

logger = logging.getLogger(__name__)

THE_KEY = "api-key"  # the caller of --api-key
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
KEY = r"[!-~]+"  # characters that a header value can carry
LOOK_EVERY = 1.0  # seconds between checks for changes of the file


class KeysError(ValueError):
    """The keys are invalid; the message says which and why, without the key itself."""


class _Entry(BaseModel):
    """The TOML table of a caller."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    key: str = Field(pattern=f"^{KEY}$", max_length=1024)
    requests_per_minute: int | None = Field(None, ge=1, alias="requests-per-minute")
    tokens_per_minute: int | None = Field(None, ge=1, alias="tokens-per-minute")
    concurrent_requests: int | None = Field(None, ge=1, alias="concurrent-requests")


class Keys:
    """The valid keys.

    Args:
        key: value of ``--api-key``.
        text: value of ``PHI3V_API_KEYS``.
        file: value of ``--api-keys-file``; reloaded when it changes.
        limits: limits of callers that do not set their own.

    Raises:
        KeysError: the keys are invalid.
    """

    def __init__(
        self, key: str | None, text: str | None, file: Path | None, limits: Limits
    ) -> None:
        # Keys are looked up by a keyed digest, so that timing reveals nothing about a key and does not
        # depend on the number of keys.
        self._secret = secrets.token_bytes(32)
        self._limits = limits
        self._fixed: dict[bytes, Caller] = {}
        if key is not None:
            self._fixed[self._digest(key)] = Caller(THE_KEY, limits)
        if text is not None:
            self._read(text, "PHI3V_API_KEYS", self._fixed)
        self._file = file
        self._callers = self._fixed
        self._seen: object = None
        if file is not None:
            self._seen = _signature(file)
            self._callers = self._from_file(file)

    def __len__(self) -> int:
        return len(self._callers)

    def find(self, sent: str) -> Caller | None:
        """The caller with that key, if any."""
        return self._callers.get(self._digest(sent))

    def reload(self) -> None:
        """Reload the file. If it is invalid, log an error and keep the previous keys."""
        if self._file is None:
            return
        self._seen = _signature(self._file)
        try:
            callers = self._from_file(self._file)
        except KeysError as error:
            logger.error("%s; keeping the previous %d keys", error, len(self))
            return
        self._callers = callers
        logger.info("reloaded %s; valid keys: %d", self._file, len(self))

    async def follow(self, hangup: asyncio.Event) -> None:
        """Reload whenever the file changes or ``hangup`` is set; runs until cancelled."""
        if self._file is None:
            return
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(hangup.wait(), LOOK_EVERY)
            if hangup.is_set() or await asyncio.to_thread(_signature, self._file) != self._seen:
                hangup.clear()
                await asyncio.to_thread(self.reload)

    def _digest(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode(), key=self._secret, digest_size=32).digest()

    def _from_file(self, file: Path) -> dict[bytes, Caller]:
        callers = dict(self._fixed)
        try:
            text = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise KeysError(f"the key file {file} cannot be read: {error}") from error
        self._read(text, f"the key file {file}", callers)
        return callers

    def _read(self, text: str, source: str, callers: dict[bytes, Caller]) -> None:
        """Add the callers in TOML text; raises KeysError."""
        try:
            entries = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise KeysError(f"{source} is not valid TOML: {error}") from error
        if not entries:
            raise KeysError(f'{source} has no keys; write NAME = "KEY" lines')
        names = {caller.name for caller in callers.values()}
        for name, value in entries.items():
            if name in names or not NAME.fullmatch(name):
                raise KeysError(
                    f"{source}: {name[:64]!r} is not a valid caller name, or is taken; use up to 64 "
                    "letters, digits, '.', '_' and '-'"
                )
            try:
                entry = _Entry.model_validate({"key": value} if isinstance(value, str) else value)
            except ValidationError as error:
                problem = error.errors(include_input=False, include_url=False)[0]
                where = ".".join(map(str, (name, *problem["loc"])))
                raise KeysError(f"{source}: {where}: {problem['msg']}") from None
            digest = self._digest(entry.key)
            if digest in callers:
                raise KeysError(f"{source}: {name} and {callers[digest].name} have the same key")
            own = {
                limit: value
                for limit, value in entry.model_dump(exclude={"key"}).items()
                if value is not None
            }
            callers[digest] = Caller(name, replace(self._limits, **own))


def generated_key(file: Path) -> str:
    """Read the key from a file that contains nothing else; create it with a random key if it is missing.

    Raises:
        KeysError: the file cannot be created or read, or contains no key.
    """
    try:
        if not file.exists():
            _make(file, secrets.token_urlsafe(32))
        key = file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise KeysError(f"the key file {file} cannot be created or read: {error}") from error
    if not re.fullmatch(KEY, key):
        raise KeysError(
            f"the key file {file} must contain one key and nothing else; delete it to generate a new one"
        )
    return key


def _make(file: Path, key: str) -> None:
    """Create a file atomically, so that no reader sees it half-written; an existing one is kept."""
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.") as whole:
        whole.write(f"{key}\n")
        whole.flush()
        with contextlib.suppress(FileExistsError):
            os.link(whole.name, file)


def _signature(file: Path) -> object:
    """A value that changes whenever the file is edited or replaced; None if it is missing."""
    try:
        stat = file.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
