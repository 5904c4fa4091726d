"""An adapter on disk, checked against a model's shapes, and what it does to each tensor.

Nothing but headers is read before ``Adapter.merged``, so that an adapter is refused before anything is
loaded. Trainers save whole weights that were trained beside the adapter in ``non_lora_state_dict.bin``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.errors import CheckpointError
from model.phi3v.adapters.changes import Change, add, check_shapes, part_of
from model.phi3v.adapters.configuration import AdapterConfig, read_config
from model.phi3v.weights.files import DTYPES, Header, PickledFile, SafetensorsFile, TensorFile
from model.phi3v.weights.names import EMBEDDING, HEAD, official_name, unwrapped

WEIGHTS, PICKLED_WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"
TRAINED_BESIDE = ("non_lora_state_dict.bin", "non_lora_trainables.bin")
MAX_TENSORS = 20_000
MAX_NAME = 300  # characters; the official model's longest is 100
TOWER = ".img_processor."
Shapes = Mapping[str, tuple[int, ...]]

_KEY = re.compile(
    r"(?P<layer>.+)\.lora_(?P<part>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!(?:weight|bias)$)(?P<adapter>[^.]+))?(?:\.(?P<what>weight|bias))?"
)
_NOT_MERGEABLE = re.compile(r"\.(lora_|token_adapter\.|trainable_tokens_)")


class Adapter:
    """An adapter for one model.

    Args:
        directory: with ``adapter_config.json`` and ``adapter_model.safetensors``.
        shapes: of the model's tensors, by their official names.
        name: shown to users.

    Attributes:
        config: the adapter's configuration.
        changes: what it does to tensors, by their official names.
        shapes: of the model's tensors after the merge.

    Raises:
        CheckpointError: the adapter is incomplete, for another model, or of an unsupported kind.
    """

    def __init__(self, directory: Path, shapes: Shapes, name: str) -> None:
        self.name = name
        self._before = shapes
        try:
            self.config = read_config(directory)
            self._files = list(_open_files(directory))
            self.changes = _read_changes(self._files, self.config, shapes)
            self.shapes = self._shapes_after()
            for tensor, change in self.changes.items():
                check_shapes(tensor, change, self.shapes[tensor], self._header)
            _check_complete(self.changes, self.config, shapes)
        except CheckpointError as error:
            raise CheckpointError(f"the adapter {name} cannot be used: {error}") from error

    @property
    def vocab_size(self) -> int | None:
        """The size of the vocabulary, if the adapter changes it."""
        size = self.shapes[HEAD][0] if HEAD in self.shapes else self.shapes[EMBEDDING][0]
        return None if size == self._before[EMBEDDING][0] else size

    def is_for(self, *names: str) -> bool:
        """Whether its base is a model of one of these names, or unnamed; only last parts are compared."""
        base, *known = (
            text.rstrip("/").rsplit("/", 1)[-1].lower() for text in (self.config.base, *names)
        )
        return base in ("", *known)

    def summary(self) -> str:
        """What it changes, and which parts of the model it does not, in one line."""
        parts = Counter(map(part_of, self.changes))
        there_are = Counter(map(part_of, self.shapes))
        changed = ", ".join(f"{part} {parts[part]}/{there_are[part]}" for part in sorted(parts))
        others = ", ".join(sorted(there_are.keys() - parts.keys()))
        ranks = sorted({change.rank for change in self.changes.values() if change.down})
        words = f"rank {', '.join(map(str, ranks))}: " if ranks else ""
        return f"{words}{changed}; not in it: {others or 'nothing'}"

    def work_bytes(self) -> int:
        """Most memory that ``merged`` takes for one tensor, besides that tensor."""
        return max(map(self._work_bytes, self.changes), default=0)

    def _work_bytes(self, name: str) -> int:
        change = self.changes[name]
        factors = sum(torch.Size(self._header(key).shape).numel() for key in change.factors)
        # The sum in float32, and what it is rounded to.
        return 4 * factors + 8 * torch.Size(self.shapes[name]).numel()

    def merged(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor with the adapter merged into it, in the same dtype; a new one if it changes.

        Args:
            name: official name.
            tensor: the base model's, on the CPU.

        Raises:
            CheckpointError: the result has values that are not finite.
        """
        change = self.changes.get(name)
        if change is None:
            return tensor
        if change.replacement is not None:
            tensor = self._tensor(change.replacement).to(tensor.dtype)
        result = add(change, tensor, self._tensor)
        if not torch.isfinite(result).all():
            raise CheckpointError(
                f"the adapter {self.name} cannot be used: {name} has values that are not finite "
                f"numbers after the merge in {str(tensor.dtype).removeprefix('torch.')}"
            )
        return result

    def _shapes_after(self) -> dict[str, tuple[int, ...]]:
        """The model's shapes with those of replacements, which may change the vocabulary only."""
        shapes = dict(self._before)
        for name, change in self.changes.items():
            if change.replacement is None:
                continue
            found, expected = self._header(change.replacement).shape, shapes[name]
            resized = name in (EMBEDDING, HEAD) and found[1:] == expected[1:] and found[0] > 0
            if found != expected and not resized:
                raise CheckpointError(
                    f"{change.replacement} has the shape {list(found)}, expected {list(expected)}"
                )
            shapes[name] = found
        rows = {shapes[name][0] for name in (EMBEDDING, HEAD) if name in shapes}
        if len(rows) > 1:
            raise CheckpointError(
                f"it has {shapes[EMBEDDING][0]} token embeddings but {shapes[HEAD][0]} outputs of the "
                "head; save both (PEFT's save_embedding_layers=True)"
            )
        return shapes

    def _file(self, key: str) -> TensorFile:
        return next(file for file in self._files if key in file.headers)

    def _header(self, key: str) -> Header:
        return self._file(key).headers[key]

    def _tensor(self, key: str) -> Tensor:
        return self._file(key).tensor(key)


