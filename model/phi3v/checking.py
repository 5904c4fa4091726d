"""Check whether a directory holds a supported checkpoint, without loading its weights.

Reports all problems, while loading stops at the first. Reads only the headers of safetensors files.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from model.errors import CheckpointError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.configuration import CONFIG as ADAPTER_CONFIG
from model.phi3v.adapters.model_files import model_shapes, tokenizer_directory
from model.phi3v.checkpoint import (
    TRAINING_STATE,
    first_line,
    pickles,
    read_json,
    refusal_of_pickle,
)
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.defaults import GENERATION_CONFIG, default_parameters
from model.phi3v.inputs.image_processing import ImageProcessor
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.modeling import is_ignored
from model.phi3v.weights.files import DTYPES, INDEX, Header, read_file_headers, weight_files
from model.phi3v.weights.names import EMBEDDING, HEAD, Naming, naming
from model.phi3v.weights.writing import nbytes

CONFIG = "config.json"
VOCAB_SIZE = 32064  # of the official model


@dataclass(frozen=True)
class Finding:
    """One line of a report.

    Attributes:
        subject: a file, or a tensor.
        ok: whether it is valid.
        text: what was found, or what is wrong.
        odd: whether it is unusual, although valid.
    """

    subject: str
    ok: bool
    text: str
    odd: bool = False


def check_files(directory: Path, adapter: Path | None = None) -> list[Finding]:
    """Check every file; returns all findings, and never raises for an invalid file.

    Args:
        directory: the checkpoint.
        adapter: directory of an adapter to check for it, if any.
    """
    if not directory.is_dir():
        return [Finding(str(directory), False, "is not a directory")]
    findings = list(_check_leftovers(directory))
    config, found = _check_config(directory)
    findings += found
    findings.append(_check_tokenizer(directory, config))
    findings.append(_check_image_processor(directory))
    findings += _check_defaults(directory)
    findings += _check_weights(directory, config)
    if adapter is not None and config is not None:
        findings += _check_adapter(adapter, directory, config)
    if all(finding.ok for finding in findings):
        findings.append(Finding("checkpoint", True, "will be served"))
    return findings


def _check_leftovers(directory: Path) -> Iterator[Finding]:
    """Pickles, and what trainers leave behind."""
    for name in pickles(directory):
        refusal = refusal_of_pickle(directory, name).removeprefix(f"{name}, ")
        yield Finding(name, False, f"is {refusal}")
    for file in sorted(directory.iterdir()):
        if TRAINING_STATE.fullmatch(file.name):
            yield Finding(file.name, True, "is a trainer's state, which is not read", odd=True)
    if (directory / ADAPTER_CONFIG).exists():
        if (directory / CONFIG).exists():
            text = (
                "belongs to an adapter, which is not merged unless you pass its folder with --lora"
            )
            yield Finding(ADAPTER_CONFIG, True, text, odd=True)
        else:
            text = (
                "belongs to an adapter, not to a whole model; check it together with its model: "
                f"phi3v-server check MODEL --lora {directory}"
            )
            yield Finding(ADAPTER_CONFIG, False, text)


def _check_config(directory: Path) -> tuple[Phi3VConfig | None, list[Finding]]:
    try:
        raw = read_json(directory / CONFIG)
        if raw.get("model_type") != "phi3_v":
            text = f"is for a {raw.get('model_type')!r} model; this server runs 'phi3_v' only"
            return None, [Finding(CONFIG, False, text)]
        config = Phi3VConfig(**raw)
        _ = config.vision_config
    except Exception as error:  # the library raises many kinds
        return None, [Finding(CONFIG, False, first_line(error))]
    text = (
        f"{config.num_hidden_layers} layers, {config.hidden_size} wide, "
        f"context window of {config.context_window} tokens"
    )
    return config, [Finding(CONFIG, True, text), *_odd_config(raw, config)]


def _odd_config(raw: dict[str, Any], config: Phi3VConfig) -> Iterator[Finding]:
    """What differs from the official configuration, and is served."""
    dtype = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    if dtype != "bfloat16":
        given = "is missing" if dtype == "None" else f"is {dtype}"
        served = "float16 on a GPU, float32 on a CPU" if dtype == "float16" else "float32"
        text = (
            f"torch_dtype {given}, so it is served in {served}; --dtype bfloat16 takes half of the "
            "memory of float32"
        )
        yield Finding(CONFIG, True, text, odd=True)
    if config.vocab_size != VOCAB_SIZE:
        text = f"vocab_size is {config.vocab_size}, not {VOCAB_SIZE}, as after adding tokens"
        yield Finding(CONFIG, True, text, odd=True)
    if config.tie_word_embeddings:
        text = "ties the head to the token embedding, which the official model does not"
        yield Finding(CONFIG, True, text, odd=True)


def _check_adapter(lora: Path, directory: Path, config: Phi3VConfig) -> Iterator[Finding]:
    """An adapter for this checkpoint."""
    name = lora.name
    try:
        adapter = Adapter(lora, model_shapes(config), name)
        tokenizer_directory(directory, lora, adapter)
    except CheckpointError as error:
        yield Finding(name, False, first_line(error))
        return
    yield Finding(name, True, adapter.summary())
    if not adapter.is_for(str(config.name_or_path), directory.name):
        text = f"was trained on {adapter.config.base}, by its {ADAPTER_CONFIG}"
        yield Finding(name, True, text, odd=True)


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
    files, index, problems = weight_files(directory)
    yield from (Finding(problem.subject, False, problem.text) for problem in problems)
    tensors: dict[str, Header] = {}
    for file in files:
        try:
            headers = read_file_headers(directory / file)
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
    if config is not None and (files or index):  # else all are missing, which is one problem
        yield from _check_tensors(tensors, config)


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
        expected = model_shapes(config)
    except Exception as error:  # inconsistent sizes
        yield Finding(CONFIG, False, f"has inconsistent sizes: {first_line(error)}")
        return
    found = naming(tensors)
    if HEAD in found.names and HEAD not in expected:
        expected[HEAD] = expected[EMBEDDING]
        yield Finding(HEAD, True, "is stored and read, although the config ties it", odd=True)
    yield from _odd_names(found)
    good = 0
    for name in sorted(expected.keys() | found.names.keys()):
        header = tensors.get(found.names.get(name, ""))
        if header is None:
            yield Finding(name, False, f"is missing; expected shape {list(expected[name])}")
        elif name not in expected:
            if not is_ignored(name):
                text = f"is not a tensor of this model ({header.file})"
                yield Finding(found.names[name], False, text)
        elif header.shape != expected[name]:
            yield Finding(name, False, _wrong_shape(name, header.shape, expected[name]))
        elif header.dtype not in DTYPES:
            text = f"has the unsupported dtype {header.dtype}; supported are {', '.join(DTYPES)}"
            yield Finding(name, False, text)
        else:
            good += 1
    if good == len(expected):
        used = [tensors[found.names[name]] for name in expected]
        size = sum(nbytes(header.shape, header.dtype) for header in used)
        dtypes = ", ".join(sorted({header.dtype for header in used}))
        yield Finding("tensors", True, f"all {good}, {size / 1e9:.2f} GB, {dtypes}")


def _wrong_shape(name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> str:
    text = f"has the shape {list(shape)}, expected {list(expected)}"
    if name in (EMBEDDING, HEAD) and shape[1:] == expected[1:]:
        text += f"; if {shape[0]} tokens are right, set vocab_size in {CONFIG} to {shape[0]}"
    return text


def _odd_names(found: Naming) -> Iterator[Finding]:
    """Names that trainers left; one line for each kind."""
    renamed = {new: old for new, old in found.names.items() if new != old}
    if renamed:
        new, old = min(renamed.items())
        text = f"{len(renamed)} are read under other names, e.g. {old} as {new}"
        yield Finding("names", True, text, odd=True)
    for name, reason in found.extra.items():
        yield Finding(name, True, f"{reason}; not read", odd=True)
    if found.unmerged:
        text = (
            "belongs to an adapter inside the checkpoint, like "
            f"{len(found.unmerged)} tensors in all; merge it with PEFT's merge_and_unload, or save it "
            "alone and pass it with --lora"
        )
        yield Finding(found.unmerged[0], False, text)
