"""Fixtures shared by all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Recorded inputs beside the checkout; tests that need them skip where they are not."""
    if not SHARED.is_dir():
        pytest.skip("recorded inputs (../shared/data) are not beside this checkout")
    return SHARED


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Iterator[None]:
    """A program that a test runs in this process configures the log of the process: the next test has its own again."""
    held = structlog.get_config()
    yield
    structlog.configure(**held)