def _open_files(directory: Path) -> Iterator[TensorFile]:
    """The adapter's file, then files of weights that were trained beside it."""
    if not (directory / WEIGHTS).exists():
        if (directory / PICKLED_WEIGHTS).exists():
            raise CheckpointError(
                f"{PICKLED_WEIGHTS} is a pickle, which can run code when loaded; convert it with "
                f"phi3v-server convert {directory} --out OUT"
            )
        raise CheckpointError(f"{WEIGHTS} is missing")
    yield SafetensorsFile(directory / WEIGHTS)
    for name in TRAINED_BESIDE:
        if (directory / name).exists():
            yield PickledFile(directory / name)


def _read_changes(
    files: list[TensorFile], config: AdapterConfig, shapes: Shapes
) -> dict[str, Change]:
    """Sort the tensors of the files by the model's tensors that they change."""
    total = sum(len(file.headers) for file in files)
    if total > MAX_TENSORS:
        raise CheckpointError(f"it has {total} tensors; at most {MAX_TENSORS} are read")
    changes: dict[str, Change] = {}
    for index, file in enumerate(files):
        for key, header in file.headers.items():
            if len(key) > MAX_NAME or not key.isprintable():
                raise CheckpointError(
                    f"it has a tensor whose name is longer than {MAX_NAME} characters or not printable: "
                    f"{key[:40]!r}"
                )
            if header.dtype not in DTYPES:
                raise CheckpointError(
                    f"{key} has the dtype {header.dtype}; supported are {', '.join(DTYPES)}"
                )
            match = _KEY.fullmatch(key)
            if match is not None:
                _add_factor(changes, key, match, config, shapes)
            elif _NOT_MERGEABLE.search(key):
                raise CheckpointError(
                    f"{key} is of a kind that cannot be merged; merge it with PEFT"
                )
            elif ".original_module." not in key:
                # Weights trained beside the adapter count less than what PEFT itself saved.
                _add_replacement(changes, key, shapes, config, first=index == 0)
    if not any(change.factors or change.replacement for change in changes.values()):
        raise CheckpointError("it has no tensors")
    return changes


