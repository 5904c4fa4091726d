"""The load client: concurrent readers of streamed chat answers, each sending one request at a time.

    python -m scripts.benchmarks.harness.load --url http://127.0.0.1:8000/v1 --concurrency 4 --requests 8

Runs as a separate process, the same for every server, and prints one JSON object: total seconds, and
for each request the seconds to its first content, the seconds between pieces of content, and the
token counts from ``usage``. Prompts are random two-letter words, each one token of the random
checkpoints' tokenizer. Decoding is greedy and ignores end-of-sequence tokens, so that all answers have
the same length. Imports neither torch nor the project, to start quickly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Iterator
from itertools import pairwise
from string import ascii_lowercase
from typing import Any

import aiohttp

TEMPLATE_TOKENS = 8  # around the text: <s>, roles, line ends


def text(tokens: int, seed: int, number: int) -> str:
    """A unique text of about ``tokens`` tokens, including the chat template's."""
    generator = random.Random(f"{seed}/{number}")
    count = tokens - TEMPLATE_TOKENS
    return " ".join("".join(generator.choices(ascii_lowercase, k=2)) for _ in range(count))


def body(content: str, new_tokens: int, model: str = "default") -> bytes:
    request = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(request).encode()


async def ask(session: aiohttp.ClientSession, url: str, payload: bytes) -> dict[str, Any]:
    """Send one request; returns times and token counts, or a refusal's status, seconds and text."""
    started = time.perf_counter()
    reads: list[tuple[float, bytes]] = []
    async with session.post(f"{url}/chat/completions", data=payload) as response:
        if response.status != 200:
            reason = (await response.text())[:300]
            seconds = time.perf_counter() - started
            return {"status": response.status, "seconds": seconds, "reason": reason}
        async for data in response.content.iter_any():
            reads.append((time.perf_counter(), data))
    stamps: list[float] = []
    usage: dict[str, int] = {}
    ended = False
    # Parse afterwards, because client and server share the machine.
    for stamp, line in lines(reads):
        ended = ended or line.rstrip() == b"data: [DONE]"
        if not line.startswith(b"data: {"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk["error"])[:300])
        usage = chunk.get("usage") or usage
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
            stamps.append(stamp)
    if not ended:
        raise RuntimeError("a stream ended early")
    return {
        "status": 200,
        "ttft": stamps[0] - started,
        "gaps": [after - before for before, after in pairwise(stamps)],
        "prompt_tokens": usage["prompt_tokens"],
        "new_tokens": usage["completion_tokens"],
    }


def lines(reads: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Lines with the time at which each was complete."""
    rest = b""
    for stamp, data in reads:
        *complete, rest = (rest + data).split(b"\n")
        for line in complete:
            yield stamp, line


async def load(args: argparse.Namespace) -> dict[str, Any]:
    """Send all requests and return the measurements."""

    def payload(number: int, new_tokens: int) -> bytes:
        return body(text(args.prompt_tokens, args.seed, number), new_tokens, args.model)

    payloads = [payload(number, args.new_tokens) for number in range(args.requests)]
    results: list[dict[str, Any]] = []
    headers = {"Content-Type": "application/json", "Authorization": "Bearer any"}
    timeout = aiohttp.ClientTimeout(total=args.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        headers=headers, timeout=timeout, connector=connector
    ) as session:
        # Unmeasured: a server resumed from SIGSTOP first wakes its threads and reads its weights.
        await asyncio.gather(*(ask(session, args.url, payload(-1 - i, 4)) for i in range(2)))
        waiting = iter(payloads)

        async def reader() -> None:
            for each in waiting:
                result = await ask(session, args.url, each)
                if result["status"] != 200:
                    raise RuntimeError(f"status {result['status']}: {result['reason']}")
                results.append(result)

        started = time.perf_counter()
        await asyncio.gather(*(reader() for _ in range(args.concurrency)))
        seconds = time.perf_counter() - started
    return {"seconds": seconds, "requests": results}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="base URL of the API, including /v1")
    parser.add_argument("--model", default="default")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=600)
    print(json.dumps(asyncio.run(load(parser.parse_args()))))


if __name__ == "__main__":
    main()
