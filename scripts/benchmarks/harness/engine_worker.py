"""The engine without HTTP: reads jobs as lines of JSON, and prints measurements like ``load``'s.

    python -m scripts.benchmarks.harness.engine_worker CHECKPOINT DTYPE

Uses the load client's prompts and concurrency; tokenizes before measuring.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from model.engine.engine import Engine
from model.phi3v.inputs.chat import Message
from scripts.benchmarks.harness.driver import answer, greedy, load
from scripts.benchmarks.harness.load import text


def work(engine: Engine, job: dict[str, int]) -> dict[str, Any]:
    """Run one job."""
    prompts = [
        engine.processor([Message("user", text(job["prompt_tokens"], job["seed"], number))], 4096)
        for number in range(-2, job["requests"])
    ]
    answer(engine, prompts[:2], greedy(4))  # warm up, as in the client
    started = time.perf_counter()
    answers = answer(engine, prompts[2:], greedy(job["new_tokens"]), job["concurrency"])
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "requests": [
            {
                "ttft": found.ttft,
                "gaps": found.gaps,
                "prompt_tokens": len(prompt.token_ids),
                "new_tokens": len(found.token_ids),
            }
            for prompt, found in zip(prompts[2:], answers, strict=True)
        ],
    }


def main() -> None:
    engine = load(Path(sys.argv[1]), sys.argv[2])
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        print(json.dumps(work(engine, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
