"""Checks a GPU, and prints a report in Markdown to be pasted into an issue.

| part | question | against |
|---|---|---|
| ``parity`` | are float32 greedy answers the CPU's, and the demo's answers true? | the CPU, and the pictures |
| ``paths`` | which of the fast paths work here, which are chosen, and why not the others? | their own probes |
| ``speed`` | how fast do tokens come? | the memory's speed, measured by a copy |

``--device cpu`` has the CPU stand in for the GPU. The exit status is 1 where answers are wrong or a
part has failed, and 2 where there is no GPU.
"""
