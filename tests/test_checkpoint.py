from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import embodied.checkpoint as checkpoint
from embodied.checkpoint import export_checkpoint, list_steps, load_checkpoint, load_policy, save_checkpoint
from embodied.cli.export import run as export
from embodied.protocols import Policy
from embodied.schema import ACTION, IMAGE_KEYS, STATE, TASK
from embodied.transforms import Pipeline
from policies.bc.model import BehaviourCloning
from world_models.persist.state import PersistState

SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 8, "keypoints": 4, "chunk": 6, "image_size": 32}
RNG = np.random.default_rng(0)
STATISTICS = {
    key: {"mean": RNG.normal(size=n).tolist(), "std": RNG.uniform(0.5, 2, n).tolist()}
    for key, n in ((STATE, 8), (ACTION, 7))
}


@pytest.fixture(scope="module")
def model() -> BehaviourCloning:
    torch.manual_seed(0)
    return BehaviourCloning(**SMALL)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, model: BehaviourCloning) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "policy"
    save_checkpoint(folder, model, Pipeline(model.transforms(), STATISTICS), info={"step": 3})
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(original, tmp_path / "policy")


def change(folder: Path, **entries: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["model"] |= entries.pop("model", {})
    path.write_text(json.dumps(config | entries))


def test_round_trip(original, model):
    loaded = load_checkpoint(original)
    assert loaded.config["info"] == {"step": 3}
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[key])
    assert loaded.pipeline.to_json() == Pipeline(model.transforms(), STATISTICS).to_json()
    assert sorted(p.name for p in original.iterdir()) == [
        "config.json",
        "model.safetensors",
        "pipeline.json",
        "statistics.json",
    ]


def test_policy_acts_from_images_and_words(original):
    pytest.importorskip("timm")
    policy = load_policy(original, replan=4)
    assert isinstance(policy, Policy)
    assert (policy.spec.chunk, policy.spec.replan, policy.spec.image_keys) == (6, 4, IMAGE_KEYS)
    images = {key: RNG.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8) for key in IMAGE_KEYS}
    observation = {**images, STATE: RNG.normal(size=(2, 8)).astype(np.float32), TASK: ["put the bowl on the stove"] * 2}
    actions = policy.act(observation, [0, 1])
    assert actions.shape == (2, 6, 7)
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1
    alone = policy.act({k: v[1:] for k, v in observation.items()}, [1])
    np.testing.assert_allclose(alone[0], actions[1], atol=1e-5)
    other = policy.act(observation | {TASK: ["turn on the stove"] * 2}, [0, 1])
    assert not np.allclose(other, actions)


def test_an_exported_checkpoint_has_rounded_parameters_and_no_training_state(original, tmp_path, model):
    run = tmp_path / "run/checkpoints/step-0000003"
    save_checkpoint(run, model, Pipeline(model.transforms(), STATISTICS), info={"step": 3}, extra={"training/x": b"1"})
    assert export_checkpoint(tmp_path / "run", tmp_path / "half", torch.bfloat16) == run
    assert sorted(path.name for path in (tmp_path / "half").iterdir()) == sorted(p.name for p in original.iterdir())
    size = (tmp_path / "half/model.safetensors").stat().st_size
    assert size < 2.2 * sum(p.numel() for p in model.parameters()) + 9000
    loaded = load_checkpoint(tmp_path / "half")
    assert loaded.config["info"] == {"step": 3}
    for key, value in loaded.model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.state_dict()[key].to(torch.bfloat16).float())
    with pytest.raises(ValueError, match="exists already"):
        export_checkpoint(original, tmp_path / "half", torch.bfloat16)


def test_export_leaves_buffers_as_they_are(tmp_path):
    model = PersistState(state={"width": 16, "depth": 1})
    model.scale.fill_(1 / 3)
    save_checkpoint(tmp_path / "world", model, Pipeline([], {}))
    export_checkpoint(tmp_path / "world", tmp_path / "half", torch.bfloat16)
    assert torch.equal(load_checkpoint(tmp_path / "half").model.scale, model.scale)


def test_export_changes_settings_that_exist(tmp_path, capsys):
    model = PersistState(state={"width": 16, "depth": 1}, edm={"steps": 9})
    save_checkpoint(tmp_path / "world", model, Pipeline([], {}))
    words = [f"path={tmp_path / 'world'}", f"out={tmp_path / 'fast'}", "dtype=fp32"]
    assert export([*words, "change={edm: {steps: 3}}"]) == 0
    fast = load_checkpoint(tmp_path / "fast").model
    assert (fast.edm.steps, fast.edm.sigma_max, fast.state.width) == (3, model.edm.sigma_max, 16)
    assert torch.equal(fast.network.enter.weight, model.network.enter.weight)
    with pytest.raises(ValueError, match="got 'stebs'"):
        export([words[0], f"out={tmp_path / 'other'}", "change={edm: {stebs: 3}}"])
    assert not (tmp_path / "other").exists()


def test_a_setting_newer_than_the_checkpoint_can_be_changed(tmp_path):
    save_checkpoint(tmp_path / "old", PersistState(state={"width": 16, "depth": 1}), Pipeline([], {}))
    path = tmp_path / "old/config.json"
    config = json.loads(path.read_text())
    del config["model"]["world"]["current_noise"]
    path.write_text(json.dumps(config))
    assert load_checkpoint(tmp_path / "old").model.world.current_noise == 0
    export_checkpoint(tmp_path / "old", tmp_path / "new", torch.float32, {"world": {"current_noise": 0.5}})
    model = load_checkpoint(tmp_path / "new").model
    assert (model.world.current_noise, model.state.width) == (0.5, 16)


