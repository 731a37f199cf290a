"""Lets the deployment tests share modules (tests have no packages), and begins the longest wait first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from long_inference import LongInference

LONGEST = "test_an_inference_of_50_seconds_with_the_real_client"


@pytest.fixture(scope="session", autouse=True)
def long_inference(request: pytest.FixtureRequest) -> Iterator[LongInference | None]:
    """Asked when the first deployment test begins, so that it costs waiting beside the others and no time of its own.
    None where its test is not chosen or cannot run."""
    if not any(item.name == LONGEST for item in request.session.items):
        yield None
        return
    try:
        pytest.importorskip("websockets", reason="the deploy extra is not installed")
        from long_inference import LongInference, openpi_python

        made = LongInference(openpi_python())
    except pytest.skip.Exception:
        yield None
        return
    yield made
    made.close()
