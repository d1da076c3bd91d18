"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded inputs beside the checkout; tests that need them skip where they are not."""
    if not SHARED.is_dir():
        pytest.skip("recorded inputs (../shared/data) are not beside this checkout")
    return SHARED
