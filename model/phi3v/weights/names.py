"""Official names of tensors that trainers saved under other names.

PEFT, ``torch.compile``, FSDP and DataParallel wrap modules, and each wrapper leaves a word in the names of
the tensors below it. Newer transformers versions leave out ``vision_model`` in the tower.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
# The original code hands the token embedding to the vision module, so that it has two names.
SECOND_EMBEDDING = "model.vision_embed_tokens.wte.weight"
_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_PREFIXES = re.compile(r"^(?:base_model\.model\.|module\.)+")
_SAVED = re.compile(r"\.(?:base_layer|modules_to_save\.[^.]+)(?=\.)")
_BEFORE_TRAINING = ".original_module."  # PEFT's copy of a module that was trained as a whole
_TOWER = re.compile(r"(?<=\.img_processor\.)(?!vision_model\.)")
_ADAPTER = re.compile(r"\.lora_[A-Za-z]")


def unwrapped(name: str) -> str:
    """A name without the words of wrappers around the whole model or a module."""
    return _PREFIXES.sub("", _WRAPPERS.sub("", _PREFIXES.sub("", name)))


def official_name(name: str) -> str:
    """The official name of a tensor, or of a module of the model's class.

    A name of another model stays as it is, apart from wrappers.
    """
    name = _TOWER.sub("vision_model.", _SAVED.sub("", unwrapped(name)))
    return EMBEDDING if name == SECOND_EMBEDDING else name


@dataclass(frozen=True)
class Naming:
    """How the names in a checkpoint's files relate to the official ones.

    Attributes:
        names: from official names to those in the files.
        extra: names in the files that are not needed, with the reason.
        unmerged: names in the files that belong to an adapter inside the checkpoint.
    """

    names: dict[str, str] = field(default_factory=dict)
    extra: dict[str, str] = field(default_factory=dict)
    unmerged: list[str] = field(default_factory=list)

    @property
    def is_official(self) -> bool:
        """Whether the files can be read as they are."""
        renamed = any(official != name for official, name in self.names.items())
        return not (renamed or self.extra or self.unmerged)


def naming(names: Iterable[str]) -> Naming:
    """Match the names in a checkpoint's files with the official ones."""
    found = Naming()
    for name in sorted(names, key=_rank):
        official = official_name(name)
        if _ADAPTER.search(name):
            found.unmerged.append(name)
        elif _BEFORE_TRAINING in name:
            found.extra[name] = "is what a module was before training"
        elif official in found.names:
            found.extra[name] = f"is a second copy of {official}"
        else:
            found.names[official] = name
    return found


def _rank(name: str) -> tuple[bool, int, str]:
    """Of several names of one tensor, what PEFT trained counts most, then the official name."""
    return (".modules_to_save." not in name, _is_second(name), name)


def _is_second(name: str) -> int:
    return 2 if unwrapped(name) == SECOND_EMBEDDING else int(official_name(name) != name)
