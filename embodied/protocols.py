"""What the parts of the stack promise each other. Siblings (sim, policies, world_models) meet only here.

Batched observations are plain dicts with the keys of `embodied.schema`: arrays with a leading batch axis, and a list
of strings under "task".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

Observation = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """One task of a suite. `max_steps` is the protocol's limit in control steps."""

    suite: str
    index: int
    name: str
    language: str
    max_steps: int


@dataclass(frozen=True)
class Episode:
    """The identity of one evaluation or collection episode: equal identity, equal episode.

    `init_state` is an index into the suite's stored initial states; None draws the scene from `seed`.
    `instruction` replaces the task's own words (paraphrases, swapped goals) without touching the success predicate.
    """

    suite: str
    task: int
    seed: int
    init_state: int | None = None
    perturbation: str = "none"
    instruction: str | None = None

    @property
    def key(self) -> str:
        init = "random" if self.init_state is None else f"i{self.init_state}"
        words = "" if self.instruction is None else f"/{self.instruction}"
        return f"{self.suite}/{self.task}/{init}/s{self.seed}/{self.perturbation}{words}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class StepsResult:
    """What `SimEnv.run_steps` did: control steps executed (it stops at success) and whether success holds."""

    steps: int
    success: bool


@runtime_checkable
class SimEnv(Protocol):
    """A simulator environment: gymnasium.Env plus what evaluation and collection need.

    Images are rendered only when `observe(images=True)` (or a step in an environment made with `images="always"`)
    asks for them, and always show the newest observed state.
    """

    task: Task
    control_hz: int

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]: ...

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]: ...

    def run_steps(self, actions: np.ndarray) -> StepsResult:
        """Executes actions (n, 7) without rendering; stops after the step at which the success predicate holds."""
        ...

    def observe(self, images: bool = True) -> Observation: ...

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        """The images of the newest observed state, rendered while the environment goes on."""
        ...

    def snapshot(self) -> dict[str, np.ndarray]:
        """Everything needed to recreate this episode's start elsewhere: simulator state and fixture poses."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class PolicySpec:
    """What a policy tells its caller before the first observation.

    `chunk` actions come from one `act`; `replan` of them are executed before the next. `image_keys` empty: nothing is
    rendered for it. `digest` identifies weights and configuration (sha256 hex) in every record.
    """

    name: str
    digest: str
    chunk: int
    replan: int
    action_dim: int = 7
    image_keys: tuple[str, ...] = ()
    image_size: int = 128
    state_key: str = "observation.state"
    extra: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Policy(Protocol):
    """Batched policy, run in one place for many simulator workers. A slot is one running episode."""

    spec: PolicySpec

    def reset(self, slots: Sequence[int], episodes: Sequence[Episode]) -> None: ...

    def act(self, observation: Observation, slots: Sequence[int]) -> np.ndarray:
        """Batched observation of the given slots -> actions (B, chunk, action_dim), float32, in [-1, 1]."""
        ...


@runtime_checkable
class ValueFunction(Protocol):
    def value(self, observation: Observation, actions: np.ndarray, instructions: Sequence[str]) -> np.ndarray:
        """Batched observation, actions (B, chunk, action_dim), B instructions -> (B,) log-reachability."""
        ...


@runtime_checkable
class Expert(Protocol):
    """A demonstrator with privileged access to the simulator; it runs inside the simulator's process.

    `act` returns the next few intended actions (n, 7), n >= 1; `done` is true once it has finished (released,
    retreated) or given up. `touching`: in the actions returned last the hand touches something or is about to.
    """

    spec: PolicySpec

    def reset(self, env: SimEnv, seed: int) -> None: ...

    def act(self, env: SimEnv) -> np.ndarray: ...

    @property
    def done(self) -> bool: ...

    @property
    def touching(self) -> bool: ...


class WorldModel(Protocol):
    def imagine(self, history: Mapping[str, np.ndarray], actions: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        """History frames and actions (B, T, action_dim) -> predicted frames per camera (B, T, H, W, 3), uint8."""
        ...


class Transport(Protocol):
    def start(self) -> None: ...

    def stop(self) -> None: ...
