"""Graphics cards' limits, and predictions of what a step takes on them.

**All times are predictions**: arithmetic on data sheets, not measurements, and wrong by perhaps 30 %.
They show what bounds a step and how designs compare, never how fast a card is.

A card's data sheet promises more than kernels reach, so each limit has an efficiency factor:

- Bandwidth: streaming kernels with 16-byte loads reach 85 to 92 % of it. The rest goes to refreshing
  the memory, to opening its pages, and to the ends of kernels, where some multiprocessors are idle.
- Operations: large products in bfloat16 reach 60 to 85 %. Cards whose power limit is low for their
  size lower their clock under full load: the L4 (72 W) most, and the H100 and H200 more than the A100.

Launches cost time too. A kernel that Python launches keeps the host busy for some microseconds: torch's
dispatcher, or Triton's launcher, and the driver. Cloud machines have slower cores than desktops. In a
CUDA graph the host is not involved, but each kernel still starts after the one before has ended, which
leaves the card partly idle for about a microsecond and a half.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.phi3v.configuration import Phi3VConfig
from scripts.benchmarks.harness.arithmetic import weight_shapes

GB, TERA = 1e9, 1e12
ITEM = 2  # bytes of a bfloat16 number
SAME_MEMORY = 0.12  # torch sees a little less or more than the data sheet says


@dataclass(frozen=True)
class Card:
    """A card, by its data sheet, and how much of that kernels reach; see the module.

    Attributes:
        name: as people call it.
        memory: bytes.
        bandwidth: bytes per second.
        flops: dense bfloat16 operations per second, summed in float32.
        bandwidth_efficiency: reachable share of ``bandwidth``.
        flops_efficiency: reachable share of ``flops``.
        eager_launch: seconds of the host for each kernel that Python launches.
        graph_launch: seconds between two kernels of a CUDA graph.
    """

    name: str
    memory: float
    bandwidth: float
    flops: float
    bandwidth_efficiency: float
    flops_efficiency: float
    eager_launch: float = 13e-6  # about 1,250 launches took 16 ms on a cloud machine
    graph_launch: float = 1.75e-6


CARDS = {
    card.name: card
    for card in [
        Card("L4", 24 * GB, 300 * GB, 121 * TERA, 0.87, 0.6),
        Card("A10G", 24 * GB, 600 * GB, 70 * TERA, 0.87, 0.8),
        Card("A100-40", 40 * GB, 1555 * GB, 312 * TERA, 0.88, 0.75),
        Card("A100-80", 80 * GB, 2039 * GB, 312 * TERA, 0.88, 0.75),
        Card("H100", 80 * GB, 3350 * GB, 989 * TERA, 0.88, 0.6),
        Card("H200", 141 * GB, 4800 * GB, 989 * TERA, 0.88, 0.6),
        Card("RTX 4090", 24 * GB, 1008 * GB, 165 * TERA, 0.9, 0.85, eager_launch=8e-6),
    ]
}


def predict(card: Card, launches: int, num_bytes: float, flops: float, graph: bool) -> float:
    """Predicted seconds of some kernels, one after the other; see the module.

    Args:
        card: the card.
        launches: number of kernels.
        num_bytes: read from and written to the card's memory.
        flops: floating-point operations of matrix products.
        graph: whether a CUDA graph launches the kernels.
    """
    reading = num_bytes / (card.bandwidth * card.bandwidth_efficiency)
    computing = flops / (card.flops * card.flops_efficiency)
    on_card = max(reading, computing) + launches * card.graph_launch
    return on_card if graph else max(on_card, launches * card.eager_launch)


def roof(card: Card, num_bytes: float, flops: float) -> float:
    """Seconds that no kernel can go below, by the data sheet."""
    return max(num_bytes / card.bandwidth, flops / card.flops)


@dataclass(frozen=True)
class ModelCosts:
    """What the decoder reads and computes, in bfloat16.

    Attributes:
        weight_bytes: read in each step.
        token_flops: for each token, in products with weights, without the head.
        head_flops: for each sampled token.
        kv_bytes: keys and values of one token.
        attention_flops: for each pair of a query and a key.
    """

    weight_bytes: float
    token_flops: float
    head_flops: float
    kv_bytes: float
    attention_flops: float

    @classmethod
    def of(cls, config: Phi3VConfig) -> ModelCosts:
        """Those of a model, from its sizes."""
        *layers, head = (rows * columns for rows, columns in weight_shapes(config))
        heads = config.num_attention_heads
        shared = (config.num_key_value_heads or heads) / heads
        width = config.num_hidden_layers * config.hidden_size
        return cls(
            weight_bytes=ITEM * (sum(layers) + head),
            token_flops=2 * sum(layers),
            head_flops=2 * head,
            kv_bytes=2 * width * shared * ITEM,
            attention_flops=4 * width,
        )


def card_like(name: str, memory: float) -> Card | None:
    """The card that torch calls ``name``, e.g. "NVIDIA H100 80GB HBM3"; None if it is not known.

    Args:
        name: as torch says.
        memory: bytes, which tell variants of a card apart.
    """
    for card in CARDS.values():
        model, _, _ = card.name.partition("-")  # without the size
        is_named = re.search(rf"\b{model}\b", name) is not None
        if is_named and abs(memory / card.memory - 1) < SAME_MEMORY:
            return card
    return None