def test_digest_names_weights_and_configuration(original, folder):
    first = load_checkpoint(original).digest
    assert load_checkpoint(folder).digest == first
    state = load_file(folder / "model.safetensors")
    state["place"][0, 0, 0] += 1
    save_file(state, folder / "model.safetensors")
    assert load_checkpoint(folder).digest != first


def test_a_crash_while_writing_leaves_the_old_one(folder, model, monkeypatch):
    before = load_checkpoint(folder).digest

    def crash(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(checkpoint, "write_json", crash)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(folder, model, Pipeline())
    assert load_checkpoint(folder).digest == before
    assert list_steps(folder.parent) == []


def test_newest_step_of_a_run_is_found(original, tmp_path):
    for step in (2, 10):
        shutil.copytree(original, tmp_path / f"checkpoints/step-{step:07d}")
    shutil.copytree(original, tmp_path / "checkpoints/.step-0000011.77.tmp")
    assert [path.name for path in list_steps(tmp_path / "checkpoints")] == ["step-0000002", "step-0000010"]
    assert checkpoint.resolve_checkpoint(tmp_path).name == "step-0000010"
    with pytest.raises(ValueError, match="should be a checkpoint folder"):
        checkpoint.resolve_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model": {"_target_": "os.system"}}, "refused"),
        ({"model": {"_target_": "subprocess.check_output", "args": ["true"]}}, "refused"),
        ({"model": {"_target_": "embodied.checkpoint.load_policy"}}, "should be a torch module"),
        ({"model": {"_target_": None}}, "refused"),
        ({"model": {"surprise": 1}}, "wrong arguments"),
        ({"model": {"width": 10**9}}, "width should be an integer in"),
        ({"model": {"width": 2048, "depth": 48}}, "weights differ"),
        ({"model": {"depth": 2.5}}, "depth should be an integer"),
        ({"model": {"vision": "../../etc/passwd"}}, "frozen weights should be one of"),
        ({"frozen": []}, "should name frozen weights"),
        ({"frozen": "none"}, "should hold an object"),
        ({"format": "other"}, "should be embodied-checkpoint version 1"),
        ({"version": 99}, "version 1"),
    ],
)
def test_hostile_configs_are_refused(folder, entries, message):
    change(folder, **entries)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_other_frozen_weights_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    files = config["frozen"][0]["files"]
    config["frozen"][0]["files"] = dict.fromkeys(files, "0" * 64)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="should name frozen weights"):
        load_checkpoint(folder)


def test_a_pipeline_cannot_name_foreign_code(folder):
    (folder / "pipeline.json").write_text(json.dumps([{"_target_": "builtins.eval", "source": "1/0"}]))
    with pytest.raises(ValueError, match="refused"):
        load_checkpoint(folder)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.write_text, (self.path, "unpickled"))


def test_pickles_are_never_read(folder, tmp_path):
    bomb = pickle.dumps(Bomb(tmp_path / "fired"))
    for name in ("model.pkl", "pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(bomb)
    load_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(bomb)
    with pytest.raises(ValueError, match="should be a whole safetensors file"):
        load_checkpoint(folder)
    assert not (tmp_path / "fired").exists()


def test_files_that_lead_out_of_the_folder_are_refused(folder, tmp_path):
    for name in ("model.safetensors", "pipeline.json"):
        outside = tmp_path / f"outside-{name}"
        (folder / name).rename(outside)
        (folder / name).symlink_to(outside)
        with pytest.raises(ValueError, match="leads to"):
            load_checkpoint(folder)
        (folder / name).unlink()
        outside.rename(folder / name)


def rewrite_header(path: Path, edit: object) -> None:
    content = path.read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    edit(header)  # type: ignore[operator]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + size :])


@pytest.mark.parametrize(
    "edit",
    [
        lambda header: header["place"].update(shape=[1, 70, 16]),
        lambda header: header["place"].update(shape=[2**40, 2**40]),
        lambda header: header["place"].update(data_offsets=[0, 2**50]),
        lambda header: header.update(extra=header["place"]),
    ],
)
def test_lying_headers_are_refused(folder, edit):
    rewrite_header(folder / "model.safetensors", edit)
    with pytest.raises(ValueError, match="should be a whole safetensors file"):
        load_checkpoint(folder)


def test_weights_of_another_model_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    save_file({**state, "place": torch.zeros(1, 9, 16)}, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"first place: expected \(1, 7, 16\), got \(1, 9, 16\)"):
        load_checkpoint(folder)
    save_file({key: value for key, value in state.items() if key != "place"}, folder / "model.safetensors")
    with pytest.raises(ValueError, match="got none"):
        load_checkpoint(folder)


def test_truncated_missing_and_oversized_files_are_refused(folder, monkeypatch):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-10])
    with pytest.raises(ValueError, match="should be a whole safetensors file"):
        load_checkpoint(folder)
    (folder / "model.safetensors").write_bytes(content)
    statistics = (folder / "statistics.json").read_text()
    (folder / "statistics.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="should be JSON"):
        load_checkpoint(folder)
    (folder / "statistics.json").write_text("{}")
    with pytest.raises(ValueError, match="needs statistics"):
        load_checkpoint(folder)
    (folder / "statistics.json").write_text(statistics)
    monkeypatch.setattr(checkpoint, "MAX_JSON_BYTES", 100)
    with pytest.raises(ValueError, match="at most 100 bytes"):
        load_checkpoint(folder)
    monkeypatch.undo()
    (folder / "pipeline.json").unlink()
    with pytest.raises(ValueError, match=r"lacks pipeline\.json"):
        load_checkpoint(folder)
