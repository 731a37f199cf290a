"""`embodied bench sim`: control steps per CPU second against the stock loops, and memory of one worker.

All arms of a comparison execute the same actions from the same stored init state, so they simulate the same contacts;
they take turns, round by round, in one process, and are measured in CPU time. A ratio is the median over rounds of
(stock CPU time, summed over suites) / (our CPU time, summed over suites).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np

from embodied.bench.figures import Figure
from sim.tasks import ROBOSUITE

Say = Callable[[str], None]


@dataclass
class SimBench:
    """`steps` control steps an arm and round on task 0 of every suite; images every `chunk` steps in the lazy arm.

    `resets`: hard resets after which a worker's memory is read; 0 leaves it out. `lerobot`: measure its loop as well.
    """

    suites: Sequence[str] = ("libero_spatial", "libero_object", "libero_goal")
    steps: int = 16
    chunk: int = 8
    rounds: int = 3
    resets: int = 50
    lerobot: bool = True
    image_size: int = 128
    _times: dict[str, list[float]] = field(default_factory=dict, init=False)

    def run(self, say: Say) -> list[Figure]:
        suites = self._available(say)
        for suite in suites:
            self._measure(suite, say)
        figures = self._ratios(suites)
        if self.resets:
            from sim.bench_memory import memory_figures

            figures += memory_figures(suites[0], self.resets, say)
        return figures

    def _available(self, say: Say) -> list[str]:
        from sim.libero_setup import find_assets

        if find_assets() is not None or all(suite == ROBOSUITE for suite in self.suites):
            return list(self.suites)
        say("LIBERO's assets are not here: measuring robosuite's Lift instead")
        return [ROBOSUITE]

    def _measure(self, suite: str, say: Say) -> None:
        from sim.bench_arms import make_arms

        actions = np.random.default_rng(0).uniform(-0.5, 0.5, (self.steps, 7))
        arms = make_arms(suite, self.image_size, self.chunk, self.lerobot)
        for name, arm in arms.items():
            arm.start()
            arm.run(actions[: self.chunk])  # warm: compiled kernels, shaders, textures
            say(f"{suite}: {name} ready")
        for number in range(self.rounds):
            for name, arm in arms.items():
                arm.start()
                before = time.process_time()
                arm.run(actions)
                self._times.setdefault(f"{suite}/{name}", []).append(time.process_time() - before)
            seen = {name: self._times[f"{suite}/{name}"][-1] for name in arms}
            rates = ", ".join(f"{name} {self.steps / seconds:.1f}" for name, seconds in seen.items())
            say(f"{suite}, round {number + 1} of {self.rounds}, control steps per CPU second: {rates}")
        for arm in arms.values():
            arm.close()

    def _ratios(self, suites: list[str]) -> list[Figure]:
        figures = [
            self._ratio("physics_speedup", "stock_physics", "physics", suites, "no images"),
            self._ratio("lazy_speedup", "stock_images", "lazy", suites, self._cameras()),
        ]
        measured = [suite for suite in suites if f"{suite}/lerobot" in self._times]
        if measured:
            note = f"{self._cameras()}; baseline: lerobot's LIBERO vector environment"
            figures.append(self._ratio("lerobot_eval_speedup", "lerobot", "lazy", measured, note))
        return figures

    def _cameras(self) -> str:
        size = self.image_size
        return f"two {size}x{size} cameras, ours every {self.chunk} steps, stock every step"

    def _ratio(self, name: str, stock: str, ours: str, suites: list[str], note: str) -> Figure:
        slow, fast = self._per_round(stock, suites), self._per_round(ours, suites)
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        each = ", ".join(
            f"{s} {sum(self._times[f'{s}/{stock}']) / sum(self._times[f'{s}/{ours}']):.2f}" for s in suites
        )
        rate = self.steps * len(suites) / median(slow)
        text = f"{note}; baseline in control steps per CPU second; rounds {min(ratios):.2f}..{max(ratios):.2f}; {each}"
        return Figure(name, round(median(ratios), 3), "x", round(rate, 2), text)

    def _per_round(self, arm: str, suites: list[str]) -> list[float]:
        return [sum(times) for times in zip(*(self._times[f"{suite}/{arm}"] for suite in suites), strict=True)]
