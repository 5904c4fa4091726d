"""Does what only the first use of a model does, before the server is ready."""

from __future__ import annotations

from contextlib import suppress

from PIL import Image
from tqdm import tqdm

from model.engine.config import EngineConfig
from model.engine.engine import Engine
from model.engine.kv_cache.choice import on_cuda
from model.engine.request import SamplingParams
from model.errors import CheckpointError, ModelError, RequestError
from model.phi3v.inputs.chat import Message, MessageImage
from model.phi3v.inputs.image_processing import TILE
from model.phi3v.inputs.processing import PromptInputs
from model.phi3v.network import Network

WARM_UP = SamplingParams(temperature=0, max_tokens=1)
QUERIES = (1, 2, 4, 8, 16)  # tokens of a sequence that attention has kernels for


def compile_kernels(network: Network, config: EngineConfig) -> None:
    """Compile a GPU's kernels; later starts find them in Triton's cache.

    Args:
        network: the model.
        config: of the engine.
    """
    decoder = network.decoder
    if not decoder.fuses_attention:
        return
    from model.gpu.warm_up import compilations

    rows = config.max_num_seqs
    forms = compilations(network.config, network.dtype, decoder.device, rows, QUERIES)
    for _, compile_kernel in tqdm(forms, desc="Compiling GPU kernels"):
        compile_kernel()


def warm_up(engine: Engine) -> None:
    """Generate one token, because memory-mapped weights are read only at first use.

    On a GPU also answer about an image: libraries choose and load their kernels at first use.
    """
    prompts = [PromptInputs([0])]
    if on_cuda(engine.network.decoder.device):
        size = 2 * TILE  # several crops, and a prompt longer than a chunk
        picture = MessageImage(lambda: Image.new("RGB", (size, size)))
        with suppress(RequestError):  # it may exceed the context window
            prompts.append(engine.prepare([Message("user", "", (picture,))], WARM_UP)[0])
    for prompt in tqdm(prompts, desc="Warming up"):
        engine.add(-1, prompt, WARM_UP)
        while engine.has_work:
            for output in engine.step():
                if isinstance(output.result, ModelError):
                    raise CheckpointError(
                        f"the warm-up failed: {output.result.__cause__ or output.result}"
                    )
    engine.reset_totals()  # no client sent these requests
