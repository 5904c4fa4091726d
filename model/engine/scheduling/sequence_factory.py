"""Creates the sequences of a request, one for each answer."""

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
    """Creates sequences.

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
        caller: str,
    ) -> list[Sequence]:
        """Create a request's sequences; the first is the leader if they share the prompt.

        For the arguments see ``Engine.add``.
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
            sequence.caller = "" if self._config.trust_priority else caller
            sequence.most_together = self._policy.most_together
            if self._may_guess(params):
                sequence.lookup = Lookup(sequence.prompt_len)
            if self._policy.shared_prompts and sequences:
                sequence.leader = sequences[0]
            sequences.append(sequence)
        return sequences

    def _all_stop_ids(self, params: SamplingParams) -> frozenset[int]:
        own = () if params.ignore_eos else self._stop_ids
        # Control tokens never appear in the text, so a stop string that names one becomes a stop id.
        named = {self._tokenizer.special_id(string) for string in params.stop} - {None}
        return frozenset([*own, *params.stop_token_ids, *named])

    def _may_guess(self, params: SamplingParams) -> bool:
        """Whether prompt lookup is allowed: the logits must depend only on the tokens so far."""
        changing = params.presence_penalty or params.frequency_penalty or params.min_tokens
        plain = not changing and params.repetition_penalty == 1 and params.grammar is None
        return plain and self._policy.prompt_lookup

    def _detokenizer(self, params: SamplingParams) -> Detokenizer:
        # A replacement character at the end of a truncated answer would violate its grammar.
        half = REPLACEMENT if params.grammar is None else ""
        return Detokenizer(self._tokenizer, params.stop, half, params.skip_special_tokens)
