"""The value as a monitored quantity: PRTS is its own value function, any other policy may be given one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from loop_parts import CountingPolicy, Rig

from embodied.deploy.config import NodeConfig, make_inference
from embodied.deploy.inference import ThreadInference, own_value
from embodied.protocols import Episode
from embodied.registry import registry
from embodied.schema import ACTION, IMAGE, STATE
from embodied.transforms import Pipeline
from policies.prts.nano import PRTSNano
from policies.prts.policy import PRTSPolicy


class Judging(CountingPolicy):
    """A policy that is its own value function: what it is told to say, in order."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def value(self, observation: dict[str, Any], actions: np.ndarray, instructions: Any) -> np.ndarray:
        assert actions.shape == (1, self.spec.chunk, 2)
        return np.array([next(self.values)])


def rig_of(policy: Any, **watchdog: float) -> Rig:
    return Rig("async", policy=policy, value=own_value(policy, True), watchdog=watchdog)


def test_a_policy_that_judges_itself_holds_when_its_value_falls() -> None:
    rig = rig_of(Judging([-1.0, -9.0, -9.0, -1.0, *[-9.0] * 9]), value_threshold=-5.0, value_patience=3)
    ticks = rig.steps(15)
    held = next(tick for tick in ticks if tick.state.value == "held")
    assert held.answered == 6, "two low values and a good one are forgiven, three in a row are not"
    assert rig.loop.report()["value"] == -9.0
    assert held.troubles[0].kind == "value"


def test_nan_is_low() -> None:
    rig = rig_of(Judging([float("nan")] * 9), value_threshold=-5.0, value_patience=2)
    assert rig.steps(8)[-1].state.value == "held"


def test_a_threshold_without_a_value_function_is_refused() -> None:
    policy = CountingPolicy()
    assert own_value(policy, False) is None
    with pytest.raises(ValueError, match="policy counting is none"):
        own_value(policy, True)


def test_prts_is_asked_for_its_value_by_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The node's config alone: a threshold in the contract, and a PRTS policy."""
    monkeypatch.setattr(registry(), "resolve", lambda path: small_prts)
    config = NodeConfig(policy={"_target_": "small"})
    from loop_parts import contract

    inference = make_inference(config, contract(watchdog={"value_threshold": -100.0}))
    assert isinstance(inference, ThreadInference)
    assert inference.value is inference.policy
    from embodied.deploy.inference import Request, infer

    model = inference.policy.model  # type: ignore[attr-defined]
    maps = {name: np.zeros((1, *shape), np.float32) for name, shape in model.features.columns.items()}
    observation = {**maps, STATE: np.zeros((1, 8), np.float32), "task": ["open it"]}
    request = Request(0, 0, observation, reset=Episode("robot", 0, 0))
    chunk, value, _ = infer(inference.policy, inference.value, request)
    assert chunk.shape == (4, 7)
    assert value is not None
    assert value == pytest.approx(float(inference.policy.value(observation, chunk[None], ["open it"])[0]))  # type: ignore[attr-defined]
    inference.close()


def small_prts() -> PRTSPolicy:
    """As small as it goes, with made-up words and image maps in place of images: no weights are loaded."""
    torch.manual_seed(0)
    backbone = {
        "width": 32, "layers": 2, "heads": 2, "key_value_heads": 1, "mlp": 48, "grid": [2, 2], "keypoints": 4,
        "hidden": 8,
    }  # fmt: skip
    crl = {"width": 32, "layers": 2, "features": 16, "last_layer_init": 0.1, "gamma": 0.9}
    flow = {"width": 32, "layers": 2, "heads": 2, "steps": 3}
    model = PRTSNano(backbone, {"chunk": 4, "fast_vocab": 128, "crl": crl, "flow": flow, "head": "flow"})
    walk = np.tanh(0.5 * np.random.default_rng(0).normal(size=(64, 4, 7)).cumsum(1)).astype(np.float32)
    model.fit_tokenizer(walk)
    from embodied.language import WIDTH

    model.language.table["open it"] = torch.randn(4, WIDTH).half()
    statistics = {
        STATE: {"mean": [0.1] * 8, "std": [0.5] * 8},
        ACTION: {"min": [-0.5] * 7, "max": [1.0] * 7},
    }
    assert IMAGE in model.image_keys
    return PRTSPolicy(model, Pipeline(model.transforms(), statistics), "PRTSNano", "0", 2)
