"""Turns a running chat completion into a response: events of a stream, or one whole response."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import model
from server.chat.answers import Answer
from server.chat.logprobs import NumberWriter, logprobs_json, pydantic_numbers
from server.chat.prepare import RunningCompletion
from server.errors import from_model_error
from server.responses.field_names import FieldNames
from server.responses.output import AnswerDelta, CallDelta, Output, Said
from server.responses.store import StoredResponse
from server.responses.wire import Pieces, event_pieces, response_pieces
from server.schemas.responses_events import EventType, ResponseEvent
from server.schemas.responses_object import (
    IncompleteDetails,
    InputTokensDetails,
    ResponseFault,
    ResponseObject,
    ResponseUsage,
)

logger = logging.getLogger(__name__)

Keep = Callable[[StoredResponse], None]
ENDS: dict[Literal["completed", "incomplete"], EventType] = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
}


@dataclass(frozen=True)
class FinishedResponse:
    """A whole response; its JSON is in pieces, because log probabilities can make it long."""

    completion_tokens: int
    json: Pieces

    def pieces(self) -> Pieces:
        """The response's JSON in pieces."""
        return self.json


class RunningResponse:
    """A response in progress. Read it once, streamed or whole, and close the generation.

    Args:
        running: the chat completion.
        response: the response before it has any output.
        names: what fields are called in errors.
        input_items: JSON of the input items, for ``keep``.
        keep: stores the response once it is finished; None does not.

    Attributes:
        generation: the engine's generation.
        envelope: the response's id, its model and when it was created.
    """

    def __init__(
        self,
        running: RunningCompletion,
        response: ResponseObject,
        names: FieldNames,
        input_items: bytes,
        keep: Keep | None,
    ) -> None:
        self.generation = running.generation
        (self._answer,) = running.answers()
        self.envelope = replace(running.envelope, id=response.id)
        self._response = response.model_copy(update={"created_at": running.envelope.created})
        self._names = names
        self._input_items = input_items
        self._keep = keep
        self._output = Output(response.id)

    async def stream(self) -> AsyncIterator[bytes]:
        """Stream the server-sent events; an error of the model becomes the last one."""
        yield b"".join(self._event("response.created", self._response))
        yield b"".join(self._event("response.in_progress", self._response))
        try:
            async for delta in answer_deltas(self.generation, self._answer, pydantic_numbers):
                for said in self._output.add(delta):
                    for piece in _pieces(said):
                        yield piece
        except model.ModelError as error:
            failed = from_model_error(self._names.renamed(error))
            logger.warning("stream failed: %s", failed.code)  # the message may quote a grammar
            for piece in self._event("response.failed", self._failed(error, failed.message)):
                yield piece
            return
        status = self._status()
        for said in self._output.finish(status):
            for piece in _pieces(said):
                yield piece
        response = self._finished(status)
        self._store(response)
        for piece in self._event(ENDS[status], response):
            yield piece

    async def complete(self, write_numbers: NumberWriter = pydantic_numbers) -> FinishedResponse:
        """Collect all of it; raises a ModelError. ``write_numbers`` formats the log probabilities."""
        with self._names.in_errors():
            async for delta in answer_deltas(self.generation, self._answer, write_numbers):
                for _ in self._output.add(delta):
                    pass
        status = self._status()
        for _ in self._output.finish(status):
            pass
        response = self._finished(status)
        pieces = self._store(response)
        return FinishedResponse(self.generation.completion_tokens, pieces)

    def _event(self, kind: EventType, response: ResponseObject) -> list[bytes]:
        number = next(self._output.numbers)
        event = ResponseEvent(type=kind, sequence_number=number, response=response)
        logprobs = self._output.logprobs if response.output else ()
        return list(event_pieces(event, logprobs))

    def _status(self) -> Literal["completed", "incomplete"]:
        return "incomplete" if "length" in self.generation.finish_reasons else "completed"

    def _finished(self, status: Literal["completed", "incomplete"]) -> ResponseObject:
        changed: dict[str, Any] = {"status": status, "output": self._output.items(status)}
        if status == "completed":
            changed["completed_at"] = int(time.time())
        else:
            changed["incomplete_details"] = IncompleteDetails()
        generation = self.generation
        changed["usage"] = ResponseUsage(
            input_tokens=generation.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=generation.cached_tokens),
            output_tokens=generation.completion_tokens,
            total_tokens=generation.prompt_tokens + generation.completion_tokens,
        )
        return self._response.model_copy(update=changed)

    def _failed(self, error: model.ModelError, message: str) -> ResponseObject:
        invalid = isinstance(error, model.RequestError)
        fault = ResponseFault(
            code="invalid_prompt" if invalid else "server_error",
            message=message,
        )
        output = self._output.items("incomplete")
        changed = {"status": "failed", "error": fault, "output": output}
        return self._response.model_copy(update=changed)

    def _store(self, response: ResponseObject) -> Pieces:
        """Store the response, if it is to be stored; returns its JSON."""
        pieces = response_pieces(response, self._output.logprobs)
        if self._keep is not None:
            plain = response.model_dump_json(include={"output"}).encode()
            output = plain.removeprefix(b'{"output":').removesuffix(b"}")
            stored = StoredResponse(
                response.id, response.previous_response_id, tuple(pieces), self._input_items, output
            )
            self._keep(stored)
        return pieces


def _pieces(said: Said) -> list[bytes]:
    return list(event_pieces(said.event, said.logprobs))


async def answer_deltas(
    generation: model.Generation, answer: Answer, write_numbers: NumberWriter
) -> AsyncIterator[AnswerDelta]:
    """What each delta of a chat completion adds to the answer; raises a ModelError."""
    is_text = answer.nothing().content is not None
    async for delta in generation:
        # Function calls have no log probabilities in this API.
        logprobs = logprobs_json(delta.logprobs, write_numbers) if is_text else b""
        for piece in answer.add(delta.text) or ([answer.nothing()] if logprobs else []):
            calls = [
                CallDelta(
                    call.index, call.function.arguments, call.id or "", call.function.name or ""
                )
                for call in piece.tool_calls or ()
            ]
            yield AnswerDelta(piece.content or "", logprobs, calls)
            logprobs = b""
        if delta.logprobs:
            await asyncio.sleep(0)  # let others run between large deltas
