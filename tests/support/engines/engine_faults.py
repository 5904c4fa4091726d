"""Faults put into the parts of a step, most of them at one victim among the requests."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import pytest
import torch

from model import GrammarSpec, SamplingParams
from model.engine.execution.runner import Runner
from model.engine.sampling.sampler import sample
from model.engine.sampling.token_masks import TokenMasks
from model.engine.scheduling.chunk import Chunk
from model.engine.scheduling.sequence import Sequence
from model.engine.text.detokenizer import Detokenizer
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.vision import Phi3VImageEmbedding

SECRET = "/secret/path/of/the/server"  # what no client may read
GREEDY = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
# Known by its identity, and by a string that no answer has.
VICTIM = replace(GREEDY, max_tokens=21, stop=("\N{OGHAM SPACE MARK}",))
GUIDED = replace(GREEDY, grammar=GrammarSpec("regex", "[a-z]{40}"), ignore_eos=False)
GUIDED_VICTIM = replace(GUIDED, max_tokens=21)
Inject = Callable[[pytest.MonkeyPatch], None]


def is_victim(sequence: Sequence) -> bool:
    return sequence.params is VICTIM or sequence.params is GUIDED_VICTIM


def fails(chunk: Chunk, when: Callable[[Chunk], bool]) -> bool:
    return is_victim(chunk.sequence) and when(chunk)


def in_runner(when: Callable[[list[Chunk]], bool], error: BaseException | None = None) -> Inject:
    def inject(patch: pytest.MonkeyPatch) -> None:
        run = Runner.run

        def faulty(self: Runner, chunks: list[Chunk]) -> torch.Tensor:
            if when(chunks):
                raise error or RuntimeError(SECRET)
            return run(self, chunks)

        patch.setattr(Runner, "run", faulty)

    return inject


def after_the_decoder(patch: pytest.MonkeyPatch) -> None:
    """When keys and values have been written, but never at a sequence alone."""
    run = Runner.run

    def faulty(self: Runner, chunks: list[Chunk]) -> torch.Tensor:
        logits_SV = run(self, chunks)
        if len(chunks) > 1:
            raise RuntimeError(SECRET)
        return logits_SV

    patch.setattr(Runner, "run", faulty)


def in_sampler(patch: pytest.MonkeyPatch) -> None:
    def faulty(logits_SV: torch.Tensor, sequences: list[Sequence], *more: Any) -> Any:
        if any(map(is_victim, sequences)):
            raise RuntimeError(SECRET)
        return sample(logits_SV, sequences, *more)

    patch.setattr("model.engine.execution.step_runner.sample", faulty)


def in_token_masks(patch: pytest.MonkeyPatch) -> None:
    apply = TokenMasks.apply

    def faulty(
        self: TokenMasks, logits_SV: torch.Tensor, sequences: list[Sequence]
    ) -> torch.Tensor:
        if any(map(is_victim, sequences)):
            raise RuntimeError(SECRET)
        return apply(self, logits_SV, sequences)

    patch.setattr(TokenMasks, "apply", faulty)


def in_detokenizer(patch: pytest.MonkeyPatch) -> None:
    class Faulty(Detokenizer):
        def __init__(self, tokenizer: Phi3VTokenizer, stop: tuple[str, ...], *more: Any) -> None:
            super().__init__(tokenizer, stop, *more)
            self.fails = stop == VICTIM.stop

        def add(self, token_id: int) -> tuple[str, bool]:
            if self.fails:
                raise RuntimeError(SECRET)
            return super().add(token_id)

    patch.setattr("model.engine.scheduling.sequence_factory.Detokenizer", Faulty)


def in_queueing(patch: pytest.MonkeyPatch) -> None:
    def make(tokenizer: Phi3VTokenizer, stop: tuple[str, ...], *more: Any) -> Detokenizer:
        if stop == VICTIM.stop:
            raise RuntimeError(SECRET)
        return Detokenizer(tokenizer, stop, *more)

    patch.setattr("model.engine.scheduling.sequence_factory.Detokenizer", make)


def in_tower(patch: pytest.MonkeyPatch) -> None:
    in_parts = Phi3VImageEmbedding.in_parts

    def faulty(
        self: Phi3VImageEmbedding, pixels: list[torch.Tensor], grids: list[tuple[int, int]]
    ) -> Generator[None, None, list[torch.Tensor]]:
        if any(float(p.mean()) < -1 for p in pixels):  # black ones
            raise torch.OutOfMemoryError(SECRET)
        return (yield from in_parts(self, pixels, grids))

    patch.setattr(Phi3VImageEmbedding, "in_parts", faulty)


OUT_OF_MEMORY = torch.OutOfMemoryError(f"CUDA out of memory. {SECRET}")
FAULTS: dict[str, Inject] = {
    "prefill": in_runner(lambda cs: any(fails(c, lambda c: not c.sequence.num_output) for c in cs)),
    "decode": in_runner(lambda cs: any(fails(c, lambda c: c.sequence.num_output > 0) for c in cs)),
    "memory": in_runner(lambda cs: any(map(is_victim, (c.sequence for c in cs))), OUT_OF_MEMORY),
    "sampler": in_sampler,
    "detokenizer": in_detokenizer,
    "queueing": in_queueing,
}
PASSING: dict[str, Inject] = {  # no sequence is at fault
    "memory for several": in_runner(lambda cs: len(cs) > 1, OUT_OF_MEMORY),
    "after the decoder": after_the_decoder,
}
