"""A load on vLLM with random weights, for ``parts.peer``: arguments and sizes as JSON, and a file.

vLLM runs in a process of its own, which frees the GPU's memory when it ends.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path


def main() -> None:
    from vllm import LLM, SamplingParams

    given, sizes, output = json.loads(sys.argv[1]), json.loads(sys.argv[2]), Path(sys.argv[3])
    llm = LLM(**given, load_format="dummy", skip_tokenizer_init=True, enable_prefix_caching=False)
    rates = {}
    for rows in sizes["rows"]:
        source = random.Random(rows)
        prompts = [
            {"prompt_token_ids": source.choices(range(300, 32000), k=sizes["length"])}
            for _ in range(rows)
        ]
        seconds = {}
        for tokens in (sizes["short"], sizes["short"], sizes["long"]):  # the first run warms up
            params = SamplingParams(
                temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
            )
            started = time.perf_counter()
            llm.generate(prompts, params, use_tqdm=False)
            seconds[tokens] = time.perf_counter() - started
        steps = sizes["long"] - sizes["short"]
        rates[rows] = rows * steps / (seconds[sizes["long"]] - seconds[sizes["short"]])
    output.write_text(json.dumps(rates), "utf-8")


if __name__ == "__main__":
    main()
