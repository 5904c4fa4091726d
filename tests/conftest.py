"""Fixtures shared by all tests: checkpoints, engines, and a live server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the hub is a broken test

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
GOLDEN = REFERENCE / "golden"


@pytest.fixture(scope="session")
def golden() -> Path:
    """Directory of the golden values of the original implementation."""
    if not GOLDEN.is_dir():
        pytest.skip("the golden reference data is not beside the project (../shared/reference)")
    return GOLDEN


@pytest.fixture(scope="session")
def official() -> Path:
    """Directory of the official checkpoint's data files (no weights)."""
    directory = REFERENCE / "official"
    if not directory.is_dir():
        pytest.skip("the official data files are not beside the project (../shared/reference)")
    return directory


def golden_cases() -> list[dict[str, Any]]:
    """The cases of ``prompts.json``; empty where the reference data is absent."""
    path = GOLDEN / "prompts.json"
    return json.loads(path.read_text("utf-8")) if path.exists() else []
