"""Load an engine from a checkpoint's directory: weights and sizes.

Every problem with a checkpoint becomes a ``CheckpointError`` that says what is wrong and where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from model.cpu.memory import keep_freed_memory
from model.engine.config import DEMO, DType, EngineConfig, LoadOptions, ModelInfo
from model.engine.engine import Engine
from model.engine.kv_cache.choice import on_cuda
from model.engine.loading.machine import has_bfloat16, probe
from model.engine.loading.memory_plan import MemoryPlan, plan_memory, texts
from model.engine.loading.placement import device_map
from model.engine.loading.unusable_gpu import failure, unusable_gpu, usable_gpus, why_none
from model.engine.loading.warm_up import compile_kernels, warm_up
from model.engine.loading.weights import load_weights, unloadable
from model.errors import CheckpointError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.model_files import model_config, model_shapes, tokenizer_directory
from model.phi3v.checkpoint import read_json
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.defaults import default_parameters
from model.phi3v.inputs.processing import Processor
from model.phi3v.modeling import is_ignored
from model.phi3v.network import make_network
from model.phi3v.weights.files import DTYPES as STORED_DTYPES
from model.phi3v.weights.files import Header, read_headers
from model.phi3v.weights.names import Naming, naming

logger = logging.getLogger(__name__)

OFFICIAL_NAME = "Phi-3-vision-128k-Instruct"  # as Azure spells it; the Hub has a lowercase i


def describe(
    directory: Path,
    model: str,
    generation_config: Literal["auto", "none"] = "auto",
    lora: str | None = None,
) -> ModelInfo:
    """Describe a model, from its files or the checkpoint's name; for the arguments see LoadOptions."""
    config = read_json(directory / "config.json")
    name = str(config.get("_name_or_path") or model).rstrip("/").rsplit("/", 1)[-1]
    if name.lower() == OFFICIAL_NAME.lower():
        name = OFFICIAL_NAME
    provider = str(config.get("model_provider_name", "Microsoft"))
    defaults = default_parameters(directory) if generation_config == "auto" else {}
    return ModelInfo(name, provider, defaults, None if lora is None else adapter_name(lora))


def load_engine(directory: Path, options: LoadOptions, lora: Path | None = None) -> Engine:
    """Load a checkpoint and size its KV cache.

    Args:
        directory: the checkpoint.
        options: what to load, and how.
        lora: directory of the adapter to merge, if any.

    Raises:
        CheckpointError: the files are incomplete, of another model, or too large for the memory.
    """
    raw = read_json(directory / "config.json")
    if raw.get("model_type") != "phi3_v":
        raise CheckpointError(
            f"{directory} contains a {raw.get('model_type')!r} model; "
            "this server runs Phi-3-vision only (model_type 'phi3_v')"
        )
    devices = devices_for(options)
    options = replace(options, dtype=dtype_for(options.dtype, devices, raw))
    adapter = None if lora is None else _read_adapter(directory, raw, lora, options)
    tokenizer = tokenizer_directory(directory, lora, adapter)
    processor = Processor.from_checkpoint(directory, options.images_per_prompt, tokenizer)
    plan, names = _plan(directory, raw, options, devices, adapter)
    model = load_weights(directory, options, device_map(devices, plan.layers), names, adapter)
    network = make_network(model)
    keep_freed_memory()
    stop_ids = processor.tokenizer.stop_ids | _eos_ids(directory, raw)
    config = EngineConfig.of(options, **plan.sizes)
    compile_kernels(network, config)
    engine = Engine(network, processor, stop_ids, config)
    warm_up(engine)
    _log_choices(engine)
    return engine


def _log_choices(engine: Engine) -> None:
    made = engine.describe()
    rows = made.graph_rows
    graphs = f" with CUDA graphs for up to {max(rows)} sequences" if rows else ""
    logger.info("using %s and %s%s", made.decoder, made.kv_cache, graphs)


def _read_adapter(
    directory: Path, raw: dict[str, Any], lora: Path, options: LoadOptions
) -> Adapter:
    """Check an adapter, and log what it changes."""
    config = model_config(directory, raw)
    adapter = Adapter(lora, model_shapes(config), adapter_name(options.lora or str(lora)))
    if not adapter.is_for(describe(directory, "").name, options.model, directory.name):
        logger.warning(
            "the adapter %s was trained on %s, by its adapter_config.json",
            adapter.name,
            adapter.config.base,
        )
    logger.info("merging the adapter %s, %s", adapter.name, adapter.summary())
    return adapter


def adapter_name(lora: str) -> str:
    """What an adapter is called to clients: its hub id, or the name of its folder."""
    path = Path(lora).expanduser()
    return path.resolve().name if path.exists() else lora


