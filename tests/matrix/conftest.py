"""All of the matrix."""

import pytest

from fastdit.attention.backends import sdpa


@pytest.fixture(autouse=True)
def tiles(monkeypatch):
    """Tiny sequences take the sparse kernels' way for long ones."""
    monkeypatch.setattr(sdpa, "SHORT_SEQUENCE", 0)
