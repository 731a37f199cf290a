"""What runs inside a simulator's process: the expert's episode, and its exact replay with images."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embodied.collecting.plan import PlannedEpisode
from embodied.data.episode_record import EpisodeLine, EpisodeRecord, RecordFolder
from embodied.data.lerobot_layout import Layout
from embodied.data.lerobot_writer import EncodedEpisode, encode_episode
from embodied.evaluation.versions import SIMULATOR, versions
from embodied.protocols import Episode, Expert, Policy, SimEnv
from embodied.schema import ACTION, ACTION_DIM, EXECUTED_ACTION, IMAGE_AGE, STATE, STATE_DIM, TASK

NOISE_SHAPE = np.array([1, 1, 1, 1 / 3, 1 / 3, 1 / 3, 0])  # translations, rotations, gripper
STATE_ROUNDING = 1e-6  # between two ways to compute the same float32 proprioception
NOISE_STREAM = 20  # keeps the noise apart from what else is drawn from the episode's seed


@dataclass(frozen=True)
class Divergence:
    """A replay that did not pass through the recorded states, and where it left them."""

    reason: str


class Demonstrator:
    """The object of a worker process: it holds nothing, environment and expert are the worker's other objects."""

    def record(
        self, planned: PlannedEpisode, env: SimEnv, expert: Expert, learner: Policy | None = None
    ) -> EpisodeRecord:
        """Runs the expert on a seeded random reset, after the learner if there is one; the label of every step is what
        it intended."""
        began = time.monotonic()
        observation, info = env.reset(seed=planned.seed)
        snapshot = env.snapshot()
        disturb = Disturbance(planned.noise, planned.noise_memory, np.random.default_rng([NOISE_STREAM, planned.seed]))
        states = [observation[STATE]]
        executed: list[np.ndarray] = []
        finished = learner is not None and drive(env, learner, planned, executed, states)  # it needed no help
        intended = list(executed)
        success = finished or bool(info.get("success", False))
        limit = len(executed) + planned.max_steps
        if not finished:
            expert.reset(env, planned.seed)
        while not finished and not expert.done and len(executed) < limit:
            for action in np.atleast_2d(expert.act(env))[: limit - len(executed)]:
                intended.append(np.clip(action, -1, 1).astype(np.float32))
                executed.append(disturb(intended[-1], planned.noise_free and expert.touching))
                success = env.run_steps(executed[-1][None]).success
                states.append(env.observe(images=False)[STATE])
        if planned.goal is not None and not finished:  # the simulator's predicate is about the task's own goal
            success = expert.success()  # type: ignore[attr-defined]
        line = _line(planned, env, expert, success, len(executed), time.monotonic() - began)
        return EpisodeRecord(
            line,
            snapshot,
            np.array(executed, np.float32).reshape(-1, ACTION_DIM),
            np.array(intended, np.float32).reshape(-1, ACTION_DIM),
            np.array(states, np.float32).reshape(-1, STATE_DIM),
            final_state(env),
        )

    def render(
        self, env: SimEnv, records: RecordFolder, line: EpisodeLine, layout: Layout, folder: Path, tolerance: float
    ) -> EncodedEpisode | Divergence:
        """Replays a record and encodes into `folder` what the cameras see before each action of the expert's, or what
        they last saw where the layout has them look less often."""
        record, lead = records.load(line), line.lead
        age = (np.arange(line.steps) - lead) % layout.image_every
        observation, info = env.reset(seed=line.seed, options={"snapshot": record.snapshot})
        success = bool(info.get("success", False))
        states: list[np.ndarray] = []
        images = {key: np.empty((line.steps - lead, *size, 3), np.uint8) for key, size in layout.images.items()}
        for step, action in enumerate(record.executed):
            look = step >= lead and age[step] == 0
            observation = env.observe(images=bool(look))
            states.append(observation[STATE])
            for key, frames in images.items():
                if step >= lead:
                    frames[step - lead] = observation[key] if look else frames[step - lead - 1]
            success = env.run_steps(action[None]).success
        reached = [*states, env.observe(images=False)[STATE]]
        wrong = compare(record, np.array(reached, np.float32), success, final_state(env), tolerance)
        if wrong is not None:
            return wrong
        columns = {STATE: np.array(states, np.float32), ACTION: record.intended, EXECUTED_ACTION: record.executed}
        if IMAGE_AGE in layout.columns:
            columns[IMAGE_AGE] = age[:, None].astype(np.float32)
        columns = {key: values[lead:] for key, values in columns.items()}
        return encode_episode(folder, layout, columns, images, line.language, metadata_of(line))


