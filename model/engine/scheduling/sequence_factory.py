"""From a request to its sequences, one for each of its answers."""

from __future__ import annotations

from model.engine.config import EngineConfig
from model.engine.grammars.grammar import Grammar
from model.engine.policy import Policy
from model.engine.request import SamplingParams
from model.engine.scheduling.sequence import Sequence
from model.engine.text.detokenizer import REPLACEMENT, Detokenizer
from model.engine.text.lookup import Lookup
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.inputs.tokenizer import Phi3VTokenizer


class SequenceFactory:
    """Makes the sequences of requests.

    Args:
        tokenizer: of the checkpoint.
        stop_ids: tokens that end an answer, unless a request ignores them.
        config: sizes.
        policy: what sequences may share and guess.
    """

    def __init__(
        self,
        tokenizer: Phi3VTokenizer,
        stop_ids: frozenset[int],
        config: EngineConfig,
        policy: Policy,
    ) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = stop_ids
        self._config = config
        self._policy = policy

    def __call__(
        self,
        request_id: int,
        inputs: PromptInputs,
        params: SamplingParams,
        arrived: float,
        grammar: Grammar | None,
    ) -> list[Sequence]:
        """The sequences of a request; the first leads where they share the prompt.

        The arguments are those of ``Engine.add``.
        """
        max_tokens = self._config.longest_answer(len(inputs.token_ids), params.max_tokens)
        stop_ids = self._all_stop_ids(params)
        sequences: list[Sequence] = []
        for index in range(params.n):
            sequence = Sequence(
                (request_id, index),
                inputs,
                params,
                max_tokens,
                stop_ids,
                self._detokenizer(params),
            )
            sequence.arrived = arrived
            sequence.grammar = grammar
            sequence.most_together = self._policy.most_together
            if self._may_guess(params):
                sequence.lookup = Lookup(sequence.prompt_len)
            if self._policy.shared_prompts and sequences:
                sequence.leader = sequences[0]
            sequences.append(sequence)
        return sequences

    def _all_stop_ids(self, params: SamplingParams) -> frozenset[int]:
        own = () if params.ignore_eos else self._stop_ids
        # A stop string that names a control token never shows in the text; its id ends the answer.
        named = {self._tokenizer.special_id(string) for string in params.stop} - {None}
        return frozenset([*own, *params.stop_token_ids, *named])

    def _may_guess(self, params: SamplingParams) -> bool:
        """Whether a sequence's logits depend on nothing but its tokens so far, in order."""
        changing = params.presence_penalty or params.frequency_penalty or params.min_tokens
        plain = not changing and params.repetition_penalty == 1 and params.grammar is None
        return plain and self._policy.prompt_lookup

    def _detokenizer(self, params: SamplingParams) -> Detokenizer:
        # Half a character at the end of an answer that was cut off would not match its grammar.
        half = REPLACEMENT if params.grammar is None else ""
        return Detokenizer(self._tokenizer, params.stop, half)
