"""What signs the certificates of a test's servers."""

from __future__ import annotations

import pytest
import trustme


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()
