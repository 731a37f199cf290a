"""What an environment does with a perturbation's name, in the order of a reset."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from embodied.protocols import Task
from sim.goals import SceneGoal, other_goal
from sim.perturbations import images, language, layout, scene
from sim.perturbations.names import Perturbation, parse


class Perturbed:
    """The perturbations of one episode. `external`: name of the camera that the camera axis moves."""

    def __init__(self, name: str, seed: int, external: str) -> None:
        self.name = name or "none"
        self.seed = seed
        self.external = external
        self.changes = {change.axis: change for change in parse(name)}

    def words(self, task: Task) -> str:
        """The instruction in place of the task's."""
        other = self._other_goal(task)
        words = task.language if other is None else other.words
        change = self.changes.get("language")
        if change is None:
            return words
        if "swap" in change.values:
            words = language.swapped(task, int(change.values["swap"]))
        if "paraphrase" in change.values:
            words = language.paraphrase(words, int(change.values["paraphrase"]))
        return words

    def goal(self, task: Task) -> list[list[str]] | None:
        """The goal's predicates in place of the task's; None for the task's own."""
        other = self._other_goal(task)
        return None if other is None else other.predicates

    def _other_goal(self, task: Task) -> SceneGoal | None:
        change = self.changes.get("goal")
        return None if change is None else other_goal(task, int(change.values["other"]))

    def check_start(self, init_state: int | None) -> None:
        """ValueError when a stored init state would undo the perturbation."""
        moved = sorted({"layout", "position"} & set(self.changes))
        if moved and init_state is not None:
            raise ValueError(f"{moved[0]} needs a scene drawn from the seed, got init_state {init_state}: leave it out")

    @contextlib.contextmanager
    def during_reset(self, inner: Any) -> Iterator[None]:
        """Regions and the arm's initial joints, changed while the scene is drawn."""
        with contextlib.ExitStack() as stack:
            if "layout" in self.changes:
                stack.enter_context(layout.shifted(inner, self.changes["layout"], self.seed))
            if "position" in self.changes:
                stack.enter_context(layout.exchanged(inner, self.changes["position"]))
            if "robot" in self.changes:
                stack.enter_context(self._other_joints(inner))
            yield

    @contextlib.contextmanager
    def _other_joints(self, inner: Any) -> Iterator[None]:
        config = inner.robot_configs[0]
        before = config.get("initial_qpos")
        config["initial_qpos"] = self._joints(inner)
        try:
            yield
        finally:
            config["initial_qpos"] = before

    def _joints(self, inner: Any) -> np.ndarray:
        change = self.changes["robot"]
        direction = change.rng(self.seed).standard_normal(7)
        start = np.asarray(inner.robots[0].robot_model.init_qpos, dtype=np.float64)
        return start + change.values.get("r", 0.0) * direction / np.linalg.norm(direction)

    def arm_after_state(self, inner: Any) -> np.ndarray | None:
        """Joint positions to set after a stored init state put the arm back; None when it should stay there."""
        change = self.changes.get("robot")
        return None if change is None or change.values.get("compat", 0) >= 0.5 else self._joints(inner)

    def edit_scene(self, inner: Any) -> None:
        """Camera, light and colours of the new model."""
        model = inner.sim.model._model
        if "camera" in self.changes:
            scene.camera(model, self.changes["camera"], self.external)
        if "light" in self.changes:
            scene.light(model, self.changes["light"], self.seed)
        if "background" in self.changes:
            scene.background(model, self.changes["background"])
        if "object" in self.changes:
            scene.recolour(inner, self.changes["object"], _object_of_interest(inner))

    def image(self, image: np.ndarray, step: int, camera: int) -> np.ndarray:
        """One rendered image with its noise: a new draw every step and camera, the same in every repetition."""
        change = self.changes.get("noise")
        if change is None:
            return image
        for kind, severity in change.values.items():
            rng = np.random.default_rng([self.seed % 2**32, step, camera, *kind.encode()])
            image = images.corrupt(image, kind, severity, rng)
        return image


def _object_of_interest(inner: Any) -> str:
    names = [name for name in getattr(inner, "obj_of_interest", []) if name in inner.objects_dict]
    if not names:
        raise ValueError("object:recolour needs a LIBERO task with an object of interest: use another task")
    return inner.objects_dict[names[0]].root_body


__all__ = ["Perturbation", "Perturbed"]
