"""Find a checkpoint by name: a local directory or a model on the Hugging Face Hub.

The Hub's own client downloads safetensors and JSON files into its cache (``HF_HOME``), at a pinned
revision. It reads ``HF_TOKEN``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE``. Every failure becomes a
``CheckpointError`` of one sentence. Does not import torch.
"""

from __future__ import annotations

import errno
import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.phi3v.checkpoint import first_line, pickles, refusal_of_pickle

logger = logging.getLogger(__name__)

OFFICIAL = "microsoft/Phi-3-vision-128k-instruct"
# Default revisions. They are commits, so that a push to the Hub changes nothing here.
REVISIONS = {
    OFFICIAL: "c45209e90a4c4f7d16b2e9d48503c7f3e83623ed",
    "microsoft/Phi-3.5-vision-instruct": "4a0d683eba9f1d0cbfb6151705d1ee73c25a80ca",
}
NEWEST = "main"  # the default for models without a pinned revision
FILES = ("*.json", "*.safetensors")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "non_lora_*.bin",  # read as tensors only
    "tokenizer*.json",
)
NOT_FILES = ["*/*"]  # subfolders hold files for other programs
GB = 1e9
PARTIAL = ".incomplete"  # suffix of unfinished downloads; they are never resumed

_at_work = threading.Event()  # set while a download runs


def find_checkpoint(model: str, revision: str | None = None) -> Path:
    """Return the checkpoint's directory; download it if ``model`` is not a local path.

    Args:
        model: a directory, or a Hub id, e.g. ``microsoft/Phi-3-vision-128k-instruct``.
        revision: branch, tag or commit on the Hub; default: the pinned one, or ``main``.

    Raises:
        CheckpointError: there is no such directory, or the download fails.
    """
    path = _local(model, "--model", "a checkpoint")
    if path is None:
        return _download(Wanted(model, revision or REVISIONS.get(model, NEWEST)))
    _refuse_pickles(path)
    return path


def find_adapter(name: str, revision: str | None = None) -> Path:
    """Like ``find_checkpoint``, for an adapter."""
    path = _local(name, "--lora", "an adapter")
    if path is None:
        wanted = Wanted(name, revision or NEWEST, ADAPTER_FILES, ADAPTER_FILES[:2])
        return _download(wanted)
    return path


@dataclass(frozen=True)
class Wanted:
    """What to download.

    Attributes:
        model: id on the Hub.
        revision: branch, tag or commit.
        files: patterns of the files' names.
        needed: patterns of which each must match a file.
    """

    model: str
    revision: str
    files: tuple[str, ...] = FILES
    needed: tuple[str, ...] = ("config.json", "*.safetensors")


def _local(name: str, flag: str, what: str) -> Path | None:
    """The directory, if it exists; None for a Hub id."""
    path = Path(name).expanduser()
    if path.exists():
        if not path.is_dir():
            raise CheckpointError(f"{name} is a file; {flag} takes the directory of {what}")
        return path
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or name.endswith("/"):
        raise CheckpointError(f"{name} does not exist; {flag} takes a directory or a Hub id")
    return None


def _refuse_pickles(directory: Path) -> None:
    """Raise CheckpointError for weights in a format that can run code when loaded."""
    if found := pickles(directory):
        raise CheckpointError(f"{directory} contains {refusal_of_pickle(directory, found[0])}")


def abandon_downloads() -> bool:
    """Remove partly downloaded files; call before the program exits.

    Returns:
        whether a download is running; then only ``os._exit`` exits without waiting for it.
    """
    import psutil

    if not _at_work.is_set():
        return False
    for file in psutil.Process().open_files():
        if file.path.endswith(PARTIAL):
            Path(file.path).unlink(missing_ok=True)
    return True


def _remove_leftovers(model: str) -> None:
    """Remove partial files of killed downloads, recognized by their free locks."""
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # not in __all__

    folder = repo_folder_name(repo_id=model, repo_type="model")
    for part in (_cache() / folder / "blobs").glob(f"*{PARTIAL}"):
        etag = part.name.split(".")[0]
        with (
            suppress(OSError),  # the lock is held, or the cache is read-only
            WeakFileLock(_cache() / ".locks" / folder / f"{etag}.lock", timeout=0.1),
        ):
            part.unlink(missing_ok=True)


