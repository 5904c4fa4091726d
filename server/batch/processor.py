"""Processes the lines of a batch concurrently and writes results as they finish."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

import model
from server.batch.lines import Line
from server.batch.progress import Progress
from server.batch.results import Results
from server.chat.bodies import ParsedJson, parse_json
from server.chat.logprobs import pydantic_numbers
from server.chat.parameters import ignored_header
from server.chat.parse import ParsedChat, parse_chat
from server.chat.prepare import PreparedChat, RunningCompletion, prepare
from server.errors import (
    ApiError,
    error_body,
    from_model_error,
    from_validation_error,
    internal_error,
    invalid_parameter,
    not_supported,
    too_large,
)
from server.images.fetching import FetchError
from server.images.urls import Images
from server.responses.prepare import PreparedResponse, convert, prepare_response
from server.responses.running import RunningResponse
from server.schemas.batch import BatchError, BatchRequest, BatchResponse, BatchResult, CustomId
from server.service import Backend

logger = logging.getLogger(__name__)

# Statuses of transient failures: the request timeout and engine faults.
TRANSIENT = (408, 500)
CUSTOM_ID: TypeAdapter[str] = TypeAdapter(CustomId)


class BatchEndedError(Exception):
    """The batch cannot continue; the message says why."""


class BatchProcessor:
    """Runs the requests of a batch and writes their results.

    Args:
        backend: a loaded backend.
        results: the output.
        progress: counts the lines.

    Attributes:
        complete: whether all lines were processed.
    """

    def __init__(self, backend: Backend, results: Results, progress: Progress) -> None:
        self._backend = backend
        self._results = results
        self._progress = progress
        self._stopping = False
        self._ended = asyncio.Event()  # set and replaced whenever a line finishes
        self._first = asyncio.Lock()  # held by the line that starts next
        self.complete = False

    async def process(self, lines: Iterator[Line]) -> None:
        """Process all lines. Half of the lines in flight are prepared ahead and wait for the engine.

        Raises:
            BatchEndedError: the engine has failed.
            OSError: a result cannot be written.
        """
        count = 2 * self._backend.engine.max_num_seqs
        workers = [asyncio.create_task(self._work(lines)) for _ in range(count)]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
        self.complete = not self._stopping or all(line.is_empty for line in lines)

    def stop(self) -> None:
        """Start no more lines."""
        self._stopping = True

    async def _work(self, lines: Iterator[Line]) -> None:
        while not self._stopping:
            line = next(lines, None)
            if line is None:
                return
            result = await self._result(line)
            if result is not None:
                self._results.write(*result)
            self._progress.advance(line.size)
            self._ended.set()
            self._ended = asyncio.Event()
            await asyncio.sleep(0)  # let signals through while skipping many lines

    async def _result(self, line: Line) -> tuple[BatchResult, Iterable[bytes]] | None:
        """Process a line; returns None if there is nothing to write. Raises BatchEndedError."""
        if line.is_empty:
            return None
        custom_id, is_transient = None, False
        try:
            parsed = await self._parse_json(line)
            value = parsed.value
            given = _custom_id_of(value)
            if given is not None and not self._results.claim(given):
                self._progress.earlier()
                return None
            custom_id = given
            body, tokens = await self._complete(parsed)
        except ApiError as error:
            failure = error
        except model.ModelError as error:
            failure = from_model_error(error)
            is_transient = isinstance(error, FetchError)
        except Exception:  # a bug; continue with the other lines
            logger.exception("line %d failed", line.number)
            failure = internal_error("internal error; see the log")
        else:
            self._progress.answered(tokens)
            return _result(custom_id, 200), body
        if failure.status == 503:
            raise BatchEndedError(f"{failure.message}; run the batch again for the remaining lines")
        if custom_id is None and self._results.has_line(line.number):
            self._progress.earlier()
            return None
        if is_transient or failure.status in TRANSIENT:
            logger.warning(
                "line %d will be retried by the next run: %s", line.number, failure.message
            )
            self._progress.left += 1
            return None
        self._progress.failed()
        result = _result(custom_id, failure.status)
        result.error = BatchError(code=failure.code, message=failure.message, line=line.number)
        return result, [to_json(error_body(failure))]

    async def _parse_json(self, line: Line) -> ParsedJson:
        """Parse the line as JSON; raises an ApiError."""
        if line.data is None:
            limit = self._backend.settings.max_body_bytes
            reason = f"the line has {line.size} bytes; the limit is {limit} (--max-body-mb)"
            raise too_large(reason)
        return await parse_json(line.data, "the line")

    async def _complete(self, line: ParsedJson) -> tuple[Iterable[bytes], int]:
        """Run the line's request; returns the JSON of the answer in pieces, and the tokens of the answer.

        Raises:
            ApiError: the request is invalid or not supported.
            model.ModelError: the engine refuses it or fails.
        """
        request = await line.validate(_request_of)
        body = ParsedJson(request.body, line.size)
        # Held bytes need no limit here: sizes and the number of lines in flight are bounded.
        backend = self._backend
        images = Images(
            backend.decode_pool,
            backend.fetcher,
            lambda _: None,
            backend.settings.images_per_prompt,
        )
        prepare_line = self._response if request.url == "/v1/responses" else self._chat
        running = await self._start(await prepare_line(body, images))
        try:
            finished = await running.complete(pydantic_numbers)
            return finished.pieces(), running.generation.completion_tokens
        finally:
            running.generation.close()

    async def _chat(self, body: ParsedJson, images: Images) -> PreparedChat:
        most = self._backend.settings.max_messages
        parsed = await body.validate(lambda value: parse_chat(value, "ignore", most))
        _check_chat(parsed)
        return await prepare(self._backend, parsed, images, parsed.request.cache_salt or "")

    async def _response(self, body: ParsedJson, images: Images) -> PreparedResponse:
        why = "a batch stores no responses"
        converted = await convert(self._backend, body, "ignore", None, why)
        _check_chat(converted.chat)
        salt = converted.chat.request.cache_salt or ""
        return await prepare_response(self._backend, converted, images, salt)

    async def _start(
        self, prepared: PreparedChat | PreparedResponse
    ) -> RunningCompletion | RunningResponse:
        """Start a request, waiting while the engine is overloaded; first come, first served."""
        if not self._first.locked():
            with contextlib.suppress(model.OverloadedError):
                return await prepared.start()
        async with self._first:
            while True:
                ended = self._ended
                try:
                    return await prepared.start()
                except model.OverloadedError:  # by other lines, one of which will finish
                    await ended.wait()


def _custom_id_of(value: object) -> str | None:
    """The line's custom_id, if it is valid."""
    try:
        return CUSTOM_ID.validate_python(
            value.get("custom_id") if isinstance(value, dict) else None
        )
    except ValidationError:
        return None


def _request_of(value: object) -> BatchRequest:
    """Validate the line; raises a 422 ApiError."""
    if not isinstance(value, dict):
        reason = "the line must be a JSON object with custom_id, method, url and body"
        raise invalid_parameter(reason, value=value)
    try:
        return BatchRequest.model_validate(value)
    except ValidationError as error:
        raise from_validation_error(error, value) from error


def _check_chat(parsed: ParsedChat) -> None:
    """Refuse a streamed answer, with a 422 ApiError, and log ignored parameters."""
    if parsed.request.stream:
        reason = "stream is not supported in a batch; remove it"
        raise not_supported(reason, ("stream",), parsed.request.stream)
    ignored_header(parsed.ignored)  # a result has no headers, but the log names them


def _result(custom_id: str | None, status: int) -> BatchResult:
    """A result with an empty body."""
    response = BatchResponse(status_code=status, request_id=uuid.uuid4().hex, body={})
    return BatchResult(id=f"batch_req_{uuid.uuid4().hex}", custom_id=custom_id, response=response)
