"""Memory of one simulator worker: a fresh process that holds one environment and nothing else."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from embodied.bench.figures import Figure

SETTLED = 5  # resets after which growth counts: caches are filled by then


def memory_figures(suite: str, resets: int, say: Callable[[str], None]) -> list[Figure]:
    """Resident memory after `resets` hard resets, images of both cameras rendered in every episode."""
    sizes = measure(suite, resets, say)
    growth = 100 * (sizes[-1] / sizes[min(SETTLED, resets) - 1] - 1)
    note = f"{suite} task 0, {resets} hard resets, both cameras rendered in each; limit 1500"
    return [
        Figure("worker_rss_mb", round(sizes[-1], 1), "MB", None, note),
        Figure("worker_rss_growth", round(growth, 2), "%", None, f"from reset {SETTLED} to {resets}; limit 5"),
    ]


def measure(suite: str, resets: int, say: Callable[[str], None]) -> list[float]:
    """Resident memory in MB after each reset of a spawned worker. ValueError when the worker dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_work, args=(suite, resets, theirs), daemon=True)
    worker.start()
    theirs.close()
    sizes: list[float] = []
    try:
        for number in range(resets):
            sizes.append(ours.recv())
            if (number + 1) % 10 == 0:
                say(f"memory: {number + 1} of {resets} hard resets, {sizes[-1]:.0f} MB")
    except EOFError as error:
        raise ValueError(f"the worker should survive {resets} resets, it ended after {len(sizes)}") from error
    finally:
        worker.join(timeout=30)
        ours.close()
    return sizes


def _work(suite: str, resets: int, pipe: Any) -> None:
    from sim.make import make_env

    env = make_env(suite, 0)
    for seed in range(resets):
        env.reset(seed=seed, options={"settle_steps": 0})
        env.observe(images=True)
        env.run_steps(np.zeros((2, 7)))
        gc.collect()  # what waits for the collector is no growth
        pipe.send(resident_mb())
    env.close()


def resident_mb() -> float:
    """This process's resident memory in MB (10^6 bytes)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
