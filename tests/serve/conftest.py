"""One stand for all tests of a file that do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("torch", reason="the extra [llm] is not installed")
pytest.importorskip("starlette", reason="the extra [serve] is not installed")
pytest.importorskip("uvicorn", reason="the extra [serve] is not installed")

import serve_cases as cases


@pytest.fixture(scope="session")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cases.Stand]:
    with cases.stand(tmp_path_factory.mktemp("stand"), limits=cases.SHORT) as found:
        yield found
        assert "Traceback" not in found.log()
