"""`world_model=persist_state`: the same method on the arm's state alone, small enough for one core and many seeds.

Latents are states: position, orientation as six numbers, fingers. Actions are the motions since the frame before: poses
would give the answer away.

Shapes: B samples, F frames, K frames of a chunk, S numbers of a state, E width of a token, W width of the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from embodied.schema import STATE, STATE_DIM
from embodied.transforms import Normalize, RotationTo6D, Transform
from world_models.persist.rewards import GroupRewards, group_rewards
from world_models.persist.world import ActionEncoder, PersistWorld, Settings

STATE_6D = STATE_DIM + 3
VIEWS = {"position": slice(0, 3), "rotation": slice(3, 9), "fingers": slice(9, 11)}
LEVELS = 16  # sines of the noise level


@dataclass
class StateConfig:
    """Sizes of the network."""

    width: int = 256
    depth: int = 3


class StateSpace(nn.Module):
    """Normalised states, as they are."""

    shape = (STATE_6D,)
    keys = [STATE]  # noqa: RUF012

    def fit(self, batch: Mapping[str, Any]) -> None:
        """Nothing to fit: the pipeline has normalised the states."""

    def encode(self, batch: Mapping[str, Any]) -> Tensor:
        return batch[STATE].float()

    def decode(self, latents: Tensor) -> dict[str, Tensor]:
        return {STATE: latents}


class StateNetwork(nn.Module):
    """Residual layers over everything at once: all frames, the current state, all tokens, the noise level."""

    def __init__(self, config: StateConfig, frames: int, chunk: int, token: int) -> None:
        super().__init__()
        self.chunk = chunk
        self.enter = nn.Linear((frames + 1) * STATE_6D + frames * token + 2 * LEVELS, config.width)
        self.norms = nn.ModuleList([nn.LayerNorm(config.width) for _ in range(config.depth)])
        self.wide = nn.ModuleList([nn.Linear(config.width, 2 * config.width) for _ in range(config.depth)])
        self.back = nn.ModuleList([nn.Linear(2 * config.width, config.width) for _ in range(config.depth)])
        self.leave = nn.Linear(config.width, chunk * STATE_6D)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, frames: Tensor, current: Tensor, level_B: Tensor, tokens: Tensor) -> Tensor:
        """(B, F, S); zeros for the frames that are given."""
        phase = level_B[:, None] * 2.0 ** torch.linspace(-2, 5, LEVELS, device=level_B.device)
        x = self.enter(torch.cat([frames.flatten(1), current, tokens.flatten(1), phase.sin(), phase.cos()], dim=1))
        for norm, wide, back in zip(self.norms, self.wide, self.back, strict=True):
            x = x + back(nn.functional.silu(wide(norm(x))))
        out = self.leave(x).unflatten(1, (self.chunk, STATE_6D))
        return torch.cat([out.new_zeros(len(out), frames.shape[1] - self.chunk, STATE_6D), out], dim=1)


class StateScore:
    """Minus the log of the mean square error over the clip, of position, rotation and fingers apart."""

    def __call__(self, frames: Tensor, future: Tensor, weights: Mapping[str, float]) -> GroupRewards:
        square = (frames - future[:, None]).square().mean(2)
        views = [-(square[..., view].mean(-1) + 1e-8).log() for view in VIEWS.values()]
        return group_rewards({"neg_log_error": torch.stack(views, dim=-1)}, weights)


class PersistState(PersistWorld):
    """A TrainableModel; see configs/world_model/persist_state.yaml."""

    def __init__(self, state: Settings = None, lora: Settings = None, **settings: Settings) -> None:
        super().__init__(**{**settings, "world": settings.get("world") or {"actions": "motions"}})
        if self.world.actions != "motions":
            raise ValueError(
                f"persist_state needs world.actions=motions, got {self.world.actions}: poses are its answer"
            )
        self.state = StateConfig(**(state or {}))
        self.space = StateSpace()
        width = self.world.action_width
        self.action_encoder = ActionEncoder(self.frame_actions.width, width, relative=False)
        self.network = StateNetwork(self.state, self.memory.frames, self.memory.chunk, width)
        self._finish(lora)

    def config(self) -> dict[str, Any]:
        return {"state": asdict(self.state), **self.base_config()}

    def transforms(self) -> list[Transform]:
        return [Normalize(STATE, "quantile", dims=(0, 1, 2, 6, 7)), RotationTo6D(STATE), self.frame_actions]

    def make_score(self) -> StateScore:
        return StateScore()
