"""An adapter's ``adapter_config.json``: what PEFT wrote, or a refusal of what cannot be merged."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.phi3v.checkpoint import read_json

CONFIG = "adapter_config.json"
MAX_RANK = 4096  # more than any layer of the official model can use
MAX_SHOWN = 200  # characters of a name in the log
MAX_PATTERNS = 1000  # several for each layer of the official model
# Patterns are regular expressions by strangers: these bounds keep the time to match them short.
MAX_PATTERN_LENGTH = 300
MAX_REPEATS = 3
MAX_GROUPS = 4
MAX_EXPRESSIONS = 8
_NAME = re.compile(r"(?:[\w-]|\\?\.)+")  # a pattern that matches in one way only
ALL_LINEAR = "all-linear"  # PEFT's word for every linear layer but the head

# What changes the merge and is not implemented, and what to do about it.
_UNSUPPORTED = {
    "alora_invocation_tokens": "an activated LoRA, which cannot be merged",
    "arrow_config": "a mixture of adapters; merge them with PEFT",
    "kasa_config": "KaSA; merge it with PEFT",
    "layer_replication": "replicated layers; merge it with PEFT",
    "megatron_config": "Megatron's layers; merge it with PEFT",
    "monteclora_config": "MonteCLoRA; merge it with PEFT",
    "target_parameters": "LoRA on parameters instead of layers; merge it with PEFT",
    "trainable_token_indices": "single trained tokens; merge it with PEFT",
    "use_bdlora": "BD-LoRA; merge it with PEFT",
    "use_qalora": "QA-LoRA; merge it with PEFT",
}
# These methods change the base weights before training, by the base weights' own decomposition.
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")


@dataclass(frozen=True)
class AdapterConfig:
    """What the merge needs of an adapter's configuration.

    Attributes:
        base: the model that the adapter was trained on, as its trainer named it.
        rank, alpha: of layers without a pattern.
        ranks, alphas: for layers whose names match, the first match counts.
        rslora: scales by the root of the rank.
        dora: has a magnitude for each output.
        targets: names, or a pattern, of the layers that have an adapter; None if a layer may lack one.
        saved: names of the modules that were trained as a whole.
    """

    base: str
    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    targets: frozenset[str] | str | None = None
    saved: frozenset[str] = frozenset()

    def rank_of(self, layer: str) -> int:
        """The rank of a layer, by its name in the adapter's file."""
        return self.ranks.get(_matching(self.ranks, layer), self.rank)

    def scaling_of(self, layer: str) -> float:
        """What the update of a layer is multiplied by."""
        rank = self.rank_of(layer)
        alpha = self.alphas.get(_matching(self.alphas, layer), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    def has_target(self, layer: str, linear: bool) -> bool:
        """Whether a layer must have an adapter, by its name; ``linear`` says what kind it is."""
        if isinstance(self.targets, str):
            if self.targets == ALL_LINEAR:
                return linear and layer != "lm_head"
            return re.fullmatch(self.targets, layer) is not None
        return self.targets is not None and not self.targets.isdisjoint(_endings(layer))

    def is_saved(self, module: str) -> bool:
        """Whether a module, or one that it is a part of, must have been saved as a whole."""
        parts = module.split(".")
        outer = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
        return any(not self.saved.isdisjoint(_endings(name)) for name in outer)


def _endings(layer: str) -> list[str]:
    """The names by which a configuration may mean a layer: its own, and without the modules around it."""
    parts = layer.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _matching(patterns: Mapping[str, Any], layer: str) -> str:
    """The first pattern that matches the end of a layer's name, as PEFT does."""
    if layer in patterns:
        return layer
    return next((pattern for pattern in patterns if _compiled(pattern).match(layer)), "")


@lru_cache(maxsize=4 * MAX_PATTERNS)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


def read_config(directory: Path) -> AdapterConfig:
    """Read and check an adapter's configuration; raises CheckpointError."""
    raw = read_json(directory / CONFIG)
    if raw.get("peft_type") != "LORA":
        raise _refused(f"is of the type {raw.get('peft_type')!r}; only LORA adapters can be merged")
    for name, what in _UNSUPPORTED.items():
        if raw.get(name):
            raise _refused(f"sets {name}: {what}")
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGES_BASE):
        raise _refused(
            f"says that training changed the base weights (init_lora_weights {start!r}); save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion"
        )
    base = raw.get("base_model_name_or_path")
    return AdapterConfig(
        base=" ".join(base[:MAX_SHOWN].split()) if isinstance(base, str) else "",
        rank=_rank(raw.get("r"), "r"),
        alpha=_alpha(raw.get("lora_alpha"), "lora_alpha"),
        ranks={
            key: _rank(value, f"rank_pattern[{key!r}]")
            for key, value in _patterns(raw, "rank_pattern").items()
        },
        alphas={
            key: _alpha(value, f"alpha_pattern[{key!r}]")
            for key, value in _patterns(raw, "alpha_pattern").items()
        },
        rslora=_flag(raw, "use_rslora"),
        dora=_flag(raw, "use_dora"),
        targets=_targets(raw),
        saved=_saved(raw),
    )


