"""Small LeRobot policies, made once: a PRTS trained by lerobot-train, an exported PRTS, a random ACT.

Importing lerobot takes half a minute of CPU time, so everything runs in this one process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embodied.checkpoint import save_checkpoint
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from embodied.transforms import Pipeline
from policies.prts.nano import PRTSNano

BACKBONE = {
    "width": 32,
    "layers": 1,
    "heads": 2,
    "key_value_heads": 1,
    "mlp": 48,
    "grid": [2, 2],
    "keypoints": 4,
    "hidden": 8,
}
METHOD = {"chunk": 4, "fast_vocab": 128}
CRL = {"width": 32, "layers": 2, "features": 16}
FLOW = {"width": 32, "layers": 2, "heads": 2, "steps": 2, "draws": 1, "temperature": 1.0}
STATISTICS = {
    STATE: {"mean": [0.1] * 8, "std": [0.5] * 8},
    ACTION: {"min": [-0.5] * 7, "max": [1.0] * 7},
}
TEXTS = ["pick up the cup", "open it"]


def overrides() -> str:
    """The tiny sizes as `--policy.overrides`."""
    parts = {"backbone": BACKBONE, "method": METHOD, "method.crl": CRL, "method.flow": FLOW}
    return json.dumps([f"policy.{part}.{k}={v}" for part, sizes in parts.items() for k, v in sizes.items()])


def observe(count: int, size: int = 128, seed: int = 0) -> dict:
    """A batched observation in the item format."""
    rng = np.random.default_rng(seed)
    images = {key: rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8) for key in IMAGE_KEYS}
    state = rng.normal(size=(count, 8)).astype(np.float32)
    return {**images, STATE: state, TASK: [TEXTS[i % 2] for i in range(count)]}


def lerobot_batch(observation: dict) -> dict:
    """The same observation as LeRobot's LIBERO environment gives it: float planes, mirrored left to right."""
    batch = {TASK: observation[TASK], STATE: torch.from_numpy(observation[STATE])}
    for key in IMAGE_KEYS:
        planes = torch.from_numpy(np.ascontiguousarray(observation[key][:, :, ::-1])).permute(0, 3, 1, 2)
        batch[key] = planes.float() / 255
    return batch


def run_main(module: str, arguments: list[str]) -> None:
    """A console script of LeRobot, in this process."""
    import importlib

    before = sys.argv
    sys.argv = [module, *arguments]
    try:
        importlib.import_module(f"lerobot.scripts.{module}").main()
    finally:
        sys.argv = before
        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def lerobot() -> SimpleNamespace:
    """Skips without LeRobot or the plugin."""
    pytest.importorskip("lerobot")
    pytest.importorskip("lerobot_policy_prts", reason="the plugin is not installed: make install")
    return SimpleNamespace(observe=observe, batch=lerobot_batch, run=run_main, statistics=STATISTICS)


@pytest.fixture(scope="session")
def trained(lerobot, tmp_path_factory) -> Path:
    """The output folder of two steps of lerobot-train on two episodes."""
    from embodied.paths import data_folder

    data = data_folder("libero_demos")
    if data is None:
        pytest.skip("libero_demos is not under EMBODIED_DATA")
    out = tmp_path_factory.mktemp("lerobot") / "run"
    policy = ["--policy.type=prts", "--policy.device=cpu", "--policy.push_to_hub=false"]
    sizes = [f"--policy.overrides={overrides()}", "--policy.n_action_steps=2"]
    source = ["--dataset.repo_id=local/libero_demos", f"--dataset.root={data}", "--dataset.episodes=[0,1]"]
    length = ["--steps=2", "--save_freq=1", "--batch_size=4", "--num_workers=0", "--log_freq=1", "--env_eval_freq=0"]
    lerobot.run("lerobot_train", [*policy, *sizes, *source, *length, f"--output_dir={out}"])
    return out


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """`checkpoint(head)`: a folder of embodied.checkpoint with a random tiny PRTSNano, made once a head."""
    made: dict[str, Path] = {}

    def make(head: str) -> Path:
        if head not in made:
            torch.manual_seed(0)
            model = PRTSNano(BACKBONE, {**METHOD, "crl": CRL, "flow": FLOW, "head": head})
            walk = np.random.default_rng(0).normal(size=(64, 4, 7)).cumsum(1)
            model.fit_tokenizer(np.tanh(0.5 * walk).astype(np.float32))
            for parameter in model.expert.parameters():
                torch.nn.init.normal_(parameter, std=0.1)
            made[head] = tmp_path_factory.mktemp("prts") / head
            save_checkpoint(made[head], model, Pipeline(model.transforms(), STATISTICS), info={"note": head})
        return made[head]

    return make


@pytest.fixture(scope="session")
def exported(lerobot, checkpoint, tmp_path_factory):
    """`exported(head)`: the checkpoint of that head as a LeRobot folder."""
    from lerobot_policy_prts.folder import export

    made: dict[str, Path] = {}

    def make(head: str) -> Path:
        if head not in made:
            made[head] = export(checkpoint(head), tmp_path_factory.mktemp("exported") / head, n_action_steps=3)
        return made[head]

    return make
