"""The official checkpoint's configuration and tensors, without its weights."""

from __future__ import annotations

from model.demo.random_checkpoint import PRESETS, config_for
from model.phi3v.configuration import Phi3VConfig
from model.phi3v.modeling import official_shapes
from model.phi3v.weights.files import Header

FULL = Phi3VConfig(**config_for(PRESETS["full"], "full"))
HEADERS = {name: Header("x", shape, "BF16") for name, shape in official_shapes(FULL).items()}