def _refused(text: str) -> CheckpointError:
    return CheckpointError(f"{CONFIG} {text}")


def _rank(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_RANK:
        raise _refused(
            f"has {name} = {_short(value)}; a rank is a whole number from 1 to {MAX_RANK}"
        )
    return value


def _alpha(value: object, name: str) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not abs(value) <= 1e9:  # type: ignore[arg-type]  # also true for NaN
        raise _refused(f"has {name} = {_short(value)}; it must be a finite number")
    return value  # type: ignore[return-value]


def _flag(raw: dict[str, Any], name: str) -> bool:
    value = raw.get(name) or False
    if not isinstance(value, bool):
        raise _refused(f"has {name} = {_short(value)}; it must be true or false")
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _patterns(raw: dict[str, Any], name: str) -> dict[str, Any]:
    patterns = raw.get(name) or {}
    if not isinstance(patterns, dict):
        raise _refused(f"has {name} = {_short(patterns)}; it must map names of layers to numbers")
    if len(patterns) > MAX_PATTERNS:
        raise _refused(f"has {len(patterns)} entries in {name}; at most {MAX_PATTERNS} are read")
    expressions = [pattern for pattern in patterns if not _NAME.fullmatch(pattern)]
    if len(expressions) > MAX_EXPRESSIONS:
        raise _refused(
            f"has {len(expressions)} regular expressions in {name}; at most {MAX_EXPRESSIONS} are read: "
            "list the layers' names instead"
        )
    for pattern in expressions:
        _check_expression(pattern, name)
    return patterns


def _check_expression(pattern: str, name: str) -> None:
    """Refuse a regular expression that is invalid, or could take long to match."""
    repeats = len(re.findall(r"(?<![\\(])[*+{?]", pattern))
    groups, branches = pattern.count("("), pattern.count("|")
    if (
        len(pattern) > MAX_PATTERN_LENGTH
        or repeats > MAX_REPEATS - (branches > 0)
        or (groups > MAX_GROUPS or branches > 4 * MAX_GROUPS)
        or re.search(r"\)[*+{?]", pattern)
    ):
        raise _refused(
            f"has the regular expression {_short(pattern)} in {name}, which could take long to match: "
            "list the layers' names instead"
        )
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refused(
            f"has the invalid regular expression {_short(pattern)} in {name}: {error}"
        ) from error


def _saved(raw: dict[str, Any]) -> frozenset[str]:
    saved = raw.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise _refused(f"has modules_to_save = {_short(saved)}; it must be names of modules")
    return frozenset(saved)


def _targets(raw: dict[str, Any]) -> frozenset[str] | str | None:
    targets = raw.get("target_modules")
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        known: frozenset[str] | str = frozenset(targets)
    elif isinstance(targets, str):
        known = targets
    else:
        raise _refused(
            f"has target_modules = {_short(targets)}; it must be names of layers, or a pattern"
        )
    if raw.get("layers_to_transform") is not None or raw.get("exclude_modules"):
        return None
    if isinstance(known, str) and known != ALL_LINEAR:
        try:
            _check_expression(known, "target_modules")
        except CheckpointError:
            return None  # only the check for missing layers needs it
    return known
