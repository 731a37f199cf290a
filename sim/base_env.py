"""What all simulator environments share: gymnasium's interface, exact stepping, images on request, snapshots.

Every episode is seed -> hard reset -> (initial state or snapshot) -> settling, and equals the first episode of a fresh
stock environment with that seed, whatever ran before.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from embodied import schema
from embodied.protocols import Observation, StepsResult, Task
from sim.libero_setup import import_robosuite
from sim.perturbations.apply import Perturbed
from sim.rendering import Renderer
from sim.stepping import Stepper

SETTLE_ACTION = np.array([0, 0, 0, 0, 0, 0, -1], dtype=np.float32)
DEFAULT_CAMERAS = {schema.IMAGE: "agentview", schema.WRIST_IMAGE: "robot0_eye_in_hand"}
RESET_ATTEMPTS = 20
OPTIONS = ("init_state", "snapshot", "settle_steps", "instruction", "perturbation")
TEXT = "".join(chr(code) for code in range(32, 127))


class BaseEnv(gymnasium.Env):
    """One task of one suite. Subclasses say how the robosuite environment is made, reset and described.

    Public for the expert: `sim` (robosuite's MjSim), `robosuite_env`, `success()`, `goal`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": schema.CONTROL_HZ}  # noqa: RUF012
    control_hz = schema.CONTROL_HZ

    def __init__(
        self,
        task: Task,
        image_size: int = 128,
        images: str = "on_request",
        cameras: Mapping[str, str] | None = None,
        settle_steps: int = 10,
        render_mode: str | None = None,
    ) -> None:
        if images not in ("on_request", "always"):
            raise ValueError(f"images should be 'on_request' or 'always', got {images!r}")
        self.task = task
        self.image_size = image_size
        self.images = images
        self.cameras = dict(DEFAULT_CAMERAS if cameras is None else cameras)
        self.settle_steps = settle_steps
        self.render_mode = render_mode
        self.instruction = task.language
        self._perturbed = Perturbed("none", 0, "agentview")
        self._inner: Any = None
        self._stepper: Stepper | None = None
        self._renderer: Renderer | None = None
        self._start: dict[str, np.ndarray] = {}
        self._steps = 0
        self._success = False
        self.action_space = spaces.Box(-1.0, 1.0, (schema.ACTION_DIM,), np.float32)
        self.observation_space = self._make_space()

    # What a subclass supplies -------------------------------------------------------------------------------------

    def _make_inner(self) -> Any:
        """A robosuite environment without renderer or camera observations."""
        raise NotImplementedError

    def _inner_reset(self) -> None:
        """One hard reset of the robosuite environment, as a fresh one would do it."""
        self._inner.reset()

    def _after_reset(self) -> None:
        """What the stock environment does after a state was set and before it observes."""

    def _after_step(self) -> None:
        """What the stock environment does after a control step and after its observation."""

    @property
    def goal(self) -> list[list[str]]:
        """The goal as a conjunction of predicates, each a list of name and arguments."""
        raise NotImplementedError

    def _stored_init_state(self, index: int) -> np.ndarray:
        raise ValueError(f"suite {self.task.suite} has no stored initial state {index}: reset with a seed instead")

    # gymnasium ----------------------------------------------------------------------------------------------------

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        """Starts an episode.

        Options: `init_state` (index into the suite's stored states), `snapshot` (from `snapshot()`), `settle_steps`,
        `instruction` (replaces the task's words), `perturbation` (a name, see sim.perturbations). ValueError for
        anything else.
        """
        super().reset(seed=seed)
        options = dict(options or {})
        unknown = set(options) - set(OPTIONS)
        if unknown:
            raise ValueError(f"reset options should be among {', '.join(OPTIONS)}, got {sorted(unknown)}")
        snapshot = options.get("snapshot")
        if snapshot is not None and "init" not in snapshot:
            raise ValueError(f"a snapshot should hold 'init' (time, qpos, qvel), got {sorted(snapshot)}")
        if snapshot is not None and options.get("init_state") is not None:
            raise ValueError("reset takes an init_state or a snapshot, got both: leave one out")
        if seed is None:
            seed = int(self.np_random.integers(2**31)) if snapshot is None else int(snapshot.get("seed", 0))
        name = options.get("perturbation") or (snapshot or {}).get("perturbation", "none")
        self._perturbed = Perturbed(str(name), seed, self.cameras.get(schema.IMAGE, "agentview"))
        self._perturbed.check_start(options.get("init_state"))
        self.instruction = options.get("instruction") or self._perturbed.words(self.task)
        self._hard_reset(seed)
        self._start_episode(seed, options.get("init_state"), snapshot, options.get("settle_steps"))
        self._steps = 0
        self._success = self.success()
        return self.observe(self.images == "always"), {"success": self._success, "seed": seed}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict]:
        """One control step (1/20 s). Terminated and reward 1 when the simulator's predicate holds."""
        self._advance(self._checked(action))
        self._steps += 1
        self._success = self.success()
        truncated = self._steps >= self.task.max_steps and not self._success
        observation = self.observe(self.images == "always")
        return observation, float(self._success), self._success, truncated, {"success": self._success}

    def run_steps(self, actions: np.ndarray, stop_at_success: bool = True) -> StepsResult:
        """Executes actions (n, 7) without rendering; stops after the step at which the success predicate holds."""
        done = 0
        for action in np.atleast_2d(actions):
            self._advance(self._checked(action))
            done += 1
            self._success = self.success()
            if self._success and stop_at_success:
                break
        self._steps += done
        return StepsResult(done, self._success)

    def observe(self, images: bool = True) -> Observation:
        """The newest sampled state. With images: every camera, (size, size, 3) uint8, upright, rendered now."""
        sample = self._ready().sample
        observation: Observation = {schema.STATE: _state(sample), schema.TASK: self.instruction}
        if images:
            observation.update(self.images_later().result())
        return observation

    def images_later(self) -> Future[dict[str, np.ndarray]]:
        """Every camera's image of the newest sampled state, rendered beside whatever happens next."""
        stepper = self._ready()
        if self._renderer is None:
            self._renderer = Renderer(stepper.model)
        change, steps = self._perturbed.image, self._steps
        return self._renderer.images(
            stepper.sample, self.cameras, self.image_size, lambda image, number: change(image, steps, number)
        )

    def render(self) -> np.ndarray | None:
        """The external camera's image when made with render_mode='rgb_array'."""
        if self.render_mode is None:
            return None
        return self.images_later().result()[next(iter(self.cameras))]

    def success(self) -> bool:
        """The simulator's own predicate, now."""
        return bool(self.robosuite_env._check_success())

    def snapshot(self) -> dict[str, np.ndarray]:
        """The start of this episode: `reset(options={"snapshot": ...})` and the same actions repeat it exactly.

        Keys: init (time, qpos, qvel before settling), body_pos and body_quat (fixtures), warmstart, clock, seed,
        settle_steps; perturbation when there is one.
        """
        self._ready()
        return {key: value.copy() for key, value in self._start.items()}

    def close(self) -> None:
        self._drop_renderer()
        self._stepper = None
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    # For the expert -----------------------------------------------------------------------------------------------

    @property
    def robosuite_env(self) -> Any:
        """The robosuite environment underneath: read from it, step through this class. ValueError before `reset`."""
        self._ready()
        return self._inner

    @property
    def sim(self) -> Any:
        """robosuite's MjSim of this episode; replaced by every reset. Raw: `sim.model._model`, `sim.data._data`."""
        return self.robosuite_env.sim

    # Inside -------------------------------------------------------------------------------------------------------

    def _make_space(self) -> spaces.Dict:
        entries: dict[str, spaces.Space] = {
            schema.STATE: spaces.Box(-np.inf, np.inf, (schema.STATE_DIM,), np.float32),
            schema.TASK: spaces.Text(max_length=1000, charset=TEXT),
        }
        if self.images == "always":
            shape = (self.image_size, self.image_size, 3)
            entries.update({key: spaces.Box(0, 255, shape, np.uint8) for key in self.cameras})
        return spaces.Dict(entries)

    def _ready(self) -> Stepper:
        if self._stepper is None:
            raise ValueError("the environment should be reset first: call reset()")
        return self._stepper

    def _checked(self, action: np.ndarray) -> np.ndarray:
        action = np.asarray(action)
        if action.shape != (schema.ACTION_DIM,) or not np.all(np.isfinite(action)):
            raise ValueError(f"action should be {schema.ACTION_DIM} finite numbers, got {action!r}")
        return action

    def _hard_reset(self, seed: int) -> None:
        """Seeds the global numpy generator, which robosuite and LIBERO draw from, and gives the caller's back."""
        import_robosuite()
        from robosuite.utils.errors import RandomizationError

        self._drop_renderer()
        self._stepper = None
        with global_seed(seed):
            if self._inner is None:
                self._inner = self._make_inner()
                np.random.seed(seed % 2**32)  # noqa: NPY002
            for attempt in range(RESET_ATTEMPTS):
                try:
                    with self._perturbed.during_reset(self._inner):
                        self._inner_reset()
                    break
                except RandomizationError as error:
                    if attempt == RESET_ATTEMPTS - 1:
                        raise ValueError(
                            f"objects of {self.task.suite} {self.task.index} should fit into the scene, seed {seed} "
                            f"placed none in {RESET_ATTEMPTS} attempts: use another seed"
                        ) from error
        self._stepper = Stepper(self._inner)
        _return_free_memory()

    def _start_episode(
        self, seed: int, init_state: int | None, snapshot: Mapping[str, np.ndarray] | None, settle: int | None
    ) -> None:
        """Initial state and settling. A snapshot that does not name its settling was taken after it: there the settling
        comes first, for the memory that controller and gripper keep, and then the state."""
        if settle is None:
            settle = self.settle_steps
            if snapshot is not None and "settle_steps" in snapshot:
                settle = int(snapshot["settle_steps"])
        settled = snapshot is not None and "settle_steps" not in snapshot
        self._perturbed.edit_scene(self._inner)
        if init_state is not None:
            self._set_state(self._stored_init_state(init_state), {})
            self._set_arm(self._perturbed.arm_after_state(self._inner))
        elif snapshot is not None and not settled:
            self._set_state(np.asarray(snapshot["init"]), snapshot)
        self._record_start(seed, settle)
        for _ in range(settle):
            self._advance(SETTLE_ACTION)
        if snapshot is not None and settled:
            self._set_state(np.asarray(snapshot["init"]), snapshot)
            self._record_start(seed, settle)
            del self._start["settle_steps"]

    def _set_state(self, state: np.ndarray, fixtures: Mapping[str, np.ndarray]) -> None:
        sim = self._inner.sim
        expected = 1 + sim.model.nq + sim.model.nv
        if state.shape != (expected,):
            raise ValueError(f"state of {self.task.name} should have {expected} numbers, got shape {state.shape}")
        for name, target in (("body_pos", sim.model.body_pos), ("body_quat", sim.model.body_quat)):
            if name in fixtures:
                target[:] = fixtures[name]
        sim.set_state_from_flattened(state)
        if "warmstart" in fixtures:
            sim.data._data.qacc_warmstart[:] = fixtures["warmstart"]
        sim.forward()
        self._after_reset()
        self._ready().force_sample()
        if "clock" in fixtures:
            self._ready().clock.elapsed = float(fixtures["clock"])

    def _set_arm(self, joints: np.ndarray | None) -> None:
        if joints is None:
            return
        sim, stepper = self._inner.sim, self._ready()
        sim.data.qpos[self._inner.robots[0]._ref_joint_pos_indexes] = joints
        sim.forward()
        stepper.sample = stepper.take_sample(sim.data.qpos)

    def _record_start(self, seed: int, settle: int) -> None:
        sim = self._inner.sim
        self._start = {
            "init": sim.get_state().flatten(),
            "body_pos": sim.model.body_pos.copy(),
            "body_quat": sim.model.body_quat.copy(),
            "warmstart": sim.data._data.qacc_warmstart.copy(),
            "clock": np.array(self._ready().clock.elapsed),
            "seed": np.array(seed),
            "settle_steps": np.array(settle),
        }
        if self._perturbed.changes:
            self._start["perturbation"] = np.array(self._perturbed.name)

    def _advance(self, action: np.ndarray) -> None:
        self._ready().step(action)
        self._after_step()

    def _drop_renderer(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


def _return_free_memory() -> None:
    """Gives the old model's memory back to the system (glibc keeps it in fragments otherwise): a worker stays flat."""
    with contextlib.suppress(OSError, AttributeError):  # another C library, which needs no help
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _state(sample: Any) -> np.ndarray:
    from robosuite.utils.transform_utils import quat2axisangle

    angle = quat2axisangle(sample.eef_quat.copy())
    return np.concatenate([sample.eef_pos, angle, sample.gripper]).astype(np.float32)


@contextlib.contextmanager
def global_seed(seed: int) -> Iterator[None]:
    """Seeds numpy's global generator inside the block and restores its state afterwards."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
