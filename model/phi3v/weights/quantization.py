"""Weight-only quantization of the decoder's linear layers, which hold most of a model's weights.

int8 weights have a scale per output; int4 weights have a scale and an offset per group of 32 inputs.
Embeddings, norms, the head, the vision tower and activations are not quantized. ``decoder_cpu`` has
kernels for these layers; elsewhere torch's kernels are used if they pass a test.

Shape suffixes: N outputs, K inputs, G groups of inputs, T tokens.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from tqdm import tqdm

from model.cpu.memory import release_weight
from model.phi3v.checkpoint import first_line
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import Phi3VForCausalLM

logger = logging.getLogger(__name__)

ROWS = 512  # quantized at a time, because temporaries take several times their memory
GROUP = 32  # inputs per scale and offset, in int4
LAYERS = re.compile(r"model\.layers\.\d+\.(self_attn\.(qkv|o)|mlp\.(gate_up|down))_proj$")
FEW_ROWS = 16  # with more rows, torch's int8 kernel is slower than dequantization
STEP = 16  # torch's kernels need multiples of this many inputs; some read out of bounds otherwise
TOLERANCE = 0.03  # relative to the largest result; allows bfloat16 rounding


def quantized_bytes(shape: tuple[int, ...], scheme: str) -> int:
    """Bytes of a quantized weight with its bfloat16 scales and offsets."""
    outputs, inputs = shape
    if scheme == "int8":
        return outputs * (inputs + 4)
    return outputs * (inputs // 2 + inputs // GROUP * 4)


def work_bytes(config: Phi3VConfig) -> int:
    """Bytes to dequantize the largest layer's weight, in float32 and in 16 bits."""
    outputs = (2 * config.intermediate_size, 3 * config.hidden_size)
    return 6 * max(*outputs) * config.hidden_size


def unsupported_reason(config: Phi3VConfig, scheme: str) -> str | None:
    """Why a model cannot be quantized by a scheme; None if it can, or for ``none``."""
    if scheme == "none":
        return None
    attended = config.hidden_size // config.num_attention_heads * config.num_attention_heads
    multiple = GROUP if scheme == "int4" else 2
    for inputs in (config.hidden_size, config.intermediate_size, attended):
        if inputs % multiple:
            return f"it has layers with {inputs} inputs, which is not a multiple of {multiple}"
    return None


class QuantizedLinear(nn.Module):
    """A quantized linear layer without bias; runs on any device by dequantizing at each use.

    Attributes:
        values: int8 ``(N, K)``, or uint8 ``(N, K / 2)`` with the first of two numbers in the high bits.
        scales, offsets: bfloat16 ``(N, G)``; a weight is ``number * scale + offset``, where int4
            numbers are stored plus 8.
    """

    bias = None

    def __init__(self, weight_NK: Tensor, scheme: str) -> None:
        super().__init__()
        rounded = _to_int8 if scheme == "int8" else _to_int4
        parts = [rounded(rows_NK.float()) for rows_NK in weight_NK.split(ROWS)]
        values, scales, offsets = map(torch.cat, zip(*parts, strict=True))
        self.values: Tensor
        self.scales: Tensor
        self.offsets: Tensor
        self.register_buffer("values", values)
        self.register_buffer("scales", scales)
        self.register_buffer("offsets", offsets)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Like ``nn.Module._apply``, but scales and offsets stay bfloat16 when the dtype changes."""
        return super()._apply(
            lambda x: fn(x.view(torch.int16)).view(x.dtype) if x.is_floating_point() else fn(x),
            recurse,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        outputs, stored = self.values.shape
        return outputs, stored if self.values.dtype is torch.int8 else 2 * stored

    def numbers(self) -> Tensor:
        """The quantized numbers, int8 ``(N, K)``; -8 to 7 in int4."""
        if self.values.dtype is torch.int8:
            return self.values
        both = torch.stack([self.values >> 4, self.values & 15], -1).flatten(1)
        return both.to(torch.int8) - 8

    def dequantized(self) -> Tensor:
        """The dequantized weight, float32 ``(N, K)``."""
        numbers_NGK = self.numbers().float().unflatten(1, (self.scales.shape[1], -1))
        weight_NGK = numbers_NGK.mul_(self.scales[..., None]).add_(self.offsets[..., None])
        return weight_NGK.flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """``x @ weight.T``."""
        return linear(x, self.dequantized().to(x.dtype))


def _to_int8(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scales = (weight_NK.abs().amax(1, keepdim=True) / 127).clamp(min=1e-12).bfloat16()
    numbers = (weight_NK / scales.float()).round().clamp(-127, 127)
    return numbers.to(torch.int8), scales, torch.zeros_like(scales)


def _to_int4(weight_NK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    weight_NGK = weight_NK.unflatten(1, (-1, GROUP))
    low, high = weight_NGK.aminmax(dim=2)
    scales = ((high - low) / 15).clamp(min=1e-12).bfloat16()
    offsets = (low + 8 * scales.float()).bfloat16()
    numbers = (weight_NGK - offsets.float()[..., None]) / scales.float()[..., None]
    halves = (numbers.round() + 8).clamp(0, 15).to(torch.uint8).flatten(1)
    return halves[:, ::2] << 4 | halves[:, 1::2], scales, offsets


@torch.inference_mode()
def quantize_linears(
    model: Phi3VForCausalLM,
    scheme: str,
    prepare: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
) -> None:
    """Quantize the decoder's linear layers of a model on the CPU, in place.

    Args:
        model: with weights in main memory.
        scheme: ``int8`` or ``int4``.
        prepare: changes a weight, given its name, before it is quantized.
    """
    names = [name for name, _ in model.named_modules() if LAYERS.search(name)]
    for name in tqdm(names, desc="Quantizing weights"):
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        weight = prepare(f"{name}.weight", plain.weight.data)
        model.set_submodule(name, QuantizedLinear(weight, scheme))
        release_weight(plain)


class Int8Linear(nn.Module):
    """An int8 ``QuantizedLinear`` with torch's kernel, used where that is fast."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        self._values, self._scales = layer.values, layer.scales[:, 0].contiguous()

    def forward(self, x_TK: Tensor) -> Tensor:
        """``x @ weight.T``."""
        if len(x_TK) > FEW_ROWS:
            return linear(x_TK, self._values.to(x_TK.dtype).mul_(self._scales[:, None]))
        return torch._weight_int8pack_mm(x_TK.contiguous(), self._values, self._scales)


