"""From a checkpoint's directory to a ready engine: weights, sizes. All that can go wrong with a
checkpoint becomes one ``CheckpointError`` that says what is wrong and where.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import psutil
import torch

from model.cpu.memory import keep_freed_memory
from model.engine.config import Device, DType, EngineConfig, LoadOptions, ModelInfo
from model.engine.engine import Engine
from model.engine.kv_caches import block_size, storage_dtype
from model.engine.request import SamplingParams
from model.errors import CheckpointError, ModelError
from model.phi3v.checkpoint import first_line, read_json
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.network import Network, make_network
from model.phi3v.processing import Processor, PromptInputs

logger = logging.getLogger(__name__)

GIB = 1 << 30
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
CPU_SHARE = 0.25  # of the available memory, for KV blocks
CUDA_SHARE = 0.9  # of what the weights leave free
OFFICIAL_NAME = "Phi-3-vision-128k-Instruct"  # as Azure spells it; the hub has a small i


def describe(directory: Path, model: str) -> ModelInfo:
    """Name and provider of a checkpoint, from its ``config.json`` or its own name."""
    config = read_json(directory / "config.json")
    name = str(config.get("_name_or_path") or model).rstrip("/").rsplit("/", 1)[-1]
    if name.lower() == OFFICIAL_NAME.lower():
        name = OFFICIAL_NAME
    return ModelInfo(name, str(config.get("model_provider_name", "Microsoft")))


def load_engine(directory: Path, options: LoadOptions) -> Engine:
    """Load a checkpoint and size its KV cache.

    Raises:
        CheckpointError: the files are incomplete or of another model, or the sizes do not fit.
    """
    raw = read_json(directory / "config.json")
    if raw.get("model_type") != "phi3_v":
        raise CheckpointError(
            f"{directory} holds a {raw.get('model_type')!r} model; "
            "this server runs Phi-3-vision only (model_type 'phi3_v')"
        )
    device = _device(options.device)
    processor = Processor.from_checkpoint(directory)
    model = _load_model(directory, _dtype(options.dtype, device, raw), device)
    network = make_network(model)
    keep_freed_memory()
    config = _engine_config(network, options)
    stop_ids = processor.tokenizer.stop_ids | _eos_ids(directory, raw)
    engine = Engine(network, processor, stop_ids, config)
    _warm_up(engine)
    return engine


def _warm_up(engine: Engine) -> None:
    """Answer once with one token: weights are mapped files until something reads them."""
    engine.add(-1, PromptInputs([0]), SamplingParams(temperature=0, max_tokens=1))
    while engine.has_work:
        for output in engine.step():
            if isinstance(output.result, ModelError):
                raise CheckpointError(
                    f"the model cannot run: {output.result.__cause__ or output.result}"
                )


def _load_model(directory: Path, dtype: torch.dtype, device: str) -> Phi3VForCausalLM:
    # It prints a table of all tensors at fault; one of them is named below.
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        loaded: Any = Phi3VForCausalLM.from_pretrained(
            directory,
            dtype=dtype,
            device_map=device,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
            use_safetensors=True,
            local_files_only=True,
        )
    except Exception as error:
        raise CheckpointError(
            f"the checkpoint in {directory} cannot be loaded: {first_line(error)}"
        ) from error
    model, report = loaded
    for name, found, expected in sorted(report["mismatched_keys"]):
        raise CheckpointError(
            f"the checkpoint in {directory} does not fit its config.json: {name} has the shape "
            f"{list(found)} and should have {list(expected)}"
        )
    for what in ("missing_keys", "unexpected_keys"):
        if names := sorted(map(str, report[what])):
            raise CheckpointError(
                f"the checkpoint in {directory} has {len(names)} {what.replace('_keys', '')} "
                f"tensors, e.g. {names[0]}"
            )
    assert isinstance(model, Phi3VForCausalLM)
    return model.eval().requires_grad_(False)


def _engine_config(network: Network, options: LoadOptions) -> EngineConfig:
    """Fit window and KV blocks into the memory budget, and say what was chosen."""
    config, device = network.config, network.decoder.device
    slot_bytes, size = _slot_bytes(config, device, network.dtype), block_size(device)
    budget = _kv_budget(options, device)
    slots_that_fit = budget // (slot_bytes * size) * size
    max_model_len = options.max_model_len or min(config.context_window, slots_that_fit)
    if max_model_len > config.context_window:
        raise CheckpointError(
            f"--max-model-len {max_model_len} is beyond the checkpoint's context window of "
            f"{config.context_window} tokens"
        )
    if max_model_len > slots_that_fit or slots_that_fit < 2:
        raise CheckpointError(
            f"a sequence of {max_model_len} tokens takes {max_model_len * slot_bytes / GIB:.2f} GiB "
            f"of KV cache and the budget is {budget / GIB:.2f} GiB; "
            "lower --max-model-len or raise --kv-cache-memory"
        )
    useful = -(-max_model_len // size) * options.max_num_seqs
    num_blocks = min(slots_that_fit // size, useful)
    logger.info(
        "KV cache: %d tokens (%.2f GiB); longest sequence %d tokens of the model's %d",
        num_blocks * size,
        num_blocks * size * slot_bytes / GIB,
        max_model_len,
        config.context_window,
    )
    return EngineConfig(
        max_model_len=max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_waiting=options.max_waiting,
        max_waiting_tokens=options.max_waiting_tokens,
        max_waiting_bytes=int(options.max_waiting_gib * GIB),
        request_timeout=options.request_timeout,
        prefill_chunk=options.prefill_chunk,
        prefix_caching=options.prefix_caching,
        embedding_cache_bytes=int(options.embedding_cache_gib * GIB),
        deterministic=options.deterministic,
        prompt_lookup=options.prompt_lookup,
        default_max_tokens=options.default_max_tokens,
        block_size=size,
        num_blocks=num_blocks,
    )


def _slot_bytes(config: Phi3VConfig, device: torch.device, dtype: torch.dtype) -> int:
    """Bytes of keys and values of one position in all layers."""
    heads = config.num_key_value_heads or config.num_attention_heads
    head_dim = config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * heads * head_dim * storage_dtype(dtype, device).itemsize


def _kv_budget(options: LoadOptions, device: torch.device) -> int:
    if options.kv_cache_gib is not None:
        return int(options.kv_cache_gib * GIB)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * CUDA_SHARE)
    return int(psutil.virtual_memory().available * CPU_SHARE)


def _device(wanted: Device) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise CheckpointError("--device cuda was asked for and torch finds no CUDA device")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _dtype(wanted: DType, device: str, raw: dict[str, Any]) -> torch.dtype:
    """The asked dtype, or the checkpoint's own; float32 on a CPU without native bfloat16."""
    if wanted != "auto":
        return DTYPES[wanted]
    dtype = DTYPES.get(str(raw.get("dtype") or raw.get("torch_dtype")), torch.float32)
    native = (
        dtype is torch.bfloat16
        and torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    return torch.float32 if device == "cpu" and not native else dtype


def _eos_ids(directory: Path, raw: dict[str, Any]) -> frozenset[int]:
    """End-of-sequence ids of ``config.json`` and, where there is one, ``generation_config.json``."""
    path = directory / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    ids: set[int] = set()
    for value in (raw.get("eos_token_id"), generation.get("eos_token_id")):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)
