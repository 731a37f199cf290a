"""robosuite's own single-arm tasks as gymnasium environments; they need no download."""

from __future__ import annotations

from typing import Any

from sim.base_env import BaseEnv
from sim.libero_setup import import_robosuite, silence

# Predicates in LIBERO's style, over robosuite's object names.
GOALS: dict[str, list[list[str]]] = {
    "Lift": [["lifted", "cube"]],
    "Stack": [["on", "cubeA", "cubeB"]],
    "PickPlaceCan": [["in_bin", "Can"]],
    "PickPlaceMilk": [["in_bin", "Milk"]],
    "PickPlaceBread": [["in_bin", "Bread"]],
    "PickPlaceCereal": [["in_bin", "Cereal"]],
    "PickPlace": [["in_bin", "Milk"], ["in_bin", "Bread"], ["in_bin", "Cereal"], ["in_bin", "Can"]],
    "NutAssemblySquare": [["on_peg", "SquareNut", "peg1"]],
    "NutAssemblyRound": [["on_peg", "RoundNut", "peg2"]],
    "NutAssembly": [["on_peg", "SquareNut", "peg1"], ["on_peg", "RoundNut", "peg2"]],
    "Door": [["open", "Door"]],
}


class RobosuiteEnv(BaseEnv):
    """One robosuite task. `goal`: predicates lifted, on, in_bin, on_peg, open over robosuite's object names."""

    def _make_inner(self) -> Any:
        suite = import_robosuite()
        with silence():
            return suite.make(
                self.task.name,
                robots="Panda",
                controller_configs=suite.load_controller_config(default_controller="OSC_POSE"),
                use_camera_obs=False,
                use_object_obs=True,
                has_renderer=False,
                has_offscreen_renderer=False,
                control_freq=self.control_hz,
                horizon=1000,
                ignore_done=True,
                hard_reset=True,
            )

    @property
    def goal(self) -> list[list[str]]:
        return [list(predicate) for predicate in GOALS[self.task.name]]
