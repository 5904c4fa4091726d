"""Write docs/sizing.md from the memory plan: ``python -m scripts.sizing_page``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from model import OFFICIAL, CheckpointError, LoadOptions, size
from model.sizing import Sizing

PAGE = Path(__file__).parents[1] / "docs" / "sizing.md"
GIB, GB = 1 << 30, 1e9
MEMORIES = (16, 24, 40, 80, 141)  # GiB of common cards: T4, L4 and A10, A100, A100 and H100, H200
SCHEMES: dict[str, dict[str, Any]] = {
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
    "float32": {"dtype": "float32"},
}
PICTURE = 3000  # tokens: one picture at full detail (up to 2,650), a question and a short answer
# Memory bandwidths in GB/s, from the makers' data sheets.
BANDWIDTHS = {"L4": 300, "A10": 600, "A100 80 GB": 2039, "H100": 3350, "H200": 4800}
EXAMPLE = 25  # GiB

TEMPLATE = """\
<!-- Written by `python -m scripts.sizing_page` from the memory plan: change it there. -->
# Sizing

## Which GPU

Weights take {weights_gb:.1f} GB in bfloat16. Each token of a running or cached conversation takes {slot:.0f} KiB:
{for_8192:.0f} GiB for 8,192 tokens, {for_all:.0f} GiB for the whole window of {window:,}. That memory is the KV cache
(the tokens' keys and values). It gets what the weights leave of the GPU, or what `--kv-cache-memory` says. The
server logs the longest conversation that fits.

What fits on one GPU, by the memory that is free on it, at the default settings:

{table}

- **longest** is the longest conversation, in tokens, prompt and answer together.
- **sequences** is how many conversations of {picture:,} tokens fit at once: one picture at full detail (up to
  2,650), a question and a short answer.
- **at once** is how many answers a step computes by default (`--max-num-seqs`); further ones wait their turn.
- **LoRA.** An adapter is [merged into the weights](fine-tuned.md) while they load, before they are quantized.
  It takes no memory of its own, so the table is the same with one.
- `float32` is the exact mode. `int8` and `int4` lose [some accuracy](checkpoints.md#quantization).
- A card reports somewhat less free memory than its name says. Cards before Ampere (T4, V100) lack bfloat16: they
  serve in float16, which takes the same memory.
- A CPU needs 16 GB of memory if it computes in bfloat16 (with AVX-512), and 32 GB if in float32.

The same for any size, flags and checkpoint, without a GPU:

```sh
phi3v-server plan --memory 24 --quantization int8 --max-model-len 8192
```

```text
{example}
```

## How fast one answer can be

Each step reads all weights once, so one answer is at most as fast as the memory, and several together cost little
more than one. Computed from data sheets, not measured:

{speeds}

`scripts/gpu_check` measures your card.

## How the server decides

Before loading, the server computes from the shapes in the checkpoint and the settings how much memory the
model takes. It compares that with the free memory (of a GPU, times `--gpu-memory-utilization`; of the machine,
or what the control group still allows if that is less) and logs the result. On a CPU the KV cache takes by
default at most a quarter of that, and leaves room for `--max-waiting-memory`. For the official model with
{example_gib} GiB of free GPU memory:

```text
memory: {plan}
```

Vision is the vision tower, what it works with, and the embeddings of pictures. Headroom is what a step works
with, CUDA graphs included.

Unless you set them, `--max-num-seqs` and `--prefill-chunk` follow from the machine, and the same log line says
what was chosen. Of several GPUs the smallest decides.

| | sequences in a step | prompt tokens in a step |
|---|---|---|
| CPU | 16, in a [batch](batches.md) 64 | 512 |
| GPU | one for each 512 tokens of the KV cache, from 16 to 256 (with `--deterministic` to 64) | 2,048, from 70 GiB of memory 8,192; less if the model does not fit otherwise |

512 tokens are a short question with its answer. With longer conversations fewer run at once.

A model that does not fit is refused before anything is loaded, with the flags that would make it fit, such as
`it would fit with --quantization int8 or --quantization int4`.
"""


def main() -> None:
    PAGE.write_text(page(), "utf-8")
    print(f"wrote {PAGE}")


def page() -> str:
    """The page's Markdown."""
    found = size(_options("bfloat16"), EXAMPLE)
    slot = found.plan.kv_cache / found.tokens
    read = found.plan.weights / GB
    return TEMPLATE.format(
        weights_gb=_weights(found) / GB,
        slot=slot / 1024,
        for_8192=slot * 8192 / GIB,
        for_all=slot * found.context_window / GIB,
        window=found.context_window,
        table=_table(),
        picture=PICTURE,
        example=_example(),
        speeds=_markdown(
            ["card", "memory bandwidth, GB/s", "tokens/s of one answer, at most"],
            ([card, f"{rate:,}", f"{rate / read:.0f}"] for card, rate in BANDWIDTHS.items()),
        ),
        example_gib=EXAMPLE,
        plan=found.plan,
    )


def _options(scheme: str, **flags: Any) -> LoadOptions:
    return LoadOptions(model=OFFICIAL, **SCHEMES[scheme], **flags)


def _weights(found: Sizing) -> int:
    """Bytes of all weights; the tower's are what vision takes besides work and cache."""
    tower = found.tower_bytes
    return found.plan.weights + tower


def _table() -> str:
    heads = [
        "free memory",
        "weights",
        "GiB of weights",
        "tokens",
        "longest",
        "sequences",
        "at once",
    ]
    return _markdown(heads, (_row(memory, scheme) for memory in MEMORIES for scheme in SCHEMES))


def _row(memory: int, scheme: str) -> list[str]:
    start = [f"{memory} GiB", scheme]
    try:
        found = size(_options(scheme), memory)
    except CheckpointError:
        return [*start, "-", "does not fit", "-", "-", "-"]
    return [
        *start,
        f"{_weights(found) / GIB:.1f}",
        f"{found.tokens:,}",
        f"{found.plan.max_model_len:,}",
        f"{found.sequences(PICTURE)}",
        f"{found.plan.max_num_seqs}",
    ]


def _example() -> str:
    return "\n".join(size(_options("int8", max_model_len=8192), 24).lines(PICTURE))


def _markdown(heads: list[str], rows: Iterable[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
