"""Load an engine from a checkpoint's directory: weights and sizes.

Every problem with a checkpoint becomes a ``CheckpointError`` that says what is wrong and where.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from model.cpu.memory import keep_freed_memory
from model.engine.config import DType, EngineConfig, LoadOptions, ModelInfo
from model.engine.engine import Engine
from model.engine.kv_cache.choice import on_cuda
from model.engine.loading.machine import has_bfloat16, probe
from model.engine.loading.memory_plan import MemoryPlan, plan_memory, texts
from model.engine.loading.placement import device_map
from model.engine.loading.weights import load_weights, unloadable
from model.engine.request import SamplingParams
from model.errors import CheckpointError, ModelError, RequestError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.adapters.model_files import model_config, model_shapes, tokenizer_directory
from model.phi3v.checkpoint import read_json
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.image_processing import TILE
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.network import make_network
from model.phi3v.weights.files import Header, read_headers
from model.phi3v.weights.names import Naming, naming

logger = logging.getLogger(__name__)

WARM_UP = SamplingParams(temperature=0, max_tokens=1)
OFFICIAL_NAME = "Phi-3-vision-128k-Instruct"  # as Azure spells it; the Hub has a lowercase i


def describe(directory: Path, model: str, lora: str | None = None) -> ModelInfo:
    """Name and provider of a model, from ``config.json`` or the checkpoint's name; and its adapter."""
    config = read_json(directory / "config.json")
    name = str(config.get("_name_or_path") or model).rstrip("/").rsplit("/", 1)[-1]
    if name.lower() == OFFICIAL_NAME.lower():
        name = OFFICIAL_NAME
    provider = str(config.get("model_provider_name", "Microsoft"))
    return ModelInfo(name, provider, None if lora is None else adapter_name(lora))


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
    processor = Processor.from_checkpoint(directory, tokenizer)
    plan, names = _plan(directory, raw, options, devices, adapter)
    model = load_weights(directory, options, device_map(devices, plan.layers), names, adapter)
    network = make_network(model)
    keep_freed_memory()
    stop_ids = processor.tokenizer.stop_ids | _eos_ids(directory, raw)
    config = EngineConfig.of(options, plan.max_model_len, plan.block_size, plan.num_blocks)
    engine = Engine(network, processor, stop_ids, config)
    _warm_up(engine)
    _log_choices(engine)
    return engine


def _warm_up(engine: Engine) -> None:
    """Generate one token, because memory-mapped weights are read only at first use.

    On a GPU also answer about an image: libraries choose and load their kernels at first use.
    """
    prompts = [PromptInputs([0])]
    if on_cuda(engine.network.decoder.device):
        size = 2 * TILE  # several crops, and a prompt longer than a chunk
        picture = MessageImage(lambda: Image.new("RGB", (size, size)))
        with suppress(RequestError):  # it may exceed the context window
            prompts.append(engine.prepare([Message("user", "", (picture,))], WARM_UP)[0])
    for prompt in tqdm(prompts, desc="Warming up"):
        engine.add(-1, prompt, WARM_UP)
        while engine.has_work:
            for output in engine.step():
                if isinstance(output.result, ModelError):
                    raise CheckpointError(
                        f"the warm-up failed: {output.result.__cause__ or output.result}"
                    )
    engine.reset_totals()  # no client sent these requests


def _log_choices(engine: Engine) -> None:
    made = engine.describe()
    rows = ", ".join(map(str, sorted(made.graph_rows)))
    graphs = f" with CUDA graphs for {rows} rows" if rows else ""
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
            adapter.config.base[:200],
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
        "memory: %s (%s); longest sequence: %d of the model's %d tokens",
        plan,
        there_is,
        plan.max_model_len,
        config.context_window,
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
    there_are = torch.cuda.device_count() if on_cuda(devices[0]) else 0
    for count in range(len(devices) + 1, there_are + 1):
        with suppress(CheckpointError):
            plan_on(count)
            return f"; it would fit on {count} GPUs with --pipeline-parallel-size {count}"
    return ""


def devices_for(options: LoadOptions) -> list[torch.device]:
    """The devices of the decoder's layers; the first also holds everything else."""
    wanted, found = options.pipeline_parallel_size, torch.cuda.device_count()
    if options.device == "cuda" and not found:
        raise CheckpointError(
            "--device cuda: torch finds no CUDA device; check the driver, or use --device cpu"
        )
    gpus = 0 if options.device == "cpu" else found
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