def _add_factor(
    changes: dict[str, Change],
    key: str,
    match: re.Match[str],
    config: AdapterConfig,
    shapes: Shapes,
) -> None:
    layer, part, what = match["layer"], match["part"], match["what"] or "weight"
    name = f"{official_name(f'{layer}.{what}')}"
    if name in (EMBEDDING, HEAD) and HEAD not in shapes:
        raise CheckpointError(f"{key} changes an embedding that the model shares with its head")
    if name not in shapes:
        if what == "bias" and f"{name.removesuffix('bias')}weight" in shapes:
            raise CheckpointError(f"{key} is for a bias, but the layer has none")
        raise _other_model(key, config)
    slot = {"A": "down", "B": "up", "embedding_A": "down", "embedding_B": "up"}.get(
        part, "magnitude"
    )
    old = changes.get(name, Change())
    if getattr(old, slot) is not None:
        raise CheckpointError(
            f"{key} and {getattr(old, slot)} are for the same layer; save one adapter only"
        )
    kind = "embedding" if part.startswith("embedding") else old.kind
    layer_name = unwrapped(layer)
    changes[name] = replace(
        old,
        **{slot: key},
        kind=kind,
        rank=config.rank_of(layer_name),
        scaling=config.scaling_of(layer_name),
    )


def _add_replacement(
    changes: dict[str, Change], key: str, shapes: Shapes, config: AdapterConfig, first: bool
) -> None:
    name = official_name(key)
    if name in (EMBEDDING, HEAD) and HEAD not in shapes:
        raise CheckpointError(f"{key} replaces an embedding that the model shares with its head")
    if name not in shapes:
        raise _other_model(key, config)
    old = changes.get(name, Change())
    if old.replacement is None or first:
        changes[name] = replace(old, replacement=key)


def _other_model(key: str, config: AdapterConfig) -> CheckpointError:
    trained_on = f"; it was trained on {config.base}" if config.base else ""
    return CheckpointError(f"{key} is for a layer that this model does not have{trained_on}")


def _check_complete(changes: Mapping[str, Change], config: AdapterConfig, shapes: Shapes) -> None:
    """Refuse an adapter that lacks a half of a layer, or a layer that it was trained on."""
    for name, change in changes.items():
        lacks = change.lacks(dora=config.dora)
        if lacks is not None:
            raise CheckpointError(
                f"it has only a part of the adapter of {name}: {lacks} is missing"
            )
    changed = {name for name, change in changes.items() if change.up or change.replacement}
    missing = [
        name
        for name, shape in shapes.items()
        if name.endswith(".weight")
        and len(shape) >= 2
        and name not in changed
        and all(
            config.has_target(layer, _is_linear(layer, shape))
            for layer in _spellings(name, changes)
        )
    ]
    missing += [
        name
        for name in shapes
        if config.is_saved(name.rpartition(".")[0])
        and not (name in changes and changes[name].replacement)
    ]
    if missing:
        raise CheckpointError(
            f"it lacks {len(missing)} of the layers that it was trained on, e.g. {missing[0]}; save it "
            "again or copy the whole file"
        )


def _is_linear(layer: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not layer.endswith(("position_embedding", "embed_tokens"))


def _spellings(name: str, changes: Mapping[str, Change]) -> set[str]:
    """The names that a layer may have had in training: in the tower there are two."""
    keys = [key for change in changes.values() for key in change.factors if TOWER in key]
    layer = name.removesuffix(".weight")
    long, short = layer, layer.replace(f"{TOWER}vision_model.", TOWER)
    if not keys:
        return {long, short}
    return {long} if f"{TOWER}vision_model." in keys[0] else {short}
