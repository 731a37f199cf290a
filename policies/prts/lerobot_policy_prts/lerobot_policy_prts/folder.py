"""The policy folder: a checkpoint of embodied-stack whose config.json and processors also are LeRobot's.

`embodied evaluate policy=checkpoint policy.path=FOLDER` and `lerobot-eval --policy.path=FOLDER` read the same files.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embodied.checkpoint import (
    CONFIG,
    MODEL_FILE,
    PIPELINE,
    STATISTICS,
    inside,
    load_checkpoint,
    read_json,
    resolve_checkpoint,
    save_checkpoint,
)
from embodied.io import write_atomic, write_json
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, STATE_DIM
from embodied.transforms import Pipeline

if TYPE_CHECKING:
    from lerobot_policy_prts.configuration_prts import PRTSConfig

FILES = (CONFIG, MODEL_FILE, PIPELINE, STATISTICS)


def write_folder(folder: Path, model: Any, pipeline: Pipeline, config: PRTSConfig, weights: Any = None) -> None:
    """Adds the checkpoint's four files to a folder that may hold others. weights: instead of the model's own."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        source = Path(temporary) / "checkpoint"
        save_checkpoint(source, model, pipeline, weights=weights, info=config.info)
        _copy(source, folder, config)


def export(checkpoint: Path, folder: Path, **settings: Any) -> Path:
    """A checkpoint (or a training run's newest) as a LeRobot policy folder, weights copied byte for byte.

    settings: fields of PRTSConfig, such as n_action_steps or live_images. ValueError for an unsound checkpoint, a model
    that is not PRTS, or a folder that exists.
    """
    from lerobot_policy_prts.configuration_prts import PRTSConfig
    from lerobot_policy_prts.processor_prts import make_prts_pre_post_processors
    from policies.prts.model import PRTS

    source = resolve_checkpoint(checkpoint)
    model = load_checkpoint(source).model
    if not isinstance(model, PRTS):
        raise ValueError(  # noqa: TRY004 - a wrong file, not a wrong call
            f"{source} should hold a PRTS model, got {type(model).__name__}: only PRTS has this plugin"
        )
    if folder.exists():
        raise ValueError(f"{folder} exists: choose another folder")
    entries = read_json(source, CONFIG)
    own = {key: entries[key] for key in ("model", "frozen", "info")}
    config = PRTSConfig(**own, **_features(model.image_size), device="cpu", push_to_hub=False, **settings)
    folder.mkdir(parents=True)
    _copy(source, folder, config)
    for processor in make_prts_pre_post_processors(config):
        processor.save_pretrained(folder)
    return folder


def _copy(source: Path, folder: Path, config: PRTSConfig) -> None:
    """The four files, config.json with LeRobot's keys as well; it is written last."""
    import draccus
    from lerobot.configs import PreTrainedConfig

    for name in (MODEL_FILE, PIPELINE, STATISTICS):
        write_atomic(folder / name, inside(source, name).read_bytes())
    ours = json.loads(inside(source, CONFIG).read_bytes())
    write_json(folder / CONFIG, {**draccus.encode(config, PreTrainedConfig), **ours})


def _features(size: int) -> dict[str, Any]:
    from lerobot.configs import FeatureType, PolicyFeature

    images = {key: PolicyFeature(FeatureType.VISUAL, (3, size, size)) for key in IMAGE_KEYS}
    return {
        "input_features": {**images, STATE: PolicyFeature(FeatureType.STATE, (STATE_DIM,))},
        "output_features": {ACTION: PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
    }
