"""What the reference policies share: a digest of their settings, and how they describe themselves."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from embodied.protocols import PolicySpec
from embodied.schema import ACTION_DIM


def settings_digest(name: str, settings: dict[str, Any]) -> str:
    """sha256 (hex) of a policy's name and settings; equal digests, equal behaviour."""
    return hashlib.sha256(json.dumps([name, settings], sort_keys=True).encode()).hexdigest()


def blind_spec(name: str, chunk: int, settings: dict[str, Any], action_dim: int = ACTION_DIM) -> PolicySpec:
    """The spec of a policy that looks at no image and executes whole chunks. ValueError for a chunk below 1."""
    if chunk < 1:
        raise ValueError(f"chunk should be at least 1, got {chunk}")
    return PolicySpec(name, settings_digest(name, {"chunk": chunk, **settings}), chunk, chunk, action_dim)