def _plan(
    directory: Path,
    raw: dict[str, Any],
    options: LoadOptions,
    devices: list[torch.device],
    adapter: Adapter | None,
) -> tuple[MemoryPlan, Naming]:
    """The memory plan, and how the tensors in the files are called."""
    try:
        config, stored = Phi3VConfig(**raw), read_headers(directory)
        _ = config.vision_config
    except Exception as error:  # the library raises many kinds
        raise unloadable(directory, error) from error
    names = naming(stored)
    headers = effective_headers(stored, adapter)
    for name, header in headers.items():
        if header.dtype not in STORED_DTYPES and not is_ignored(name):
            raise CheckpointError(
                f"{name} in {directory} has the dtype {header.dtype}; supported are "
                f"{', '.join(STORED_DTYPES)}"
            )
    merging = 0 if adapter is None else adapter.work_bytes()

    def plan_on(devices: list[torch.device]) -> tuple[MemoryPlan, str]:
        machines = [probe(device, options.gpu_memory_utilization) for device in devices]
        return plan_memory(headers, config, options, machines, merging), texts(machines)

    try:
        plan, there_is = plan_on(devices)
    except CheckpointError as error:
        more = _how_many_would_do(lambda count: plan_on(_gpus(count)), devices)
        raise CheckpointError(f"{error}{more}") from error
    logger.info(
        "memory: %s (%s); longest sequence: %d of the model's %d tokens; "
        "steps of at most %d sequences and %d prompt tokens",
        plan,
        there_is,
        plan.max_model_len,
        config.context_window,
        plan.max_num_seqs,
        plan.prefill_chunk,
    )
    return plan, names


def effective_headers(stored: Mapping[str, Header], adapter: Adapter | None) -> dict[str, Header]:
    """Headers by official names, as the model is after the merge.

    Args:
        stored: by the names in the checkpoint's files.
        adapter: to merge, if any.
    """
    headers = {official: stored[name] for official, name in naming(stored).names.items()}
    if adapter is not None:
        for name in adapter.changes.keys() & headers.keys():
            headers[name] = replace(headers[name], shape=adapter.shapes[name])
    return headers


def _how_many_would_do(plan_on: Callable[[int], Any], devices: list[torch.device]) -> str:
    """Advice to use more GPUs, if the machine has enough of them for the model to fit."""
    there_are = usable_gpus() if on_cuda(devices[0]) else 0
    for count in range(len(devices) + 1, there_are + 1):
        with suppress(CheckpointError):
            plan_on(count)
            return f"; it would fit on {count} GPUs with --pipeline-parallel-size {count}"
    return ""


def devices_for(options: LoadOptions) -> list[torch.device]:
    """The devices of the decoder's layers; the first also holds everything else.

    Raises:
        CheckpointError: torch cannot use as many GPUs as asked for, or none of those in the machine. In
            the latter case ``auto`` runs the demo model on the CPU, with a warning.
    """
    wanted, found = options.pipeline_parallel_size, usable_gpus()
    if options.device == "cuda" and not found:
        raise CheckpointError(
            f"--device cuda: torch finds no CUDA device: {why_none()}; or use --device cpu"
        )
    gpus = 0 if options.device == "cpu" else found
    if options.device == "auto" and not found:
        reason = unusable_gpu()
    else:
        reason = next(filter(None, map(failure, _gpus(min(wanted, gpus)))), None)
    if reason is not None:
        if options.model != DEMO or options.device == "cuda":
            raise CheckpointError(f"{reason}; or use --device cpu, which is slow")
        logger.warning("running on the CPU: %s", reason)
        gpus = 0
    if wanted > max(gpus, 1):
        raise CheckpointError(
            f"--pipeline-parallel-size {wanted} needs {wanted} GPUs, but {gpus} can be used here"
        )
    return _gpus(wanted) if gpus else [torch.device("cpu")]


def _gpus(count: int) -> list[torch.device]:
    return [torch.device("cuda", index) for index in range(count)]


def dtype_for(wanted: DType, devices: list[torch.device], raw: dict[str, Any]) -> DType:
    """Resolve ``auto``: the checkpoint's dtype if the devices support it, else float16 on a GPU and
    float32 on a CPU.
    """
    if wanted != "auto":
        return wanted
    dtype = str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch.")
    if dtype == "bfloat16" and all(map(has_bfloat16, devices)):
        return "bfloat16"
    return "float16" if dtype in ("bfloat16", "float16") and on_cuda(devices[0]) else "float32"


def _eos_ids(directory: Path, raw: dict[str, Any]) -> frozenset[int]:
    """End-of-sequence ids from ``config.json`` and, if it exists, ``generation_config.json``."""
    path = directory / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    ids: set[int] = set()
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)
