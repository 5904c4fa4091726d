"""Check a GPU in less than ten minutes, and print a Markdown report to keep or to paste into an issue.

| part | question |
|---|---|
| ``kernels`` | does each kernel compute what torch computes in float32? |
| ``parity`` | are float32 answers those of the CPU and of the original implementation? |
| ``graphs`` | do CUDA graphs and batches change results, and does a step wait for the device once? |
| ``paths`` | which fast paths does the engine use, and why not the others? |
| ``steps`` | how long do decode steps take, which kernels take the time, and what is the limit? |
| ``pictures`` | how long does a picture wait for its first token, and streams for it? |
| ``acceptance`` | what does the official checkpoint answer to the questions that Azure documents? |
| ``peer`` | how fast is vLLM with the same load? |
| ``sanitizer`` | does compute-sanitizer find invalid memory accesses in a few steps? |

Weights are random and made on the device, except for ``parity``'s and with ``--model``. Each part runs in a
process of its own, because a GPU's fault makes a process unusable. Python needs torch 2.11 or newer,
transformers, Triton and llguidance; vLLM and compute-sanitizer are used if they are installed.

``--device cpu`` checks the CPU instead; with ``TRITON_INTERPRET=1`` kernels run in Triton's interpreter.
The exit status is 1 if a result is wrong or a part failed, and 2 if there is no GPU.
"""
