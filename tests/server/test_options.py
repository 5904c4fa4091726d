"""The model's options and the server's settings: declared on each side once, under one name."""

from __future__ import annotations

from dataclasses import fields

from model import LoadOptions
from server.commands import Batch
from server.settings import ModelSettings


def test_every_option_of_the_model_is_a_setting_with_the_same_default() -> None:
    settings = ModelSettings.model_fields
    for option in fields(LoadOptions):
        if option.name == "throughput":  # which a command decides, not a flag
            assert ModelSettings.throughput is option.default
            assert Batch.throughput
            continue
        assert option.name in settings
        if option.name != "model":  # which the model's side always asks for
            assert settings[option.name].default == option.default, option.name
