"""The events of an answer, as openai's own client puts them together."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from openai._models import construct_type_unchecked
from openai._types import omit
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from server.responses.output import AnswerDelta, CallDelta, Output, Said
from server.responses.wire import event_pieces, response_pieces
from server.schemas.responses_events import ResponseEvent
from server.schemas.responses_object import ResponseObject, TextConfig

ID = "resp_" + "0" * 32
RESPONSE = ResponseObject(
    id=ID,
    created_at=1,
    model="phi3v",
    previous_response_id=None,
    instructions='say "logprobs":[] often',
    max_output_tokens=None,
    max_tool_calls=None,
    temperature=1,
    top_p=1,
    top_logprobs=0,
    text=TextConfig(format={"type": "text"}),
    tools=[{"type": "function", "name": "f", "parameters": {"logprobs": []}}],
    tool_choice="required",
    parallel_tool_calls=False,
    store=False,
    metadata={"logprobs": "[]"},
    prompt_cache_key=None,
    safety_identifier=None,
    user=None,
)


def sent(said: Said) -> dict[str, Any]:
    text = b"".join(event_pieces(said.event, said.logprobs)).decode()
    name, data, *end = text.split("\n")
    assert end == ["", ""]
    event: dict[str, Any] = json.loads(data.removeprefix("data: "))
    assert name == f"event: {event['type']}"
    return event


def told(deltas: list[AnswerDelta]) -> tuple[Output, list[dict[str, Any]]]:
    output = Output(ID)
    created = ResponseEvent(
        type="response.created", sequence_number=next(output.numbers), response=RESPONSE
    )
    events = [sent(Said(created))]
    for delta in deltas:
        events += map(sent, output.add(delta))
    events += map(sent, output.finish("completed"))
    done = RESPONSE.model_copy(update={"status": "completed", "output": output.items("completed")})
    last = ResponseEvent(
        type="response.completed", sequence_number=next(output.numbers), response=done
    )
    events.append(sent(Said(last, output.logprobs)))
    return output, events


def accumulated(events: list[dict[str, Any]]) -> Response:
    """What the client's ``stream`` makes of the events."""
    state: ResponseStreamState[None] = ResponseStreamState(input_tools=omit, text_format=omit)
    for event in events:
        state.handle_event(construct_type_unchecked(type_=ResponseStreamEvent, value=event))  # type: ignore[arg-type]
    assert state._completed_response is not None
    return state._completed_response


TEXT = [AnswerDelta("Hel"), AnswerDelta("lo")]
CALLS = [
    AnswerDelta(calls=[CallDelta(0, "", "call_1", "weather")]),
    AnswerDelta(calls=[CallDelta(0, '{"city"')]),
    AnswerDelta(calls=[CallDelta(0, ': "Rome"}'), CallDelta(1, "{}", "call_2", "time")]),
]


@pytest.mark.parametrize("deltas", [TEXT, CALLS, [*TEXT, *CALLS], [*CALLS, *TEXT], []])
def test_items_and_events_agree(deltas: list[AnswerDelta]) -> None:
    output, events = told(deltas)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    response = accumulated(events)
    items = [item.model_dump() for item in output.items("completed")]
    assert items == events[-1]["response"]["output"]
    for index, item in enumerate(response.output):
        own = [event for event in events if event.get("output_index") == index]
        assert [own[0]["type"], own[-1]["type"]] == [
            "response.output_item.added",
            "response.output_item.done",
        ]
        assert own[0]["item"]["status"] == "in_progress"
        assert own[-1]["item"] == items[index]
        assert {event.get("item_id", item.id) for event in own} == {item.id}
        pieces = [event["delta"] for event in own if event["type"].endswith(".delta")]
        whole = item.arguments if item.type == "function_call" else response.output_text
        assert "".join(pieces) == whole
    kinds = [item.type for item in response.output]
    assert kinds.count("function_call") == (2 if any(delta.calls for delta in deltas) else 0)
    assert response.output_text == "".join(delta.text for delta in deltas)


def test_a_call_has_its_own_events() -> None:
    _, events = told(CALLS)
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "output_item.added",
        *["function_call_arguments.delta"] * 2,
        "function_call_arguments.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    done = events[4]
    assert (done["name"], done["arguments"]) == ("weather", '{"city": "Rome"}')


def test_log_probabilities_are_put_where_they_belong() -> None:
    """Also if a client's own fields look like the place for them."""
    token = '{"token":"%s","logprob":-1.0,"bytes":[1],"top_logprobs":[]}'
    deltas = [AnswerDelta('"logprobs":[]', (token % i).encode()) for i in range(2)]
    output, events = told([*deltas, *CALLS])
    both = [json.loads(token % i) for i in range(2)]
    texts = [event for event in events if event["type"].startswith("response.output_text")]
    assert [event["logprobs"] for event in texts] == [both[:1], both[1:], both]
    (part,) = [event for event in events if event["type"] == "response.content_part.done"]
    assert part["part"]["logprobs"] == both
    last = events[-1]["response"]
    assert last["output"][0]["content"][0]["logprobs"] == both
    assert last["tools"] == RESPONSE.tools
    status: Literal["completed"] = "completed"
    response = RESPONSE.model_copy(update={"output": output.items(status)})
    assert (
        json.loads(b"".join(response_pieces(response, output.logprobs)))["tools"] == last["tools"]
    )