def _line(
    planned: PlannedEpisode, env: SimEnv, expert: Expert, success: bool, steps: int, seconds: float
) -> EpisodeLine:
    return EpisodeLine(
        suite=planned.suite,
        task=planned.task,
        seed=planned.seed,
        noise=planned.noise,
        language=planned.instruction or env.task.language,
        success=success,
        steps=steps,
        goal=planned.goal or getattr(env, "goal", None),
        variant=planned.variant,
        task_name=env.task.name,
        expert=f"{expert.spec.name} {expert.spec.digest[:12]}",
        versions=versions(),
        seconds=round(seconds, 2),
        lead=planned.lead,
        noise_memory=planned.noise_memory,
        noise_free=planned.noise_free,
    )


def drive(
    env: SimEnv, learner: Policy, planned: PlannedEpisode, executed: list[np.ndarray], states: list[np.ndarray]
) -> bool:
    """A policy drives for `planned.lead` steps, or until it succeeds: whether it did. Its actions (7,) and the states
    that they lead to are added to `executed` and `states`."""
    spec = learner.spec
    instruction = planned.instruction or env.task.language
    learner.reset([0], [Episode(planned.suite, planned.task, planned.seed, instruction=planned.instruction)])
    while len(executed) < planned.lead:
        seen = env.observe(images=bool(spec.image_keys))
        batch = {key: seen[key][None] for key in (*spec.image_keys, STATE)}
        chunk = np.clip(learner.act({**batch, TASK: [instruction]}, [0])[0], -1, 1).astype(np.float32)
        for action in chunk[: min(spec.replan, planned.lead - len(executed))]:
            executed.append(action)
            success = env.run_steps(action[None]).success
            states.append(env.observe(images=False)[STATE])
            if success and planned.goal is None:  # the simulator's predicate is about the task's own goal
                return True
    return False


class Disturbance:
    """Execution noise on actions (7,), within [-1, 1]; the gripper's entry stays.

    A stationary first-order process: standard deviation `noise`, correlation `memory` from one step to the next.
    """

    def __init__(self, noise: float, memory: float, rng: np.random.Generator) -> None:
        self.noise, self.memory, self.rng = noise, memory, rng
        self.now = rng.standard_normal(ACTION_DIM) if noise and memory else np.zeros(ACTION_DIM)

    def __call__(self, action: np.ndarray, still: bool = False) -> np.ndarray:
        """The disturbed action; the process goes on while it is `still`."""
        if self.noise == 0:
            return action
        fresh = self.rng.standard_normal(ACTION_DIM)
        self.now = self.memory * self.now + np.sqrt(1 - self.memory**2) * fresh
        if still:
            return action
        return np.clip(action + self.noise * NOISE_SHAPE * self.now, -1, 1).astype(np.float32)


def final_state(env: Any) -> np.ndarray:
    """Time, joint positions and velocities of a MuJoCo environment; empty for environments without `sim`."""
    sim = getattr(env, "sim", None)
    return np.zeros(0) if sim is None else np.asarray(sim.get_state().flatten())


def compare(
    record: EpisodeRecord, states: np.ndarray, success: bool, final: np.ndarray, tolerance: float
) -> Divergence | None:
    """None when a replay ended as recorded: in the same simulator state, and in success or failure alike.

    Records without a final simulator state are held against the proprioception (T or T + 1, 8) passed through.
    """
    if record.final.size and record.final.shape == final.shape:
        apart = np.abs(final - record.final).max(keepdims=True)
        reached = "the final simulator state"
    else:
        known = len(record.states)
        apart = np.abs(states[:known] - record.states).max(1) if known else np.zeros(0)
        tolerance = max(tolerance, STATE_ROUNDING)
        reached = f"the state before step {int(np.argmax(apart > tolerance))}"
    if np.any(apart > tolerance):
        return Divergence(f"{reached} differs by up to {apart.max():.3g}{_other_versions(record)}")
    if success != record.line.success and not record.line.variant:
        return Divergence(f"it ends in {_word(success)}, recorded was {_word(record.line.success)}")
    return None


def metadata_of(line: EpisodeLine) -> dict[str, Any]:
    """The further columns of the data set's table of episodes."""
    return {
        "record": line.key,
        "suite": line.suite,
        "task_index": line.task,
        "seed": line.seed,
        "success": line.success,
        "noise": line.noise,
    }


def _other_versions(record: EpisodeRecord) -> str:
    now, then = versions(), record.line.versions
    changed = [
        f"{name} {then[name]} -> {now.get(name)}"
        for name in SIMULATOR
        if then.get(name, now.get(name)) != now.get(name)
    ]
    return f" (recorded with other versions: {', '.join(changed)})" if changed else ""


def _word(success: bool) -> str:
    return "success" if success else "failure"
