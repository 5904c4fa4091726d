"""Check a GPU and print a Markdown report to paste into an issue.

| part | question | compared with |
|---|---|---|
| ``parity`` | are float32 greedy answers the same as on the CPU, and the demo's answers right? | the CPU; the images |
| ``paths`` | which fast paths work, which does the engine use, and why not the others? | the engine's own probes |
| ``speed`` | how many tokens per second? | memory bandwidth, measured with a copy |

``--device cpu`` checks the CPU instead. The exit status is 1 if answers are wrong or a part failed, and
2 if there is no GPU.
"""
