"""Benchmarks of the engine and the server, each compared with a peer or a limit.

| name | measures | compared with |
|---|---|---|
| ``engine`` | output tokens/s at several concurrencies | transformers: ``generate()`` and continuous batching |
| ``server`` | tokens/s, time to first token and inter-token latency over HTTP | vLLM on the CPU; the engine without HTTP |
| ``image`` | time to first token of a large image, and of a second turn about it | its arithmetic at the machine's peak matrix throughput |
| ``stall`` | longest inter-token gap of running streams while a large image is prefilled | their normal gap |
| ``stream`` | decode speed at batch sizes 1 and 8, with weights larger than any cache | the machine's memory bandwidth |
| ``soak`` | leaked blocks and memory growth over thousands of random requests | no leaks, no growth |
| ``long`` | peak memory of prompts up to 32k tokens | linear growth |
| ``guidance`` | steps per answer with a JSON schema, and a grammar's cost per step | no jump-ahead; no grammar |
| ``overload`` | refusals and gaps of accepted streams with ten times more clients than capacity | the same streams without overload |
| ``bodies`` | longest pause of a stream while the server parses large request bodies | its normal pause |
| ``batch`` | tokens/s of a batch file | the same requests over HTTP |
| ``lookup`` | tokens/s with prompt lookup, on answers that copy and answers that never repeat | without prompt lookup |
| ``drift`` | next-token distributions in bfloat16, int8 and int4 | float32 |
| ``quantized`` | decode and prefill time with int8 and int4 weights | unquantized weights |
| ``kernels`` | decode and prefill time with the compiled CPU kernels | torch's operators |
| ``gpu-plan`` | launches and bytes of a decode step on a GPU, counted; milliseconds predicted | weights, keys and values read once |
| ``wire`` | processor time per event, and gaps, of up to 256 streams of a fast model | one core; the model's steps |
| ``pacing`` | a long prompt beside streams on cards, predicted with a simulated clock | pacing with one cost per token; limits |
| ``full`` | the server with a checkpoint of the official size: startup time, memory, one image, decoding | its files and KV cache; reading the weights once per step |

``all`` excludes ``full``, which writes 8.3 GB, needs 12 GB of memory and takes several minutes.

The speed of a shared machine drifts by tens of percent within minutes. Each run therefore measures
all sides in turn, one at a time, for several rounds, and compares the medians; do not compare figures
of different runs. All benchmarks but ``pacing`` and ``gpu-plan``, which compute nothing, and ``wire`` run on random
checkpoints.
They assert nothing: they print each figure next to its target, write it as JSON and plot it.
"""
