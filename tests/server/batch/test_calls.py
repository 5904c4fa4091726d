"""Forced calls and ignored parameters in a batch."""

from __future__ import annotations

from pathlib import Path

from tests.server.batch.jobs import body, by_id, command, request, run, write

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


def test_calls_in_a_batch(tiny: Path, tmp_path: Path) -> None:
    lines = [
        request("call", body(tools=TOOLS, tool_choice="required", max_tokens=99, colour=1)),
        request("auto", body(tools=TOOLS)),
    ]
    write(tmp_path / "in.jsonl", lines)
    done = run(command(tiny, tmp_path))
    assert done.returncode == 0, done.stderr
    assert "names=colour" in done.stderr
    results = by_id(tmp_path)
    (choice,) = results["call"]["response"]["body"]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"]["name"] in ("f", "g")
    assert call["function"]["arguments"] == "{}"
    assert results["auto"]["error"]["code"] == "parameter_not_supported"
