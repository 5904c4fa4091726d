"""Phi-3-vision on the CPU with compiled kernels: one call per step of the decoder.

Results are bit-identical regardless of batching, because the kernels sum in a fixed order.

Shape suffixes as in ``decoder``.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from model.cpu.compiler.jit import address
from model.cpu.decoder import DecoderKernels
from model.cpu.linear import microkernel
from model.cpu.linear.linear import TiledLinear
from model.cpu.linear.packing import nibbles, pack, pack_pairs
from model.cpu.memory import release_weight
from model.cpu.self_attention import SelfAttention
from model.phi3v.decoder import Attention
from model.phi3v.modeling import Phi3VForCausalLM
from model.phi3v.weights.quantization import QuantizedLinear

_STORED = {
    torch.int8: np.uint16,
    torch.uint8: np.uint64,
}  # the kernels' type for several packed numbers


def unsupported_reason(model: Phi3VForCausalLM) -> str | None:
    """Why the kernels do not support a model on this machine; None if they do."""
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the kernels support float32 and bfloat16, not {model.dtype}"
    if not microkernel.supported(model.dtype is torch.bfloat16):
        return "this CPU lacks AVX-512, or has AMX, which oneDNN uses better"
    config = model.config
    if config.hidden_act != "silu" or config.hidden_size % 2 or config.intermediate_size % 2:
        return "the decoder has an activation other than SiLU, or odd sizes"
    if any(layer.self_attn.qkv_proj.bias is not None for layer in model.model.layers):
        return "the decoder has biases"
    return None


@runtime_checkable
class CompiledAttention(Protocol):
    """An ``Attention`` that can be part of a whole step's kernel."""

    def bind(self, q_THD: Tensor, k_TGD: Tensor, v_TGD: Tensor, output_THD: Tensor) -> np.ndarray:
        """Records of ``model.cpu.attention``, one per layer, set to use these arrays."""
        ...


