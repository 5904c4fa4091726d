"""How far next-token distributions in bfloat16 and with quantized weights are from float32's.

No text is generated: every side reads the same sequences, and the distributions after each token are
compared. The demo checkpoint reads questions about held-out pictures with their right answers; a
question counts as right if every token of the answer is the most probable one, so that greedy decoding
would generate exactly this answer. The random checkpoint reads random tokens, which is the harder
test, because untrained weights are less robust to rounding.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.demo import CHECKPOINT
from model.engine.engine import Engine
from model.engine.kv_cache.base import Span
from model.engine.kv_cache.choice import make_kv_cache
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.processing import Processor, PromptInputs
from model.phi3v.rope import LongRope
from scripts.benchmarks.harness.driver import load, random_prompts
from scripts.benchmarks.harness.machine import describe
from scripts.benchmarks.harness.options import Options
from scripts.benchmarks.harness.report import Figure, Panel, Report
from scripts.demo_training.evaluation.cases import Case
from scripts.demo_training.evaluation.evaluate import held_out_cases

REFERENCE = "float32"
SIDES = {
    REFERENCE: {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"dtype": "bfloat16", "quantization": "int8"},
    "int4": {"dtype": "bfloat16", "quantization": "int4"},
}
MOST = {"bfloat16": 0.001, "int8": 0.005, "int4": 0.2}  # mean KL divergence, in nats
WINDOW = 4096


@dataclass(frozen=True)
class Text:
    """A sequence to read.

    Attributes:
        inputs: its tokens and its image.
        start: position of the first token that is compared.
    """

    inputs: PromptInputs
    start: int


@dataclass
class Found:
    """One side's results for all texts."""

    divergences: list[float] = field(default_factory=list)
    agreements: list[bool] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    rights: list[bool] = field(default_factory=list)


def run(options: Options) -> Report:
    """See the module."""
    count = 8 if options.smoke else 40
    report = Report(
        "drift",
        f"next-token distributions compared with {REFERENCE}; {describe()}",
        ["checkpoint", "weights", "mean KL, nats", "same top token", "perplexity", "right answers"],
    )
    for name, directory in (("demo", CHECKPOINT), ("random", options.checkpoint("bench"))):
        processor = Processor.from_checkpoint(directory)
        cases = list(held_out_cases(count)) if name == "demo" else []
        texts = [_question(processor, case) for case in cases] or [
            Text(prompt, 1) for prompt in random_prompts(max(2, count // 20), 200, seed=0)
        ]
        for side, found in _measure(directory, texts).items():
            divergence = sum(found.divergences) / len(found.divergences)
            agreement = sum(found.agreements) / len(found.agreements)
            perplexity = float(torch.tensor(found.losses).mean().exp())
            row = [name, side, f"{divergence:.2g}", f"{agreement:.2%}"]
            right = sum(found.rights) / len(found.rights)
            row += [f"{perplexity:.4f}", f"{right:.1%}"] if cases else ["-", "-"]
            report.rows.append(row)
            report.data[f"{name} {side}"] = {
                "mean_kl": divergence, "same_top_token": agreement, "perplexity": perplexity
            }  # fmt: skip
            if side != REFERENCE:
                what = f"mean KL, {name}, {side}"
                report.figures.append(Figure(what, divergence, "at most", MOST[side]))
        tokens = sum(len(text.inputs.token_ids) - text.start for text in texts)
        report.notes.append(f"{name}: {len(texts)} texts, {tokens} tokens compared")
    bars = {
        checkpoint: {
            side: [report.data[f"{checkpoint} {side}"]["mean_kl"]] for side in SIDES if side in MOST
        }
        for checkpoint in ("demo", "random")
    }
    report.panels = [Panel("Drift", "weights", "mean KL, nats", bars)]
    return report


def _question(processor: Processor, case: Case) -> Text:
    """A question with its right answer, up to the stop token."""
    asked = list(_messages(case.messages))
    prompt = processor(asked, WINDOW)
    answered = [*asked, Message("assistant", case.expected), Message("user", "?")]
    ids = processor(answered, WINDOW).token_ids
    start = len(prompt.token_ids)
    assert ids[:start] == prompt.token_ids, "an answer changed its question's tokens"
    end = next(i for i in range(start, len(ids)) if ids[i] in processor.tokenizer.stop_ids)
    return Text(PromptInputs(ids[: end + 1], prompt.images), start)


def _messages(messages: Sequence[dict[str, Any]]) -> Iterator[Message]:
    """Convert messages from the API's format to the model's."""
    for message in messages:
        content = message["content"]
        parts: list[dict[str, Any]] = content
        if isinstance(content, str):
            parts = [{"type": "text", "text": content}]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        yield Message(message["role"], text, tuple(map(_image, urls)))


def _image(url: str) -> MessageImage:
    data = base64.b64decode(url.partition(",")[2])
    return MessageImage(lambda: Image.open(io.BytesIO(data)).convert("RGB"))


def _measure(directory: Path, texts: list[Text]) -> dict[str, Found]:
    """Measure all sides, the reference first."""
    expected: list[Tensor] = []
    found = {}
    for side, flags in SIDES.items():
        engine = load(directory, max_model_len=WINDOW, **flags)
        found[side] = Found()
        for number, text in enumerate(tqdm(texts, f"drift {side}")):
            logits_TV = _logits(engine, text)
            if side == REFERENCE:
                expected.append(logits_TV)
            _compare(expected[number], logits_TV, text, found[side])
    return found


def _compare(expected_TV: Tensor, logits_TV: Tensor, text: Text, found: Found) -> None:
    p_TV, q_TV = expected_TV.log_softmax(1), logits_TV.log_softmax(1)
    found.divergences += (p_TV.exp() * (p_TV - q_TV)).sum(1).tolist()
    top_T = logits_TV.argmax(1)
    found.agreements += (top_T == expected_TV.argmax(1)).tolist()
    next_T = torch.tensor(text.inputs.token_ids[text.start :])
    found.losses += (-q_TV.gather(1, next_T[:, None])[:, 0]).tolist()
    found.rights.append(bool((top_T == next_T).all()))


@torch.inference_mode()
def _logits(engine: Engine, text: Text) -> Tensor:
    """Logits that predict each token from ``start`` on."""
    decoder, network = engine.network.decoder, engine.network
    ids, images = text.inputs.token_ids, text.inputs.decoded
    token_T = torch.tensor(ids, device=decoder.device)
    hidden_TE = decoder.embed(token_T.clamp(min=0))
    if images:
        embeddings = network.vision(
            [i.crops(decoder.device) for i in images], [i.grid for i in images]
        )
        hidden_TE[token_T < 0] = torch.cat(embeddings).to(hidden_TE)
    cache = make_kv_cache(
        network.config,
        engine.config,
        network.dtype,
        decoder.layer_devices,
        decoder.fuses_attention,
    )
    rope = LongRope(network.config, decoder.device)
    position_T = torch.arange(len(ids), device=decoder.device)
    regime_T = torch.full_like(position_T, int(rope.regime(len(ids))))
    cos_TD, sin_TD = rope.cos_sin(position_T, regime_T, decoder.dtype)
    blocks = list(range(-(-len(ids) // engine.config.block_size)))
    attend = cache.attention([Span(blocks, 0, len(ids))])
    hidden_TE = decoder(hidden_TE, cos_TD, sin_TD, attend)
    return decoder.logits(hidden_TE[text.start - 1 : -1].contiguous()).cpu()
