"""How to make and use a simulator environment.

    from sim.make import make_env
    from sim.tasks import suites, tasks, init_states

    env = make_env("libero_object", 3)                     # or ("robosuite", 0): Lift; nothing is rendered by itself
    observation, info = env.reset(seed=7, options={"init_state": 12})
    # observation: {"observation.state": (8,) float32, "task": str}
    while not info["success"]:
        seen = env.observe(images=True)                    # + "observation.images.image", ".image2": (128, 128, 3)
        result = env.run_steps(actions)                    # (n, 7) in [-1, 1]: n control steps, none rendered
        info["success"] = result.success                   # or step by step: env.step(action), as gymnasium has it

Reset options: `init_state` (index into LIBERO's stored states; without it the scene is drawn from the seed), `snapshot`
(a dict from `env.snapshot()`: the same actions then repeat the episode exactly, in any process), `settle_steps`
(default 10; none after a snapshot that does not name them), `instruction` (other words for the policy; the success
predicate stays).

`images="always"` puts images into every observation and into the observation space; with "on_request" (the default)
`observe(images=True)` renders the newest sampled state, which is the one stock robosuite would have shown, and
`images_later()` is the future of the same images, rendered while the environment goes on.
Every reset is a hard reset (0.6 to 1 s; the first environment of a process takes several seconds): keep one environment
per task and process. For experts: `env.sim` (robosuite MjSim of this episode; `env.sim.model._model` and
`env.sim.data._data` are mujoco's), `env.robosuite_env`, `env.success()`, `env.goal`, `env.task`, `env.control_hz`.
gymnasium ids: "embodied/libero_spatial-v0" and so on, task=0..9; "embodied/robosuite_lift-v0" and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sim.libero_setup import prepare_rendering
from sim.tasks import ROBOSUITE, ROBOSUITE_TASKS, get_task, suites

if TYPE_CHECKING:
    from sim.base_env import BaseEnv


def make_env(
    suite: str,
    task: int,
    image_size: int = 128,
    images: str = "on_request",
    cameras: Mapping[str, str] | None = None,
    settle_steps: int = 10,
    render_mode: str | None = None,
) -> BaseEnv:
    """The environment of one task. `cameras`: observation key -> camera name; default agentview and wrist.

    ValueError for an unknown suite or task. The simulator is built at the first `reset`.
    """
    listed = get_task(suite, task)
    prepare_rendering()  # before anything imports mujoco
    if suite == ROBOSUITE:
        from sim.robosuite_env import RobosuiteEnv as Environment
    else:
        from sim.libero_env import LiberoEnv as Environment  # type: ignore[assignment]
    return Environment(listed, image_size, images, cameras, settle_steps, render_mode)


def gymnasium_ids() -> dict[str, dict[str, Any]]:
    """gymnasium id -> keyword arguments of `make_env`."""
    ids: dict[str, dict[str, Any]] = {
        f"embodied/{suite}-v0": {"suite": suite, "task": 0} for suite in suites() if suite != ROBOSUITE
    }
    for index, (name, _, _) in enumerate(ROBOSUITE_TASKS):
        ids[f"embodied/robosuite_{name.lower()}-v0"] = {"suite": ROBOSUITE, "task": index}
    return ids


def register_gymnasium() -> None:
    """Makes `gymnasium.make("embodied/libero_object-v0", task=3)` work. Called when this module is imported."""
    import gymnasium

    for name, settings in gymnasium_ids().items():
        if name not in gymnasium.registry:
            gymnasium.register(name, entry_point="sim.make:make_env", kwargs=settings)


register_gymnasium()
