"""The deployment benchmarks, as small as they go."""

from __future__ import annotations

import pytest

from embodied.deploy.bench import DeployBench
from embodied.deploy.node_task import NodeTaskBench
from embodied.deploy.soak import SoakBench


def test_figures_of_a_transport() -> None:
    said: list[str] = []
    bench = DeployBench(transports=["inproc"], sizes=[[64, 96]], messages=5)
    figures = {figure.name: figure for figure in bench.run(said.append)}
    assert len(said) == 1
    assert 0 < figures["inproc.image_96x64.p50_ms"].value <= figures["inproc.image_96x64.max_ms"].value


def test_a_short_soak() -> None:
    bench = SoakBench(minutes=1 / 60, transport="inproc")
    figures = {figure.name: figure for figure in bench.run(lambda _: None)}
    assert "in the end" in figures["soak.late_p99_ms"].note
    assert figures["soak.memory_mb"].value > 0
    with pytest.raises(ValueError, match="dds or inproc"):
        SoakBench(transport="pigeon").run(lambda _: None)


def test_a_way_through_the_node_is_checked() -> None:
    with pytest.raises(ValueError, match="a way through the node should have name"):
        NodeTaskBench("nowhere", ways=[{"name": "x", "speed": 3}]).run(lambda _: None)
