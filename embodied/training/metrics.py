"""Metrics of a run: a JSON line each, TensorBoard and Weights & Biases when asked for, and a clock for waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from embodied.io import append_line, read_lines, write_atomic
from embodied.training.config import LogConfig

METRICS = "metrics.jsonl"


class MetricsLog:
    """Writes metrics on the main process only. Lines of steps after `step` (lost in a crash) are dropped on resume."""

    def __init__(self, run: Path, config: LogConfig, step: int, main: bool = True) -> None:
        self.path, self.main = run / METRICS, main
        self._writers: list[Any] = []
        if not main:
            return
        _keep_until(self.path, step)
        if config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step)
            self._writers.append(self._to_board)
        if config.wandb_project:
            import wandb

            self._wandb = wandb.init(project=config.wandb_project, name=run.name, dir=str(run), resume="allow")
            self._writers.append(lambda s, m: self._wandb.log(dict(m), step=s))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.main:
            append_line(self.path, {"step": step, **metrics})
            for writer in self._writers:
                writer(step, metrics)

    def _to_board(self, step: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._board.add_scalar(key, value, step)

    def close(self) -> None:
        if hasattr(self, "_board"):
            self._board.close()
        if hasattr(self, "_wandb"):
            self._wandb.finish()


def _keep_until(path: Path, step: int) -> None:
    lines = read_lines(path)
    kept = [line for line in path.read_text().splitlines() if line.strip()] if lines else []
    kept = [text for text, line in zip(kept, lines, strict=True) if line["step"] <= step]
    if len(kept) != len(lines):
        write_atomic(path, "".join(text + "\n" for text in kept).encode())


class Clock:
    """Wall and CPU time since the last report, and the part of it spent waiting for data. CPU time is summed over the
    accelerator's processes, all of which report at the same steps."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self._start()

    def _start(self) -> None:
        self.started, self.cpu_started = time.perf_counter(), time.process_time()
        self.waited, self.samples = 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self.waited += time.perf_counter() - begin

    def report(self) -> dict[str, float]:
        """samples_per_second, data_wait_share, seconds and cpu_seconds since the last report; starts anew."""
        elapsed = max(time.perf_counter() - self.started, 1e-9)
        result = {"samples_per_second": self.samples / elapsed, "data_wait_share": self.waited / elapsed}
        cpu = torch.tensor(time.process_time() - self.cpu_started, device=self.accelerator.device)
        result |= {"seconds": elapsed, "cpu_seconds": float(self.accelerator.reduce(cpu, reduction="sum"))}
        self._start()
        return result


class Means:
    """Running means of scalars between two reports; tensors stay on their device until then."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, Any]) -> None:
        self._count += 1
        for key, value in metrics.items():
            value = value.detach() if hasattr(value, "detach") else value
            self._sums[key] = self._sums.get(key, 0.0) + value

    def report(self) -> dict[str, float]:
        result = {key: float(value) / max(self._count, 1) for key, value in self._sums.items()}
        self.__init__()  # type: ignore[misc]
        return result