def _download(wanted: Wanted) -> Path:
    """Download missing files and return the model's directory in the Hub's cache."""
    _at_work.set()
    try:
        return _download_missing(wanted)
    finally:
        _at_work.clear()


def _download_missing(wanted: Wanted) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, LocalEntryNotFoundError

    model, revision = wanted.model, wanted.revision
    # Without its own handler the client logs through ours, once.
    logging.getLogger("huggingface_hub").handlers.clear()
    snapshot: partial[Any] = partial(
        snapshot_download,
        model,
        revision=revision,
        allow_patterns=list(wanted.files),
        ignore_patterns=NOT_FILES,
    )
    try:
        try:
            files = snapshot(dry_run=True, tqdm_class=_no_bar())
        except DryRunError as error:  # the Hub is unreachable; use a complete cached copy
            try:
                return Path(snapshot(local_files_only=True))
            except LocalEntryNotFoundError:
                raise error from error.__cause__
        _remove_leftovers(model)
        _check_files(wanted, [file.filename for file in files])
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
    """A progress bar that shows nothing, for short operations."""
    from tqdm import tqdm  # imported late: it reads TQDM_DISABLE at import

    class NoBar(tqdm):  # type: ignore[type-arg]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "disable": True})

    return NoBar


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _check_files(wanted: Wanted, names: Sequence[str]) -> None:
    """Raise CheckpointError for unsupported checkpoints before downloading gigabytes."""
    for pattern in wanted.needed:
        if not any(fnmatch(name, pattern) for name in names):
            what = "safetensors file" if pattern.startswith("*") else pattern
            raise CheckpointError(
                f"{wanted.model}, revision {wanted.revision}, has no {what}; this server needs "
                "a checkpoint in the transformers format with safetensors weights, or an adapter in "
                "PEFT's"
            )


def _check_space(model: str, needed: int, directory: Path) -> None:
    """Raise CheckpointError if the disk has no room for the download."""
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise CheckpointError(
            f"downloading {model} needs {needed / GB:.2f} GB in {directory}, which has {free / GB:.2f} "
            "GB free; free some space, or set HF_HOME to a folder on another disk"
        )


def _why(model: str, revision: str, error: Exception) -> str:
    """Why a download failed and what to do, in one sentence."""
    import httpx2
    from huggingface_hub import constants, errors

    for cause in _causes(error):
        status = cause.response.status_code if isinstance(cause, errors.HfHubHTTPError) else None
        if isinstance(cause, errors.OfflineModeIsEnabled):
            return (
                f"{model}, revision {revision}, is incomplete in the cache {_cache()}, and "
                "HF_HUB_OFFLINE forbids downloads; unset it for one start"
            )
        if isinstance(cause, errors.GatedRepoError):
            return (
                f"{model} is gated; accept its conditions on its Hub page and set HF_TOKEN to a token "
                "of the same account"
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return (
                f"{constants.ENDPOINT} has no model {model}, or it is private; check the name, and "
                "set HF_TOKEN for a private model"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return (
                f"{model} has no revision {revision} at {constants.ENDPOINT}; --revision takes a "
                "branch, a tag or a commit"
            )
        if status in (401, 403):
            return (
                f"{constants.ENDPOINT} rejected the token for {model} (status {status}); set HF_TOKEN "
                "to a valid token with read access, or unset it"
            )
        if status is not None:
            return f"{constants.ENDPOINT} returned status {status} for {model}; try again later"
        if isinstance(cause, errors.HFValidationError):
            return f"{model} is neither an existing directory nor a Hub id: {first_line(cause)}"
        if isinstance(cause, httpx2.TransportError):
            return (
                f"{model} is incomplete in the cache, and {constants.ENDPOINT} cannot be reached "
                f"({first_line(cause)}); check the network, or set HF_ENDPOINT to a mirror; "
                "complete files are kept"
            )
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"no space left in {_cache()} for {model}; free some space, or set HF_HOME"
        if isinstance(cause, OSError) and cause.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return (
                f"{model} cannot be written to {_cache()}: {cause.strerror}; set HF_HOME to a "
                "writable folder"
            )
    return f"{model} could not be downloaded: {first_line(error)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its chain of causes."""
    while error is not None:
        yield error
        error = error.__cause__
