"""The live view: a viewer that is slow, stuck or gone costs the control loop nothing."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from loop_parts import CountingPolicy, Rig, until

from embodied.deploy.view import LiveView, Shown, make_sink
from embodied.schema import IMAGE


class Keeps:
    """A sink that keeps what it is shown, and may be stuck or broken."""

    def __init__(self) -> None:
        self.seen: list[Shown] = []
        self.open = threading.Event()
        self.open.set()
        self.broken = self.closed = False

    def show(self, shown: Shown) -> None:
        self.open.wait(60)
        if self.broken:
            raise OSError("the viewer is gone")
        self.seen.append(shown)

    def close(self) -> None:
        self.closed = True


def test_a_stuck_viewer_stops_nothing() -> None:
    """The sink holds one tick and the queue two; everything else is dropped and counted, and the loop runs on."""
    rig, sink, before = Rig(), Keeps(), []
    view = LiveView(sink, size=2)
    sink.open.clear()
    rig.loop.on_tick = view.attach(before.append, ["observation.state"])
    ticks = rig.steps(3)
    assert until(lambda: view._queue.qsize() <= 2)
    ticks += rig.steps(17)
    assert [tick.step for tick in before] == list(range(20)), "what was hooked in before is not lost"
    assert ticks[-1].state.value == "running"
    assert view.dropped >= 20 - 3
    sink.open.set()
    assert until(lambda: view.shown + view.dropped == 20)
    assert [shown.step for shown in sink.seen] == sorted(shown.step for shown in sink.seen)
    view.close()
    assert sink.closed


def test_what_is_shown() -> None:
    camera = {"feature": IMAGE, "topic": "/camera", "type": "sensor_msgs/msg/Image", "size": 8}
    joints = {"feature": "observation.state", "topic": "/joints", "type": "sensor_msgs/msg/JointState"}
    rig = Rig(streams=[{**joints, "names": ["a", "b"]}, camera], policy=CountingPolicy())
    sink = Keeps()
    view = LiveView(sink, size=100)
    rig.loop.on_tick = view.attach(None, [stream.feature for stream in rig.loop.contract.streams])
    now = rig.clock.now_ns()
    rig.loop.aligner.put(1, np.full((8, 8, 3), 9, np.uint8), now, rig.clock.monotonic_ns(), now)
    rig.steps(3, (1.0, 2.0))
    assert until(lambda: view.shown == 3)
    assert [list(shown.images) for shown in sink.seen] == [[IMAGE], [], []], "an image is shown once"
    assert sink.seen[2].series["observation.state"].tolist() == [1.0, 2.0]
    assert sink.seen[2].series["action"].tolist() == rig.sent[-1].tolist()
    assert sink.seen[2].words.startswith("running")
    view.close()


def test_a_viewer_that_went_away_is_noted() -> None:
    sink = Keeps()
    sink.broken = True
    view = LiveView(sink)
    view.offer(Shown(0, 0))
    assert until(lambda: view.failed == "OSError: the viewer is gone")
    for step in range(20):
        view.offer(Shown(step, 0))
    assert view.dropped > 0
    view.close()


def test_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"rerun:FILE.rrd, got 'paper'"):
        make_sink("paper", "node")
    monkeypatch.setitem(sys.modules, "rerun", None)
    with pytest.raises(ValueError, match="needs the package rerun"):
        make_sink("rerun", "node")


def test_a_rerun_file(tmp_path: Path) -> None:
    pytest.importorskip("rerun", reason="the viewer extra is not installed")
    view = LiveView(make_sink(f"rerun:{tmp_path / 'a.rrd'}", "node"))
    values = {"action": np.zeros(2), "value": np.array([-3.0])}
    view.offer(Shown(0, 10**18, {IMAGE: np.zeros((8, 8, 3), np.uint8)}, values, "running"))
    assert until(lambda: view.shown == 1 or bool(view.failed))
    view.close()
    assert view.failed == ""
    assert (tmp_path / "a.rrd").read_bytes()[:3] == b"RRF"
