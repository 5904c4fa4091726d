"""Check whether a directory holds a supported checkpoint, without loading its weights.

Reports all problems, while loading stops at the first. Reads only the headers of safetensors files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from model.errors import CheckpointError
from model.phi3v.checkpoint import first_line, pickles, read_json
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.defaults import GENERATION_CONFIG, default_parameters
from model.phi3v.inputs.image_processing import ImageProcessor
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.modeling import IGNORED_ON_LOAD, official_shapes

CONFIG, INDEX, WEIGHTS = "config.json", "model.safetensors.index.json", "model.safetensors"
ITEM_SIZES = {"BF16": 2, "F16": 2, "F32": 4}  # bytes of the supported dtypes


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        subject: a file, or a tensor.
        ok: whether it is valid.
        text: what was found, or what is wrong.
    """

    subject: str
    ok: bool
    text: str


@dataclass(frozen=True)
class Header:
    """A tensor's entry in the header of a safetensors file."""

    file: str
    shape: tuple[int, ...]
    dtype: str


def check_files(directory: Path) -> list[Finding]:
    """Check every file; returns all findings, and never raises for an invalid file."""
    if not directory.is_dir():
        return [Finding(str(directory), False, "is not a directory")]
    findings = [
        Finding(name, False, "is a pickle, which can run code when loaded; remove it")
        for name in pickles(directory)
    ]
    config, found = _check_config(directory)
    findings.append(found)
    findings.append(_check_tokenizer(directory, config))
    findings.append(_check_image_processor(directory))
    findings += _check_defaults(directory)
    findings += _check_weights(directory, config)
    return findings


def read_headers(directory: Path) -> dict[str, Header]:
    """Shapes and dtypes of all tensors of a checkpoint, by name.

    Raises:
        CheckpointError: files are missing or cannot be read.
    """
    files, _, problems = _weight_files(directory)
    if problems:
        raise CheckpointError(f"{problems[0].subject} {problems[0].text}")
    headers: dict[str, Header] = {}
    for file in files:
        try:
            headers |= _read_headers(directory / file)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error
    return headers


def _check_config(directory: Path) -> tuple[Phi3VConfig | None, Finding]:
    try:
        raw = read_json(directory / CONFIG)
        if raw.get("model_type") != "phi3_v":
            text = f"is for a {raw.get('model_type')!r} model; this server runs 'phi3_v' only"
            return None, Finding(CONFIG, False, text)
        config = Phi3VConfig(**raw)
        _ = config.vision_config
    except Exception as error:  # the library raises many kinds
        return None, Finding(CONFIG, False, first_line(error))
    text = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"context window of {config.context_window} tokens"
    )
    return config, Finding(CONFIG, True, text)


def _check_defaults(directory: Path) -> list[Finding]:
    """A finding if the default parameters are invalid; the file is optional."""
    try:
        default_parameters(directory)
    except CheckpointError as error:
        return [Finding(GENERATION_CONFIG, False, first_line(error))]
    return []


def _check_tokenizer(directory: Path, config: Phi3VConfig | None) -> Finding:
    name = "tokenizer.json"
    try:
        tokenizer = Phi3VTokenizer(directory)
    except Exception as error:  # the library raises many kinds
        return Finding(name, False, first_line(error))
    highest = tokenizer.highest_id
    if config is not None and highest >= config.vocab_size:
        text = f"has ids up to {highest}, but vocab_size in {CONFIG} is {config.vocab_size}"
        return Finding(name, False, text)
    return Finding(name, True, f"ids up to {highest}, with Phi-3's control tokens")


def _check_image_processor(directory: Path) -> Finding:
    name = "preprocessor_config.json"
    try:
        processor = ImageProcessor.from_checkpoint(directory)
    except CheckpointError as error:
        return Finding(name, False, first_line(error))
    return Finding(name, True, f"up to {processor.num_crops} crops per image")


