"""What an adapter needs to know of a checkpoint, without its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.errors import CheckpointError
from model.phi3v.adapters.adapter import Adapter
from model.phi3v.checkpoint import first_line
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.inputs.tokenizer import Phi3VTokenizer
from model.phi3v.modeling import official_shapes
from model.phi3v.weights.names import HEAD


def model_config(directory: Path, raw: dict[str, Any]) -> Phi3VConfig:
    """The configuration in ``config.json``; raises CheckpointError if it is of another model."""
    if raw.get("model_type") != "phi3_v":
        raise CheckpointError(
            f"{directory} contains a {raw.get('model_type')!r} model; "
            "this server runs Phi-3-vision only (model_type 'phi3_v')"
        )
    try:
        config = Phi3VConfig(**raw)
        _ = config.vision_config
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(
            f"the checkpoint in {directory} cannot be loaded: {first_line(error)}"
        ) from error
    return config


def model_shapes(config: Phi3VConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a checkpoint must have: no head if it is tied to the embedding."""
    shapes = official_shapes(config)
    if config.tie_word_embeddings:
        del shapes[HEAD]
    return shapes


def tokenizer_directory(
    directory: Path, adapter_directory: Path | None, adapter: Adapter | None
) -> Path:
    """Where the tokenizer's files are: the adapter's own if it changes the vocabulary.

    Raises:
        CheckpointError: the tokenizer has more tokens than the merged model.
    """
    if adapter is None or adapter_directory is None or adapter.vocab_size is None:
        return directory
    has_own = (adapter_directory / "tokenizer.json").is_file()
    chosen = adapter_directory if has_own else directory
    highest = Phi3VTokenizer(chosen).highest_id
    if highest >= adapter.vocab_size:
        raise CheckpointError(
            f"the adapter {adapter.name} cannot be used: it has {adapter.vocab_size} token embeddings, "
            f"but {chosen}/tokenizer.json has ids up to {highest}"
        )
    return chosen
