"""Benchmarks: what the engine and the server are worth, each against a peer or a limit.

| name | measures | against |
|---|---|---|
| ``engine`` | output tokens/s at several concurrencies | transformers: ``generate()``, and its continuous batching |
| ``server`` | tokens/s, time to first token, gaps between tokens, all through HTTP | vLLM on the CPU, and the engine without HTTP |
| ``image`` | time to first token of a large picture, and of a second turn about it | the time its arithmetic takes at the machine's matrix rate |
| ``stall`` | the longest gap of running streams while such a picture is admitted | their normal gap |
| ``stream`` | decode speed with weights that no cache holds, alone and eight together | the machine's speed at reading weights |
| ``soak`` | blocks leaked and memory grown over thousands of random requests | none, and flat |
| ``long`` | peak memory of prompts up to 32k tokens | linear growth |
| ``guidance`` | steps for answers to a JSON schema, and what a grammar adds to a step | no jump-ahead; no grammar |
| ``bodies`` | the longest pause of a stream while a body arrives that is slow to parse | 0.2 s |
| ``overload`` | refusals, and gaps of accepted streams, with ten times more clients than room | the same streams without them |
| ``batch`` | tokens/s of a file of requests | the same requests through HTTP |
| ``lookup`` | tokens/s of answers that copy, and of such as never repeat | no prompt lookup |
| ``drift`` | next-token distributions in bfloat16, and with weights of 8 and 4 bits | the same in float32 |
| ``quantized`` | decode steps and a prompt with weights of 8 and 4 bits | whole weights |
| ``kernels`` | decode steps and a prompt with the CPU's compiled kernels | torch's operators |
| ``full`` | a checkpoint of the official size behind the server: time to ready, memory, one picture, decoding | its files and KV cache; reading its weights once a step |

``full`` is not among ``all``: it writes 8.3 GB, and needs 12 GB of memory and some minutes.

Speeds of a shared machine drift by tens of percent within minutes. So all sides of a comparison are
measured in turn, several rounds in one run, each side alone while it is measured, and compared by
the medians of the rounds; figures of different runs do not compare. Everything runs on random
checkpoints that are made for the purpose. Nothing is asserted: each figure is printed beside its
target, written as JSON, and plotted.
"""
