"""A loaded model as the engine runs it: the fastest implementation for its device."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch

from model.phi3v.configuration import Phi3VConfig
from model.phi3v.decoder import Decoder, TorchDecoder
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.vision import Phi3VImageEmbedding
from model.phi3v.weights.onednn import use_onednn
from model.phi3v.weights.quantization import use_torch_kernels

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """The parts of a model that the engine uses.

    Attributes:
        config: of the checkpoint.
        decoder: the language model.
        vision: the image embedding.
        dtype: of the weights.
    """

    config: Phi3VConfig
    decoder: Decoder
    vision: Phi3VImageEmbedding
    dtype: torch.dtype


def make_network(model: Phi3VForCausalLM) -> Network:
    """Return the parts of ``model``; on the CPU it is modified and unusable afterwards."""
    vision, dtype = model.model.vision_embed_tokens, model.dtype
    if model.device.type == "cuda":
        # By default cuDNN rounds float32 operands to 10 bits, and the tower begins with a convolution.
        torch.backends.cudnn.allow_tf32 = False
    return Network(model.config, _make_decoder(model), vision, dtype)


def _make_decoder(model: Phi3VForCausalLM) -> Decoder:
    if model.device.type != "cpu":
        return _make_gpu_decoder(model)
    try:
        from model.phi3v.decoder_cpu import CpuDecoder, unsupported_reason
    except ImportError as error:
        reason: str | None = str(error)
    else:
        reason = unsupported_reason(model)
        if reason is None:
            return CpuDecoder(model)
    logger.warning("using the uncompiled decoder, which is slower: %s", reason)
    use_torch_kernels(model)
    use_onednn(model)
    return TorchDecoder(model)


def _make_gpu_decoder(model: Phi3VForCausalLM) -> Decoder:
    use_torch_kernels(model)
    try:
        from model.phi3v.decoder_gpu import GpuDecoder, unsupported_reason
    except ImportError as error:
        reason: str | None = str(error)
    else:
        reason = unsupported_reason(model)
        if reason is None:
            return GpuDecoder(model)
    logger.warning("decoding without fused kernels and CUDA graphs, which is slower: %s", reason)
    return TorchDecoder(model)
