"""OpenAI's Responses API, on top of chat completions.

A request is converted to the body of a chat completion, which ``server.chat`` validates and answers; the
answer's deltas become the response's output items and events. Independent of HTTP.
"""
