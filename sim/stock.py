"""The stock environments as everybody runs them: the other side of the parity tests and the benchmark's baseline."""

from __future__ import annotations

from typing import Any

import numpy as np

from embodied import schema
from sim.libero_setup import import_libero, import_robosuite, silence
from sim.tasks import ROBOSUITE, bddl_file, get_task, init_states

CAMERAS = ("agentview", "robot0_eye_in_hand")


def make_stock(suite: str, task: int, size: int = 128, images: bool = True) -> Any:
    """hf-libero's environment, or robosuite's own `make`, with both cameras or without images."""
    robosuite = import_robosuite()
    with silence():
        if suite != ROBOSUITE:
            import_libero()
            from libero.libero.envs.env_wrapper import ControlEnv

            path = str(bddl_file(suite, task))
            return ControlEnv(
                bddl_file_name=path,
                camera_heights=size,
                camera_widths=size,
                use_camera_obs=images,
                has_offscreen_renderer=images,
            )
        return robosuite.make(
            get_task(suite, task).name,
            robots="Panda",
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            camera_names=list(CAMERAS),
            camera_heights=size,
            camera_widths=size,
            control_freq=20,
            use_camera_obs=images,
            has_renderer=False,
            has_offscreen_renderer=images,
        )


def start_stock(env: Any, suite: str, task: int, seed: int, init_state: int | None) -> dict:
    """seed -> reset -> set_init_state, as openpi and LIBERO's own evaluation do."""
    np.random.seed(seed)  # noqa: NPY002
    observation = env.reset()
    if init_state is not None:
        observation = env.set_init_state(init_states(suite, task)[init_state])
    return observation


def as_item(observation: dict) -> dict[str, np.ndarray]:
    """A stock observation in the item format."""
    from robosuite.utils.transform_utils import quat2axisangle

    angle = quat2axisangle(np.array(observation["robot0_eef_quat"]))
    state = [observation["robot0_eef_pos"], angle, observation["robot0_gripper_qpos"]]
    return {
        schema.STATE: np.concatenate(state).astype(np.float32),
        schema.IMAGE: observation["agentview_image"][::-1],
        schema.WRIST_IMAGE: observation["robot0_eye_in_hand_image"][::-1],
    }