class CpuDecoder:
    """See ``model.phi3v.decoder.Decoder``.

    Args:
        model: float32 or bfloat16; unusable afterwards, because its linear layers lose their weights.
    """

    batch_invariant = True
    fuses_attention = False

    def __init__(self, model: Phi3VForCausalLM) -> None:
        config = model.config
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self._embed_tokens = model.model.embed_tokens
        self._number = model.dtype
        self._width, self._intermediate = config.hidden_size, config.intermediate_size
        self._heads = config.num_attention_heads
        self._groups = config.num_key_value_heads or self._heads
        self._head_dim = self._width // self._heads
        self._kept: list[Tensor] = []  # kept alive, because the records hold addresses
        sample = model.model.layers[0].self_attn.qkv_proj
        quantized = _STORED[sample.values.dtype] if isinstance(sample, QuantizedLinear) else None
        self._kernels = DecoderKernels(model.dtype is torch.bfloat16, quantized)
        self._layers = range(config.num_hidden_layers)
        self.layer_devices = [self.device for _ in self._layers]
        self._make_records(model)
        _pack_vision(model)

    def _make_records(self, model: Phi3VForCausalLM) -> None:
        """Create one record per layer and kernel, with everything that is constant across steps."""
        count, kernels = len(self._layers), self._kernels
        sizes: dict[str, float] = {"width": self._width, "epsilon": model.config.rms_norm_eps}
        self._before = kernels.before.records(
            count, heads=self._heads, groups=self._groups, head_dim=self._head_dim, **sizes
        )
        self._after = kernels.after.records(
            count,
            inner_width=self._heads * self._head_dim,
            intermediate=self._intermediate,
            **sizes,
        )
        self._step = kernels.step.records(layers=count)
        self._logits = kernels.logits.records(vocabulary=model.lm_head.weight.shape[0], **sizes)
        shared = model.model.embed_tokens.weight.data_ptr()
        tied = model.lm_head.weight.data_ptr() == shared
        layers = list(zip(self._layers, model.model.layers, strict=True))
        for index, layer in tqdm(layers, desc="Packing weights"):
            before, after = self._before[index], self._after[index]
            before["norm"] = self._norm(layer.input_layernorm)
            after["norm"] = self._norm(layer.post_attention_layernorm)
            self._weight(before, "qkv", layer.self_attn.qkv_proj)
            self._weight(after, "output", layer.self_attn.o_proj)
            self._weight(after, "pairs", layer.mlp.gate_up_proj, paired=True)
            self._weight(after, "down", layer.mlp.down_proj)
        self._logits["norm"] = self._norm(model.model.norm)
        self._weight(self._logits[0], "head", model.lm_head, keep=tied)

    def _norm(self, norm: nn.Module) -> int:
        weight = norm.weight
        assert isinstance(weight, Tensor)
        self._kept.append(weight.float().contiguous())
        return address(self._kept[-1])

    def _weight(
        self,
        record: np.void,
        name: str,
        linear: nn.Module,
        paired: bool = False,
        keep: bool = False,
    ) -> None:
        """Pack a layer's weight into a record, and release the original unless ``keep``."""
        if isinstance(linear, QuantizedLinear):
            self._quantized_weight(record, name, linear, paired)
            return
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.data
        packed = pack_pairs(*weight.chunk(2)) if paired else pack(weight)
        self._kept.append(packed)
        record[f"{name}_weight"] = address(packed)
        record[f"{name}_panels"], record[f"{name}_words"] = packed.shape[:2]
        if not keep:
            release_weight(linear)

    def _quantized_weight(
        self, record: np.void, name: str, layer: QuantizedLinear, paired: bool
    ) -> None:
        scales = torch.stack([layer.scales, layer.offsets], 2).view(torch.int16).flatten(1)
        values, groups = layer.values, layer.scales.shape[1]
        values = values.view(torch.int16) if values.dtype is torch.int8 else nibbles(values)
        packed, packed_scales = (
            pack_pairs(*stored.chunk(2)) if paired else pack(stored) for stored in (values, scales)
        )
        self._kept += [packed, packed_scales]
        record[f"{name}_weight"], record[f"{name}_scales"] = address(packed), address(packed_scales)
        record[f"{name}_panels"], record[f"{name}_words"] = packed.shape[:2]
        record[f"{name}_groups"] = groups
        layer.values = layer.scales = layer.offsets = torch.empty(0)

    def embed(self, token_ids: Tensor) -> Tensor:
        """See ``Decoder``."""
        return self._embed_tokens(token_ids).float()

    def __call__(
        self, hidden_TE: Tensor, cos_TD: Tensor, sin_TD: Tensor, attend: Attention
    ) -> Tensor:
        """See ``Decoder``; ``hidden_TE`` is changed in place."""
        tokens, inner_width = len(hidden_TE), self._heads * self._head_dim
        widest = max(self._width, inner_width)
        inputs = torch.empty(tokens, widest, dtype=self._number)
        gated = torch.empty(tokens, self._intermediate, dtype=self._number)
        qkv = torch.empty(tokens, (self._heads + 2 * self._groups) * self._head_dim)
        q_THD = torch.empty(tokens, self._heads, self._head_dim)
        attended_THD = torch.empty_like(q_THD)
        k_TGD = torch.empty(tokens, self._groups, self._head_dim, dtype=self._number)
        v_TGD = torch.empty_like(k_TGD)
        before, after = self._before, self._after
        before["tokens"] = after["tokens"] = tokens
        before["hidden"] = after["hidden"] = address(hidden_TE)
        before["normed"] = after["inputs"] = address(inputs)
        for name, value in {
            "qkv": qkv,
            "cos": cos_TD,
            "sin": sin_TD,
            "q": q_THD,
            "k": k_TGD,
            "v": v_TGD,
        }.items():
            before[name] = address(value)
        after["gated"] = address(gated)
        if isinstance(attend, CompiledAttention):
            after["attended"] = address(attended_THD)
            self._run_all(attend.bind(q_THD, k_TGD, v_TGD, attended_THD))
            return hidden_TE
        for layer in self._layers:
            self._kernels.before.run(before, layer)
            attended_THD = attend(layer, q_THD, k_TGD, v_TGD)
            after["attended"][layer] = address(attended_THD)
            self._kernels.after.run(after, layer)
        return hidden_TE

    def _run_all(self, attention: np.ndarray) -> None:
        """Run all layers in one kernel."""
        for records in (self._before, self._after, attention):
            records["phases"] = 0
        step = self._step
        step["before"], step["after"] = address(self._before), address(self._after)
        step["attention"] = address(attention)
        self._kernels.step.run(step)

    def logits(self, hidden_SE: Tensor) -> Tensor:
        """See ``Decoder``."""
        records = self._logits
        normed = torch.empty(hidden_SE.shape, dtype=self._number)
        logits_SV = torch.empty(len(hidden_SE), int(records["vocabulary"][0]))
        records["tokens"] = len(hidden_SE)
        records["hidden"], records["normed"] = address(hidden_SE), address(normed)
        records["logits"] = address(logits_SV)
        self._kernels.logits.run(records)
        return logits_SV


def _pack_vision(model: Phi3VForCausalLM) -> None:
    """Replace linear layers, MLPs and attention of the tower and the projector with kernels."""
    vision = model.model.vision_embed_tokens
    config = model.config.vision_config
    linears = [name for name, module in vision.named_modules() if isinstance(module, nn.Linear)]
    for name in tqdm(linears, desc="Packing vision weights"):
        linear = vision.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        gelu = name.endswith("fc1") and config.hidden_act == "quick_gelu"
        tiled = TiledLinear(
            pack(linear.weight.data),
            linear.bias,
            (linear.out_features, linear.in_features),
            "quick_gelu" if gelu else "none",
        )
        vision.set_submodule(name, tiled)
        if gelu:
            vision.set_submodule(name.replace("fc1", "activation_fn"), nn.Identity())
        release_weight(linear)
    heads = config.num_attention_heads
    if config.hidden_size // heads % 2 == 0:
        for layer in vision.img_processor.encoder.layers:
            a = layer.self_attn
            layer.self_attn = SelfAttention(a.q_proj, a.k_proj, a.v_proj, a.out_proj, heads)
