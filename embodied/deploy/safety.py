"""The last thing between a policy and a robot: every action that leaves is finite and inside the contract's limits.

Limits that cannot all hold at once yield in this order, the first never: absolute bounds, workspace box, distance from
the measured position, change since the last command (step, velocity).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from embodied.deploy.contract import ActionMode, Contract

Interval = tuple[np.ndarray, np.ndarray]


class UnsafeActionError(ValueError):
    """An action that no clamping makes safe: not finite, of a wrong size, or in a box with nothing measured."""


@dataclass(frozen=True)
class Filtered:
    """`changed`: the limits that moved the action."""

    action: np.ndarray
    changed: tuple[str, ...]


class SafetyFilter:
    """Clamps actions (N,) in the policy's units. Remembers the last one for the limits on change."""

    def __init__(self, contract: Contract) -> None:
        self.limits, self.action = contract.limits, contract.action
        self.period_s = contract.period_s
        self.names = list(contract.action.names)
        self.state_names = contract.names(contract.limits.state)
        self.counts: Counter[str] = Counter()
        self.last: np.ndarray | None = None
        self._kept = np.array([name in contract.action.gripper for name in self.names])

    def apply(self, action: np.ndarray, state: np.ndarray | None, elapsed_s: float) -> Filtered:
        """action (N,), measured state (S,), seconds since the last command -> what may be sent.

        Raises UnsafeActionError when nothing may be.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (len(self.names),) or not np.isfinite(wanted).all():
            self.counts["refused"] += 1
            raise UnsafeActionError(f"an action should be {len(self.names)} finite numbers, got {wanted.tolist()}")
        low = np.array(self.limits.low or [-np.inf] * len(wanted))
        high = np.array(self.limits.high or [np.inf] * len(wanted))
        changed = [] if ((wanted >= low) & (wanted <= high)).all() else ["absolute"]
        bounds = low, high
        value = np.clip(wanted, low, high)
        for kind, (lower, upper) in self._intervals(state, elapsed_s):
            low, high = np.clip(lower, low, high), np.clip(upper, low, high)
            inside = np.clip(value, low, high)
            if (inside != value).any():
                changed.append(kind)
            value = inside
        self.counts.update(changed)
        self.last = value
        return Filtered(_inside_float32(value, *bounds), tuple(changed))

    def hold(self, state: np.ndarray | None) -> np.ndarray | None:
        """The action that holds still: the last position (or the measured one) again, or no motion.

        Gripper elements keep their last command. None: a position policy before anything was sent or measured.
        """
        if self.action.mode is ActionMode.position:
            held = self.last if self.last is not None else self._measured(state)
            return None if held is None else held.astype(np.float32)
        held = np.zeros(len(self.names))
        if self.last is not None:
            held[self._kept] = self.last[self._kept]
        self.last = held
        return held.astype(np.float32)

    def reset(self) -> None:
        self.last = None

    def _intervals(self, state: np.ndarray | None, elapsed_s: float) -> Iterator[tuple[str, Interval]]:
        limits = self.limits
        if limits.workspace:
            yield "workspace", self._workspace(state)
        measured = self._measured(state)
        if limits.max_relative_target:
            if measured is None:
                raise UnsafeActionError("limits.max_relative_target needs a measured position of every action element")
            reach = np.array(limits.max_relative_target)
            yield "relative", (measured - reach, measured + reach)
        reference = self._reference(measured)
        if reference is None:
            return
        if limits.max_step:
            step = np.array(limits.max_step)
            yield "step", (reference - step, reference + step)
        if limits.max_velocity:
            reach = np.array(limits.max_velocity) * min(max(elapsed_s, 0.0), self.period_s)
            yield "velocity", (reference - reach, reference + reach)

    def _reference(self, measured: np.ndarray | None) -> np.ndarray | None:
        """What the next command may differ little from."""
        if self.last is not None:
            return self.last
        if self.action.mode is ActionMode.position:
            return measured
        return np.zeros(len(self.names)) if not self._kept.any() else None

    def _measured(self, state: np.ndarray | None) -> np.ndarray | None:
        """The measured values of the action's elements, where the state has elements of the same names."""
        if state is None or not set(self.names) <= set(self.state_names):
            return None
        return np.array([float(state[self.state_names.index(name)]) for name in self.names])

    def _workspace(self, state: np.ndarray | None) -> Interval:
        if state is None:
            raise UnsafeActionError(f"limits.workspace needs {self.limits.state}, nothing was measured")
        lower, upper = np.full(len(self.names), -np.inf), np.full(len(self.names), np.inf)
        for index, name in enumerate(self.names):
            element = self.limits.workspace_elements.get(name, name)
            if element not in self.limits.workspace:
                continue
            low, high = self.limits.workspace[element]
            if self.action.mode is ActionMode.position:
                lower[index], upper[index] = low, high
                continue
            motion = self.period_s if self.action.mode is ActionMode.velocity else 1.0
            motion *= self.limits.delta_scale.get(name, 1.0)
            here = float(state[self.state_names.index(element)])
            lower[index], upper[index] = sorted(((low - here) / motion, (high - here) / motion))
        return lower, upper


def _inside_float32(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """float32 of `value`, rounded towards the inside where rounding would cross an absolute bound."""
    result = value.astype(np.float32)
    result = np.where(result > high, np.nextafter(result, np.float32(-np.inf)), result)
    return np.where(result < low, np.nextafter(result, np.float32(np.inf)), result).astype(np.float32)
