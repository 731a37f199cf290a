"""The deployment benchmark, as small as it goes."""

from __future__ import annotations

from embodied.deploy.bench import DeployBench


def test_figures_and_a_short_soak() -> None:
    said: list[str] = []
    bench = DeployBench(transports=["inproc"], sizes=[[64, 96]], messages=5, soak_s=1.0)
    figures = {figure.name: figure for figure in bench.run(said.append)}
    assert len(said) == 2
    assert 0 < figures["inproc.image_96x64.p50_ms"].value <= figures["inproc.image_96x64.max_ms"].value
    assert "running in the end" in figures["soak.late_p99_ms"].note
