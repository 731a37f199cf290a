"""The life of a managed node, with ROS 2's states, transitions and numbers (lifecycle_msgs)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import IntEnum


class LifecycleState(IntEnum):
    unconfigured = 1
    inactive = 2
    active = 3
    finalized = 4


class Transition(IntEnum):
    configure = 1
    cleanup = 2
    activate = 3
    deactivate = 4
    shutdown = 5  # from unconfigured; 6 and 7 from inactive and active are taken as 5


GOALS = {
    (LifecycleState.unconfigured, Transition.configure): LifecycleState.inactive,
    (LifecycleState.inactive, Transition.cleanup): LifecycleState.unconfigured,
    (LifecycleState.inactive, Transition.activate): LifecycleState.active,
    (LifecycleState.active, Transition.deactivate): LifecycleState.inactive,
    (LifecycleState.unconfigured, Transition.shutdown): LifecycleState.finalized,
    (LifecycleState.inactive, Transition.shutdown): LifecycleState.finalized,
    (LifecycleState.active, Transition.shutdown): LifecycleState.finalized,
}


class Lifecycle:
    """One transition at a time. A transition whose work raises ValueError leaves the state as it was."""

    def __init__(self, work: Callable[[LifecycleState, Transition], None]) -> None:
        self.state = LifecycleState.unconfigured
        self.error = ""
        self.on_change: Callable[[Transition, LifecycleState, LifecycleState], None] | None = None
        self._work = work
        self._lock = threading.Lock()

    def available(self) -> list[tuple[Transition, LifecycleState]]:
        return [(transition, goal) for (state, transition), goal in GOALS.items() if state is self.state]

    def change(self, transition: int, label: str = "") -> bool:
        """Does a transition, by number or (number 0) by name. False, with `error`, when it is refused or failed."""
        with self._lock:
            chosen = _transition(transition, label)
            goal = None if chosen is None else GOALS.get((self.state, chosen))
            if chosen is None or goal is None:
                names = ", ".join(t.name for t, _ in self.available()) or "none"
                self.error = f"transition {label or transition} is not open in {self.state.name}: {names} are"
                return False
            start = self.state
            try:
                self._work(start, chosen)
            except ValueError as error:
                self.error = str(error)
                return False
            self.state, self.error = goal, ""
        if self.on_change is not None:
            self.on_change(chosen, start, goal)
        return True


def _transition(number: int, label: str) -> Transition | None:
    if number == 0 and label in Transition.__members__:
        return Transition[label]
    if number in (6, 7):
        return Transition.shutdown
    return Transition(number) if number in set(Transition) else None
