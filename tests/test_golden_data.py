"""The data that tests compare with is in the repository, whole and to the byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

NOT_LISTED = {"README.md", "LICENSE", "SHA256SUMS"}


@pytest.mark.parametrize("name", ["golden", "wire/azure_samples"])
def test_data_is_whole(name: str) -> None:
    """``azure_samples`` as it was when each sample was found in Microsoft's article, verbatim."""
    folder = Path(__file__).parent / name
    lines = (folder / "SHA256SUMS").read_text("utf-8").splitlines()
    expected = {file: digest for digest, file in (line.split("  ") for line in lines)}
    found = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name not in NOT_LISTED
    }
    assert found == expected