def _check_weights(directory: Path, config: Phi3VConfig | None) -> Iterator[Finding]:
    """Compare files with the index, and tensors with the architecture."""
    files, index, problems = _weight_files(directory)
    yield from problems
    tensors: dict[str, Header] = {}
    for file in files:
        try:
            headers = _read_headers(directory / file)
        except (OSError, SafetensorError) as error:
            yield Finding(file, False, f"cannot be read ({first_line(error)}); download it again")
            continue
        size = (directory / file).stat().st_size
        yield Finding(file, True, f"{len(headers)} tensors, {size / 1e9:.2f} GB")
        for name, header in headers.items():
            if name in tensors:
                yield Finding(name, False, f"is in {tensors[name].file} and in {file}")
            tensors[name] = header
    if index is not None:
        yield from _check_index(index, tensors)
    if config is not None:
        yield from _check_tensors(tensors, config)


def _weight_files(directory: Path) -> tuple[list[str], dict[str, str] | None, list[Finding]]:
    """Files to read, the index from tensors to files, and problems with the index."""
    if (directory / WEIGHTS).exists():  # transformers prefers it to an index
        return [WEIGHTS], None, []
    if not (directory / INDEX).exists():
        return [], None, [Finding(WEIGHTS, False, f"is missing, and so is {INDEX}")]
    try:
        places = read_json(directory / INDEX).get("weight_map")
    except CheckpointError as error:
        return [], None, [Finding(INDEX, False, first_line(error))]
    if not isinstance(places, dict) or not all(isinstance(to, str) for to in places.values()):
        return [], None, [Finding(INDEX, False, "has no weight_map from tensors to files")]
    files = sorted(set(places.values()))
    missing = [file for file in files if not (directory / file).is_file()]
    problems = [Finding(file, False, f"is missing, but listed in {INDEX}") for file in missing]
    return [file for file in files if file not in missing], places, problems


def _read_headers(file: Path) -> dict[str, Header]:
    """Read shapes and dtypes; the library checks the file's size."""
    with safe_open(file, framework="pt") as opened:
        names = opened.keys()
        slices: dict[str, Any] = {name: opened.get_slice(name) for name in names}
        return {
            name: Header(file.name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        }


def _check_index(index: dict[str, str], tensors: dict[str, Header]) -> Iterator[Finding]:
    """Report tensors in other files than the index says; ``_check_tensors`` reports missing ones."""
    wrong = False
    for name, header in tensors.items():
        if index.get(name) != header.file:
            wrong = True
            listed = f"lists it in {index[name]}" if name in index else "does not list it"
            yield Finding(name, False, f"is in {header.file}, but {INDEX} {listed}")
    if not wrong:
        yield Finding(INDEX, True, f"{len(index)} tensors")


def _check_tensors(tensors: dict[str, Header], config: Phi3VConfig) -> Iterator[Finding]:
    """Names, shapes and dtypes."""
    try:
        expected = official_shapes(config)
    except Exception as error:  # inconsistent sizes
        yield Finding(CONFIG, False, f"has inconsistent sizes: {first_line(error)}")
        return
    ignored = [re.compile(pattern) for pattern in IGNORED_ON_LOAD]
    good = 0
    for name in sorted(expected.keys() | tensors.keys()):
        header = tensors.get(name)
        if header is None:
            yield Finding(name, False, f"is missing; expected shape {list(expected[name])}")
        elif name not in expected:
            if not any(pattern.search(name) for pattern in ignored):
                yield Finding(name, False, f"is not a tensor of this model ({header.file})")
        elif header.shape != expected[name]:
            text = f"has the shape {list(header.shape)}, expected {list(expected[name])}"
            yield Finding(name, False, text)
        elif header.dtype not in ITEM_SIZES:
            known = ", ".join(ITEM_SIZES)
            yield Finding(
                name, False, f"has the unsupported dtype {header.dtype}; supported are {known}"
            )
        else:
            good += 1
    if good == len(expected):
        size = sum(
            torch.Size(header.shape).numel() * ITEM_SIZES.get(header.dtype, 0)
            for header in tensors.values()
        )
        dtypes = ", ".join(sorted({header.dtype for header in tensors.values()}))
        yield Finding("tensors", True, f"all {good}, {size / 1e9:.2f} GB, {dtypes}")
