"""Chunk scheduling: when a policy is asked again, and which action of which chunk a tick executes.

Steps are ticks since the last reset. A chunk asked for at step s and answered at step s + d was meant for steps
s, s+1, ...: `async`, `temporal_ensemble` and `rtc` use its actions at those steps, so its first d have gone by. `sync`
lets the robot hold while the policy thinks and then executes the chunk from its start.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

import numpy as np

from embodied.deploy.rtc import PrefixAttentionSchedule, PrefixGuidance

ScheduleMode = Enum(
    "ScheduleMode", {"sync": "sync", "async": "async", "temporal_ensemble": "temporal_ensemble", "rtc": "rtc"}
)


class Aggregate(Enum):
    """How a new chunk joins what was planned for the same steps (LeRobot's names)."""

    latest_only = "latest_only"
    weighted_average = "weighted_average"
    average = "average"
    conservative = "conservative"


NEW_SHARE = {
    Aggregate.latest_only: 1.0,
    Aggregate.weighted_average: 0.7,
    Aggregate.average: 0.5,
    Aggregate.conservative: 0.3,
}


@dataclass
class ScheduleSettings:
    """replan: actions between two inferences; null: the policy's own. delay_window: latencies the estimate looks at.

    synchronize: the policy is shown one moment, that of the slowest stream's newest sample (its camera, as a rule), and
    its chunk counts from then; it is asked when such a sample comes. Latency matching as in Chi et al. 2024, UMI.
    """

    mode: ScheduleMode = ScheduleMode["async"]
    replan: int | None = None
    synchronize: bool = False
    aggregate: Aggregate = Aggregate.latest_only
    temporal_ensemble_coeff: float = 0.01
    execution_horizon: int = 10
    max_guidance_weight: float = 10.0
    prefix_attention_schedule: PrefixAttentionSchedule = PrefixAttentionSchedule.LINEAR
    delay_window: int = 20


@dataclass(frozen=True)
class Ask:
    """What an inference at this step is asked with. prefix (L, D): what is planned from this step on; None: nothing."""

    prefix: np.ndarray | None = None
    guidance: PrefixGuidance | None = None


class Scheduler:
    """`sync` and `async` (with its aggregates); the base of the others."""

    def __init__(self, settings: ScheduleSettings, chunk: int, replan: int) -> None:
        if not 1 <= replan <= chunk:
            raise ValueError(f"replan should be 1 to the policy's chunk of {chunk}, got {replan}")
        self.settings, self.chunk, self.replan = settings, chunk, replan
        self.synchronous = settings.mode is ScheduleMode["sync"]
        self.delays: deque[int] = deque(maxlen=settings.delay_window)
        self.reset()

    def reset(self) -> None:
        self._plan: np.ndarray | None = None  # actions for steps _start, _start + 1, ...
        self._start = 0
        self._asked: int | None = None

    def wants(self, step: int) -> bool:
        """Whether the policy should be asked at this step, if it is idle."""
        if self.action(step) is None:
            return True
        return not self.synchronous and (self._asked is None or step - self._asked >= self.replan)

    def ask(self, step: int) -> Ask:
        """Notes that the policy is asked at this step."""
        self._asked = step
        return Ask()

    def add(self, asked: int, step: int, chunk: np.ndarray) -> None:
        """Takes the chunk (H, D) asked for at step `asked` and answered before `step`."""
        self.delays.append(step - asked)
        if self.synchronous:
            self._start, self._plan = step, chunk[: self.replan].copy()
            return
        merged = chunk.copy()
        before = self.left_over(asked)
        if before is not None:
            share = NEW_SHARE[self.settings.aggregate]
            common = min(len(before), len(merged))
            merged[:common] = (1 - share) * before[:common] + share * merged[:common]
        self._start, self._plan = asked, merged

    def action(self, step: int) -> np.ndarray | None:
        """The action (D,) of this step, None when nothing is planned for it."""
        if self._plan is None or not 0 <= step - self._start < len(self._plan):
            return None
        return self._plan[step - self._start]

    def left_over(self, step: int) -> np.ndarray | None:
        """What is planned from `step` on, (L, D) with L >= 1."""
        if self._plan is None or not 0 <= step - self._start < len(self._plan):
            return None
        return self._plan[step - self._start :].copy()


class TemporalEnsemble(Scheduler):
    """Every step is the mean of all chunks that cover it, weights exp(-m i), i = 0 the oldest (ACT, 2023)."""

    def reset(self) -> None:
        super().reset()
        self._chunks: deque[tuple[int, np.ndarray]] = deque(maxlen=self.chunk)

    def wants(self, step: int) -> bool:  # noqa: ARG002
        return True

    def add(self, asked: int, step: int, chunk: np.ndarray) -> None:
        self.delays.append(step - asked)
        self._chunks.append((asked, chunk.copy()))

    def action(self, step: int) -> np.ndarray | None:
        covering = [chunk[step - start] for start, chunk in self._chunks if 0 <= step - start < len(chunk)]
        if not covering:
            return None
        weights = np.exp(-self.settings.temporal_ensemble_coeff * np.arange(len(covering)))
        return (np.stack(covering) * (weights / weights.sum())[:, None]).sum(0).astype(np.float32)

    def left_over(self, step: int) -> np.ndarray | None:  # noqa: ARG002
        return None


class RealTimeChunking(Scheduler):
    """The policy is asked with what it planned before, and how much of that will have run when it answers."""

    def ask(self, step: int) -> Ask:
        self._asked = step
        prefix = self.left_over(step)
        if prefix is None:
            return Ask()
        settings = self.settings
        guidance = PrefixGuidance(
            min(max(self.delays, default=0), len(prefix)),
            settings.execution_horizon,
            settings.max_guidance_weight,
            settings.prefix_attention_schedule,
        )
        return Ask(prefix, guidance)


def make_scheduler(settings: ScheduleSettings, chunk: int, replan: int) -> Scheduler:
    """The scheduler of the settings' mode for a policy with chunks of that size."""
    if settings.mode is ScheduleMode["temporal_ensemble"]:
        return TemporalEnsemble(settings, chunk, replan)
    if settings.mode is ScheduleMode["rtc"]:
        return RealTimeChunking(settings, chunk, replan)
    return Scheduler(settings, chunk, replan)
