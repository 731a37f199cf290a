from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "data"))

import pytest
from tiny_datasets import write_v3

from embodied.bench.data import DataBench


@pytest.mark.slow
def test_figures_of_a_tiny_data_set(tmp_path: Path) -> None:
    root = write_v3(tmp_path / "v3", [20, 20, 20, 20])
    bench = DataBench(str(root), None, 4, 4, rounds=2, items=8, batches=4, gathers=20, memory_batches=20)
    lines: list[str] = []
    figures = {figure.name: figure for figure in bench.run(lines.append)}
    assert figures["cache_speedup"].value > 5
    assert figures["reader_speedup"].value > 0.5
    assert "largest pixel difference 0" in figures["reader_speedup"].note
    assert abs(figures["rss_growth_mb"].value) < 5
    assert len([line for line in lines if line.startswith("round")]) == 2
