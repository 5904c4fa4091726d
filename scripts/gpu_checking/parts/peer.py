"""vLLM beside this engine: the same decoder with random weights, and the same load, where it is installed.

A load is some prompts of equal length that are asked at once. What their prefill takes is subtracted: two
runs with answers of different lengths differ by decode steps only.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from model.demo.random_checkpoint import config_for, text_config, write_json
from model.demo.tokenizer_files import write_tokenizer
from model.engine.config import EngineConfig
from model.phi3v.network import make_network
from scripts.benchmarks.harness.driver import answer, greedy, random_prompts
from scripts.benchmarks.harness.report import Report
from scripts.gpu_checking.device import free_memory, name_of
from scripts.gpu_checking.engines import (
    make_engine,
    prefill_chunk,
    processor_for,
    random_model,
    tokens_that_fit,
)
from scripts.gpu_checking.options import Options

ROWS = (1, 16, 64)
LENGTH = 1000  # tokens of prompts
SHORT, LONG = 8, 136  # tokens of answers
WINDOW = 2048
SECONDS = 200
MODULE = "scripts.gpu_checking.vllm_load"


def check(options: Options) -> Report:
    """Measure both, if vLLM is installed."""
    report = Report(
        "peer",
        f"tokens per second of vLLM and of this engine; prompts of {LENGTH} tokens, size "
        f"{options.preset_name}, {name_of(options.dtype)}",
        ["sequences", "this engine, tokens/s", "vLLM, tokens/s", "ratio"],
    )
    if importlib.util.find_spec("vllm") is None or not options.on_gpu:
        missing = "vLLM, which is not installed" if options.on_gpu else "a GPU"
        report.notes.append(f"not checked: needs {missing}")
        return report
    ours = _ours(options)
    gc.collect()
    torch.cuda.empty_cache()
    theirs = _theirs(options, list(ours))
    for rows, rate in ours.items():
        report.rows.append([rows, rate, theirs[rows], rate / theirs[rows]])
    report.data = {"ours": ours, "vllm": theirs}
    return report


def _ours(options: Options) -> dict[int, float]:
    network = make_network(random_model(options.preset, options.device, options.dtype))
    most = tokens_that_fit(network) // (LENGTH + LONG + 16)
    loads = [rows for rows in ROWS if rows <= max(most, 1)]
    sizes = EngineConfig(
        WINDOW,
        num_blocks=max(WINDOW, max(loads) * (LENGTH + LONG + 16)) // 16,
        max_num_seqs=max(loads),
        prefill_chunk=prefill_chunk(options.device),
    )
    engine = make_engine(network, processor_for(options.preset), sizes)
    rates = {}
    for rows in loads:
        seconds = {}
        for tokens in (SHORT, SHORT, LONG):  # the first run warms up
            started = time.perf_counter()
            answer(engine, random_prompts(rows, LENGTH, rows), greedy(tokens))
            seconds[tokens] = time.perf_counter() - started
        rates[rows] = rows * (LONG - SHORT) / (seconds[LONG] - seconds[SHORT])
    return rates


def _theirs(options: Options, loads: list[int]) -> dict[int, float]:
    """What vLLM does in a process of its own.

    Raises:
        RuntimeError: it failed, or took too long.
    """
    total = torch.cuda.get_device_properties(options.device).total_memory
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_json(
            directory / "config.json", text_config(config_for(options.preset, "phi3-random"))
        )
        write_tokenizer(directory, chat_template=True)
        load = {
            "model": name,
            "dtype": name_of(options.dtype),
            "max_model_len": WINDOW,
            "max_num_seqs": max(loads),
            "gpu_memory_utilization": 0.9 * free_memory(options.device) / total,
        }
        sizes = {"rows": loads, "length": LENGTH, "short": SHORT, "long": LONG}
        output = directory / "rates.json"
        # In one process, so that ending it ends all of it.
        environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        command = [sys.executable, "-m", MODULE, json.dumps(load), json.dumps(sizes), str(output)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                env=environment,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"vLLM took more than {SECONDS} s") from None
        if done.returncode:
            raise RuntimeError(f"vLLM ended with status {done.returncode}: {done.stderr[-300:]}")
        return {int(rows): rate for rows, rate in json.loads(output.read_text("utf-8")).items()}
