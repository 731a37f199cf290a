"""A live view of a node, off its control thread: what a tick saw and did goes into a short queue, and is dropped when
the viewer is slower.

    embodied node ... view=rerun              # opens rerun's viewer
    embodied node ... view=rerun:FILE.rrd     # writes a file that the viewer opens
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from embodied.deploy.loop import Tick

log = logging.getLogger(__name__)
QUEUE = 4
CLOSE_S = 2.0
SINK_ERRORS = (OSError, RuntimeError, ValueError, TypeError)


@dataclass(frozen=True)
class Shown:
    """One tick: images that are new (H, W, 3) uint8, series by name (D,), one line of words."""

    step: int
    now_ns: int
    images: dict[str, np.ndarray] = field(default_factory=dict)
    series: dict[str, np.ndarray] = field(default_factory=dict)
    words: str = ""


class Sink(Protocol):
    def show(self, shown: Shown) -> None: ...

    def close(self) -> None: ...


class LiveView:
    """`offer` never waits. `dropped`: ticks that the sink had no time for; `failed`: why it is not used any more."""

    def __init__(self, sink: Sink, size: int = QUEUE) -> None:
        self.sink = sink
        self.shown = self.dropped = 0
        self.failed = ""
        self._queue: queue.Queue[Shown] = queue.Queue(size)
        self._ending = threading.Event()
        self._stamps: dict[str, int | None] = {}
        self._thread = threading.Thread(target=self._run, name="view", daemon=True)
        self._thread.start()

    def attach(self, on_tick: Callable[[Tick], None] | None, streams: list[str]) -> Callable[[Tick], None]:
        """A loop's `on_tick` that does what was there before and then offers. streams: feature of each stream."""

        def both(tick: Tick) -> None:
            if on_tick is not None:
                on_tick(tick)
            self.offer(self._made(tick, streams))

        return both

    def offer(self, shown: Shown) -> None:
        try:
            self._queue.put_nowait(shown)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Gives the sink a moment for what is left, and logs how it went."""
        self._ending.set()
        self._thread.join(CLOSE_S)
        log.info("live view: %d ticks shown, %d dropped %s", self.shown, self.dropped, self.failed)

    def _run(self) -> None:
        while not (self._ending.is_set() and self._queue.empty()):
            try:
                shown = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            try:
                self.sink.show(shown)
                self.shown += 1
            except SINK_ERRORS as error:
                self.failed = f"{type(error).__name__}: {error}"
                log.warning("the live view ended: %s", self.failed)
                return
        self.sink.close()

    def _made(self, tick: Tick, streams: list[str]) -> Shown:
        """References only: nothing is copied or encoded here."""
        images, series = {}, {}
        stamps = dict(zip(streams, tick.aligned.stamps, strict=True))
        for key, value in tick.aligned.features.items():
            if not isinstance(value, np.ndarray):
                continue
            if value.ndim == 1:
                series[key] = value
            elif stamps.get(key) != self._stamps.get(key):
                images[key], self._stamps[key] = value, stamps.get(key)
        if tick.action is not None:
            series["action"] = tick.action
        if tick.result is not None and tick.result.value is not None:
            series["value"] = np.array([tick.result.value])
        words = "; ".join([tick.state.value, *(f"{trouble.kind}: {trouble.detail}" for trouble in tick.troubles)])
        return Shown(tick.step, tick.now_ns, images, series, words)


class RerunSink:
    """rerun's viewer (an empty target), or a file. ValueError where rerun is not installed."""

    def __init__(self, name: str, target: str = "") -> None:
        try:
            import rerun
        except ImportError as error:
            raise ValueError("view=rerun needs the package rerun: pip install 'embodied-stack[viewer]'") from error
        self.rerun: Any = rerun
        self.stream: Any = rerun.RecordingStream(name)
        if target:
            self.stream.save(target)
        else:
            self.stream.spawn()
        self._words = ""

    def show(self, shown: Shown) -> None:
        rerun, stream = self.rerun, self.stream
        stream.set_time("step", sequence=shown.step)
        stream.set_time("time", timestamp=shown.now_ns / 1e9)
        for key, image in shown.images.items():
            stream.log(key.replace(".", "/"), rerun.Image(image))
        for key, values in shown.series.items():
            stream.log(key.replace(".", "/"), rerun.Scalars(np.asarray(values, np.float64)))
        if shown.words != self._words:
            stream.log("node", rerun.TextLog(shown.words))
            self._words = shown.words

    def close(self) -> None:
        self.stream.flush()


def make_sink(view: str, name: str) -> Sink:
    """`rerun` or `rerun:FILE.rrd`. ValueError for anything else."""
    kind, _, target = view.partition(":")
    if kind != "rerun":
        raise ValueError(f"view should be rerun or rerun:FILE.rrd, got {view!r}")
    return RerunSink(name, target)
