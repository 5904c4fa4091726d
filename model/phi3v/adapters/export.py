"""Write a checkpoint with an adapter merged into it, or one that was saved in another format.

The output has the official names and file format. It appears under its name only when it is complete.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model.errors import CheckpointError
from model.phi3v.adapters import adapter as adapters
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.configuration import CONFIG as ADAPTER_CONFIG
from model.phi3v.adapters.configuration import MAX_SHOWN
from model.phi3v.adapters.model_files import model_config, model_shapes, tokenizer_directory
from model.phi3v.checkpoint import read_json
from model.phi3v.modeling import is_ignored
from model.phi3v.weights.files import (
    DTYPE_NAMES,
    DTYPES,
    INDEX,
    PICKLED_INDEX,
    PICKLED_WEIGHTS,
    WEIGHTS,
    PickledFile,
    SafetensorsFile,
    TensorFile,
    weight_files,
)
from model.phi3v.weights.names import EMBEDDING, HEAD, Naming, naming
from model.phi3v.weights.writing import nbytes, write_safetensors

logger = logging.getLogger(__name__)

CONFIG = "config.json"
COPIED = {".json", ".jinja", ".md", ".model", ".py", ".txt"}
MAX_COPIED = 64 << 20  # bytes of a file that holds no weights
NOT_COPIED = {CONFIG, INDEX, PICKLED_INDEX, ADAPTER_CONFIG, "trainer_state.json"}

_unfinished: set[Path] = set()  # folders of exports that are running


@dataclass(frozen=True)
class _Shard:
    """A file of the output: names in the source by official names, with shapes and dtypes."""

    name: str
    source: TensorFile
    names: dict[str, str]
    tensors: dict[str, tuple[tuple[int, ...], str]]


def write_merged(
    directory: Path, adapter_directory: Path | None, name: str, out: Path, dtype: str = "auto"
) -> Adapter | None:
    """Write a checkpoint, shard by shard.

    Args:
        directory: the checkpoint.
        adapter_directory: the adapter to merge; None to convert only, which also reads pickles.
        name: of the adapter, for messages.
        out: the new checkpoint's directory, which must not exist.
        dtype: that of the new weights; ``auto`` keeps the checkpoint's.

    Raises:
        CheckpointError: something cannot be read, does not fit together, or would be overwritten.
    """
    raw = read_json(directory / CONFIG)
    config = model_config(directory, raw)
    adapter = None
    if adapter_directory is not None:
        adapter = Adapter(adapter_directory, model_shapes(config), name)
    files = _open(directory, pickled=adapter_directory is None)
    naming_of_all = naming(key for file in files for key in file.headers)
    before = model_shapes(config)
    shapes = dict(before if adapter is None else adapter.shapes)
    for known in (before, shapes):
        if HEAD in naming_of_all.names:  # stored, although the configuration may tie it
            known.setdefault(HEAD, before[EMBEDDING])
    _check_names(directory, naming_of_all, before, files)
    shards = list(_shards(files, naming_of_all, shapes, dtype))
    total = sum(nbytes(*of) for shard in shards for of in shard.tensors.values())
    with _new_directory(out, total) as folder:
        changes: dict[str, Any] = {}
        if dtype != "auto":
            changes["dtype" if "dtype" in raw else "torch_dtype"] = dtype
        if adapter is not None and adapter.vocab_size is not None:
            changes["vocab_size"] = adapter.vocab_size
        _write_shards(shards, adapter, folder, total)
        tokenizer = tokenizer_directory(directory, adapter_directory, adapter)
        _copy_others(directory, tokenizer, folder, {**raw, **changes})
    return adapter


def convert_adapter(directory: Path, out: Path) -> None:
    """Write an adapter saved with ``torch.save`` as safetensors; raises CheckpointError."""
    read_json(directory / ADAPTER_CONFIG)
    if not (directory / adapters.PICKLED_WEIGHTS).is_file():
        raise CheckpointError(f"{directory} has no {adapters.PICKLED_WEIGHTS} to convert")
    file = PickledFile(directory / adapters.PICKLED_WEIGHTS)
    for name, header in file.headers.items():
        if header.dtype not in DTYPES:
            raise CheckpointError(
                f"{name} has the dtype {header.dtype}; supported are {', '.join(DTYPES)}"
            )
    tensors = {name: (header.shape, header.dtype) for name, header in file.headers.items()}
    with _new_directory(out, sum(nbytes(*of) for of in tensors.values())) as folder:
        write_safetensors(folder / adapters.WEIGHTS, tensors, file.tensor)
        for name in (ADAPTER_CONFIG, *adapters.TRAINED_BESIDE):
            if (directory / name).is_file():
                shutil.copyfile(directory / name, folder / name)


def _open(directory: Path, pickled: bool) -> list[TensorFile]:
    """All weight files of a checkpoint; pickles only where there are no safetensors files."""
    has_safetensors = (directory / WEIGHTS).exists() or (directory / INDEX).exists()
    kind: type[SafetensorsFile] | type[PickledFile] = SafetensorsFile
    if pickled and not has_safetensors:
        files, _, problems = weight_files(directory, PICKLED_WEIGHTS, PICKLED_INDEX)
        kind = PickledFile
    else:
        files, _, problems = weight_files(directory)
    if problems:
        raise CheckpointError(f"{directory}: {problems[0].subject} {problems[0].text}")
    return [kind(directory / file) for file in files]


def _check_names(
    directory: Path, found: Naming, shapes: dict[str, tuple[int, ...]], files: list[TensorFile]
) -> None:
    """Refuse a checkpoint that could not be served; warn of tensors that are left out."""
    headers = {key: header for file in files for key, header in file.headers.items()}
    if found.unmerged:
        raise CheckpointError(
            f"{directory} contains an adapter that was not merged, e.g. {found.unmerged[0]}; save the "
            "adapter alone (PEFT's save_pretrained) and pass it with --lora"
        )
    unknown = sorted(name for name in found.names.keys() - shapes.keys() if not is_ignored(name))
    if unknown:
        logger.warning(
            "not written, because they are no tensors of this model: %s%s",
            ", ".join(name[:MAX_SHOWN] for name in unknown[:3]),
            f" and {len(unknown) - 3} more" if len(unknown) > 3 else "",
        )
    for name, shape in shapes.items():
        header = headers.get(found.names.get(name, ""))
        if header is None:
            raise CheckpointError(f"{directory} lacks the tensor {name}")
        if header.shape != shape:
            raise CheckpointError(
                f"{name} in {directory} has the shape {list(header.shape)}, expected {list(shape)}"
            )
        if header.dtype not in DTYPES:
            raise CheckpointError(
                f"{name} in {directory} has the dtype {header.dtype}; supported are {', '.join(DTYPES)}"
            )


def _shards(
    files: list[TensorFile], found: Naming, shapes: dict[str, tuple[int, ...]], dtype: str
) -> Iterator[_Shard]:
    asked = {str(kind).removeprefix("torch."): name for kind, name in DTYPE_NAMES.items()}
    written: set[str] = set()
    for number, file in enumerate(files, 1):
        names = {
            official: key
            for official, key in found.names.items()
            if key in file.headers and official in shapes.keys() - written
        }
        written |= names.keys()
        tensors = {
            official: (shapes[official], asked.get(dtype, file.headers[key].dtype))
            for official, key in sorted(names.items())
        }
        name = WEIGHTS if len(files) == 1 else f"model-{number:05}-of-{len(files):05}.safetensors"
        yield _Shard(name, file, names, tensors)


def _write_shards(shards: list[_Shard], adapter: Adapter | None, folder: Path, total: int) -> None:
    with tqdm(total=total, unit="B", unit_scale=True, desc="Writing weights") as bar:
        for shard in shards:

            def read(name: str, shard: _Shard = shard) -> Any:
                dtype = DTYPES[shard.tensors[name][1]]
                tensor = shard.source.tensor(shard.names[name]).to(dtype)
                return tensor if adapter is None else adapter.merged(name, tensor)

            write_safetensors(folder / shard.name, shard.tensors, read, bar.update)
    if len(shards) > 1:
        places = {name: shard.name for shard in shards for name in shard.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        _write_json(folder / INDEX, index)


def _copy_others(directory: Path, tokenizer: Path, folder: Path, config: dict[str, Any]) -> None:
    """Copy files that hold no weights; the tokenizer's may come from elsewhere."""
    for file in sorted(directory.iterdir()):
        name = file.name
        wanted = file.suffix in COPIED or name.startswith(("LICENSE", "NOTICE"))
        if wanted and name not in NOT_COPIED and file.is_file():
            source = tokenizer / name
            use = source if _is_tokenizer(name) and source.is_file() else file
            if use.stat().st_size <= MAX_COPIED:
                shutil.copyfile(use, folder / name)
    _write_json(folder / CONFIG, config)


def _is_tokenizer(name: str) -> bool:
    return name in ("added_tokens.json", "special_tokens_map.json") or name.startswith("tokenizer")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


@contextmanager
def _new_directory(out: Path, size: int) -> Iterator[Path]:
    """A folder that gets its name when everything is in it; removed after an error."""
    if out.exists() or out.is_symlink():
        raise CheckpointError(f"{out} exists; --out takes the name of a new directory")
    parent = out.absolute().parent
    if not parent.is_dir():
        raise CheckpointError(f"{parent} does not exist; create it, or choose another --out")
    free = shutil.disk_usage(parent).free
    if size > free:
        raise CheckpointError(
            f"{out} needs {size / 1e9:.2f} GB, and its disk has {free / 1e9:.2f} GB free; free some "
            "space, or choose another --out"
        )
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", suffix=".partial", dir=parent))
    except OSError as error:
        raise CheckpointError(f"{parent} cannot be written to: {error.strerror}") from error
    _unfinished.add(folder)
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    except OSError as error:
        raise CheckpointError(f"{out} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _unfinished.discard(folder)


def abandon_exports() -> None:
    """Remove what is not finished; call before the program exits."""
    for folder in list(_unfinished):
        shutil.rmtree(folder, ignore_errors=True)
