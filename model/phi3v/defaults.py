"""Default parameters that a checkpoint names in ``generation_config.json``."""

from __future__ import annotations

from pathlib import Path

from model.errors import CheckpointError
from model.phi3v.checkpoint import read_json

GENERATION_CONFIG = "generation_config.json"
# In the file: the parameter, the least and the greatest value.
PARAMETERS: dict[str, tuple[str, float, float]] = {
    "temperature": ("temperature", 0, 2),
    "top_p": ("top_p", 0, 1),
    "top_k": ("top_k", 0, 2**31),
    "min_p": ("min_p", 0, 1),
    "repetition_penalty": ("repetition_penalty", 0.01, 10),
    "max_new_tokens": ("max_tokens", 1, 2**31),
}
WHOLE = ("top_k", "max_new_tokens")


def default_parameters(directory: Path) -> dict[str, float]:
    """The checkpoint's values for parameters that a request does not set, by their names in requests.

    Raises:
        CheckpointError: a value is not a number, or not one that a request may have.
    """
    path = directory / GENERATION_CONFIG
    config = read_json(path) if path.exists() else {}
    found: dict[str, float] = {}
    for name, (parameter, least, most) in PARAMETERS.items():
        value = config.get(name)
        if value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most or (name in WHOLE and value % 1):
            kind = "a whole number" if name in WHOLE else "a number"
            raise CheckpointError(
                f"{path} has {name} = {value!r}; it must be {kind} from {least} to {most}; correct it, or "
                "pass --generation-config none"
            )
        found[parameter] = int(value) if name in WHOLE else value
    return found