class Int4Linear(nn.Module):
    """An int4 ``QuantizedLinear`` with torch's kernel, whose packing depends on the device."""

    def __init__(self, layer: QuantizedLinear) -> None:
        super().__init__()
        pairs = torch.stack([layer.scales, layer.offsets], -1)
        self._scales = pairs.transpose(0, 1).contiguous()
        self._multiply: Callable[..., Tensor]
        if layer.values.device.type == "cpu":
            numbers = layer.numbers().to(torch.int32) + 8
            self._values = torch._convert_weight_to_int4pack_for_cpu(numbers, 2)
            self._multiply = torch._weight_int4pack_mm_for_cpu
        else:
            self._values = torch._convert_weight_to_int4pack(layer.values, 2)
            self._multiply = torch._weight_int4pack_mm

    def forward(self, x_TK: Tensor) -> Tensor:
        """``x @ weight.T``."""
        return self._multiply(x_TK.contiguous(), self._values, GROUP, self._scales)


def use_torch_kernels(model: Phi3VForCausalLM) -> None:
    """Make quantized layers use torch's kernels, in place; logs a warning if those do not work."""
    shapes: dict[
        str, tuple[int, int]
    ] = {}  # not layers, which would stay alive next to packed ones
    devices = set()
    kind: type[Int8Linear] | type[Int4Linear] = Int4Linear
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            shapes[name] = layer.shape
            devices.add(layer.values.device)
            kind = Int8Linear if layer.values.dtype is torch.int8 else Int4Linear
    del layer
    if not shapes:
        return
    for device in devices:
        reason = _unsupported_kernel_reason(kind, set(shapes.values()), model.dtype, device)
        if reason is None:
            continue
        logger.warning("dequantizing weights at each use, which is slow: %s", reason)
        return
    for name in shapes:
        quantized = model.get_submodule(name)
        assert isinstance(quantized, QuantizedLinear)
        model.set_submodule(name, kind(quantized))
        del quantized


@torch.inference_mode()
def _unsupported_kernel_reason(
    kind: type[Int8Linear] | type[Int4Linear],
    shapes: set[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    """Test layers with all numbers of inputs and a few outputs; None if results are right."""
    if dtype is not torch.bfloat16:  # other dtypes are much slower or unsupported
        return f"torch's kernels support bfloat16, not {dtype}"
    for _, inputs in shapes:
        if inputs % STEP:
            return f"torch's kernels need multiples of {STEP} inputs, and a layer has {inputs}"
    generator = torch.Generator().manual_seed(0)
    # Test each remainder of outputs, because kernels cut them into tiles of at most 64.
    for outputs, inputs in sorted({(64 + outputs % 64, inputs) for outputs, inputs in shapes}):
        weight_NK = torch.randn(outputs, inputs, generator=generator)
        layer = QuantizedLinear(weight_NK, "int8" if kind is Int8Linear else "int4").to(device)
        try:
            for rows in (1, 2, 7, 40):
                x_TK = torch.randn(rows, inputs, generator=generator).to(device, dtype)
                expected = linear(x_TK.float(), layer.dequantized())
                difference = (kind(layer)(x_TK).float() - expected).abs().max()
                if not float(difference) <= TOLERANCE * float(
                    expected.abs().max()
                ):  # also true for NaN
                    return f"torch's kernel is off by {float(difference):.3g}"
        except Exception as error:  # missing, or unsupported device or shape
            return f"{type(error).__name__}: {first_line(error)}"
    return None
