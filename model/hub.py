"""From a checkpoint's name to its directory: a local one, or a model of the Hugging Face hub.

Downloads go through the hub's own client into its cache (``HF_HOME``): safetensors and JSON files
only, at a pinned revision. The client reads ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``. All
that can go wrong becomes one ``CheckpointError`` of one sentence. Imports no torch.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.phi3v.checkpoint import first_line, pickles

logger = logging.getLogger(__name__)

OFFICIAL = "microsoft/Phi-3-vision-128k-instruct"
# What is served unless another revision is named: commits of before this was written, so that a
# push to the hub changes nothing here.
REVISIONS = {
    OFFICIAL: "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed",
    "microsoft/Phi-3.5-vision-instruct": "4a0d683eba9f1d0cbfb6151705d1ee73c25a80ca",
}
NEWEST = "main"  # of models without a pinned revision
FILES = ["*.json", "*.safetensors"]
NOT_FILES = ["*/*"]  # what is in folders is for other programs
GB = 1e9
PARTIAL = ".incomplete"  # ends the names of files until they are whole; none is gone on with

_at_work = threading.Event()  # set while something is downloaded


def find_checkpoint(model: str, revision: str | None = None) -> Path:
    """The checkpoint's directory, downloaded from the hub when ``model`` is no local path.

    Args:
        model: a directory, or a hub id such as ``microsoft/Phi-3-vision-128k-instruct``.
        revision: branch, tag or commit on the hub; by default the pinned one, or ``main``.

    Raises:
        CheckpointError: no such directory, or the hub does not have it or cannot be reached.
    """
    path = Path(model).expanduser()
    if path.exists():
        if not path.is_dir():
            raise CheckpointError(f"{model} is a file; --model takes a checkpoint's directory")
        _refuse_pickles(path)
        return path
    if model.count("/") != 1 or model.startswith((".", "~", "/")) or model.endswith("/"):
        raise CheckpointError(f"{model} does not exist; --model takes a directory or a hub id")
    return _download(model, revision or REVISIONS.get(model, NEWEST))


def _refuse_pickles(directory: Path) -> None:
    """Raise CheckpointError for weights in a format that can run code when it is read."""
    if found := pickles(directory):
        raise CheckpointError(
            f"{directory} holds {found[0]}, a pickle, which could run code when it is loaded; this "
            "server reads safetensors only: convert the weights to them and remove the pickles"
        )


def abandon_downloads() -> bool:
    """Remove partly downloaded files, before a program ends that may be downloading a checkpoint.

    Returns:
        whether a download is running; ``os._exit`` is then the only end that does not wait for it.
    """
    import psutil

    if not _at_work.is_set():
        return False
    for file in psutil.Process().open_files():
        if file.path.endswith(PARTIAL):
            Path(file.path).unlink(missing_ok=True)
    return True


def _remove_leftovers(model: str) -> None:
    """Remove parts of files whose download was killed: nobody holds the lock of theirs."""
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # it is there

    folder = repo_folder_name(repo_id=model, repo_type="model")
    for part in (_cache() / folder / "blobs").glob(f"*{PARTIAL}"):
        etag = part.name.split(".")[0]
        with (
            suppress(OSError),  # somebody has the lock, or the cache is only to be read
            WeakFileLock(_cache() / ".locks" / folder / f"{etag}.lock", timeout=0.1),
        ):
            part.unlink(missing_ok=True)


def _download(model: str, revision: str) -> Path:
    """The model's directory in the hub's cache, after what it lacks is downloaded."""
    _at_work.set()
    try:
        return _download_missing(model, revision)
    finally:
        _at_work.clear()


def _download_missing(model: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    # The client's lines belong into the program's log, once.
    logging.getLogger("huggingface_hub").handlers.clear()
    snapshot: partial[Any] = partial(
        snapshot_download,
        model,
        revision=revision,
        allow_patterns=FILES,
        ignore_patterns=NOT_FILES,
    )
    try:
        try:
            files = snapshot(dry_run=True, tqdm_class=_no_bar())
        except DryRunError as error:  # the hub does not answer; a complete copy of before will do
            try:
                return Path(snapshot(local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from error.__cause__
        _remove_leftovers(model)
        _check_files(model, revision, [file.filename for file in files])
        missing = sum(file.file_size or 0 for file in files if file.will_download)
        if missing:
            directory = _cache()
            _check_space(model, missing, directory)
            logger.info(
                "downloading %s, revision %s: %.2f GB into %s",
                model,
                revision,
                missing / GB,
                directory,
            )
        return Path(snapshot())
    except CheckpointError:
        raise
    except Exception as error:
        logger.debug("downloading %s failed", model, exc_info=True)
        raise CheckpointError(_why(model, revision, error)) from error


def _no_bar() -> type[Any]:
    """A progress bar that shows nothing, for what takes a moment."""
    from tqdm import tqdm  # which at its import reads whether bars are wanted

    class NoBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return NoBar


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_files(model: str, revision: str, names: Sequence[str]) -> None:
    """Raise CheckpointError before gigabytes are downloaded that cannot be served."""
    for what, there in (
        ("config.json", "config.json" in names),
        ("safetensors file", any(name.endswith(".safetensors") for name in names)),
    ):
        if not there:
            raise CheckpointError(
                f"{model}, revision {revision}, has no {what}; this server needs a checkpoint in "
                "transformers' format with its weights as safetensors"
            )


def _check_space(model: str, needed: int, directory: Path) -> None:
    """Raise CheckpointError where the disk is too full for the download."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"{model} takes {needed / GB:.2f} GB more in {directory}, where {free / GB:.2f} GB are "
            "free; make room, or name a folder on another disk as HF_HOME"
        )


def _why(model: str, revision: str, error: Exception) -> str:
    """What went wrong with a download and what to do, in a sentence."""
    import httpx2
    from huggingface_hub import constants, errors

    for cause in _causes(error):
        status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"{model}, revision {revision}, is not complete in the cache {_cache()}, and "
                "HF_HUB_OFFLINE forbids to download it; start once without it"
            )
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"{model} is gated; accept its conditions on its page of the hub and set HF_TOKEN to "
                "a token of that account"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{constants.ENDPOINT} has no model {model}, or a private one; check the name, and "
                "set HF_TOKEN if it is private"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return (
                f"{model} has no revision {revision} at {constants.ENDPOINT}; --revision takes a "
                "branch, a tag or a commit"
            )
        if status in (401, 403):
            return (
                f"{constants.ENDPOINT} refuses the token for {model} (status {status}); set HF_TOKEN "
                "to a valid one that may read it, or unset it"
            )
        if status is not None:
            return (
                f"{constants.ENDPOINT} answered with status {status} when {model} was asked for; try "
                "again later"
            )
        if isinstance(cause, errors.HFValidationError):
            return f"{model} does not exist, and it is no hub id either: {first_line(cause)}"
        if isinstance(cause, httpx2.TransportError):
            return (
                f"{model} is not complete in the cache, and {constants.ENDPOINT} cannot be reached "
                f"({first_line(cause)}); check the network, or name a mirror as HF_ENDPOINT; what is "
                "downloaded is kept"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"there is no room left in {_cache()} for {model}; make some, or set HF_HOME"
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{model} cannot be written to {_cache()}: {cause.strerror}; set HF_HOME"
    return f"{model} could not be downloaded: {first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it was raised from, and so on."""
    while error is not None:
        yield error
        error = error.__cause__
