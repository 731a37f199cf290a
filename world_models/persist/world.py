"""The world model: frames known and actions in, the next chunk of frames out, by diffusion; how it is trained first.

What is the same at every size is here: conditioning, preconditioning, teacher forcing. A kind (`nano.py`, `svd.py`,
`state.py`) brings `space` (what the model's latents are), `network` and how an action becomes a token.

Shapes: B samples, H context frames (history and current), K frames of a chunk, F = H + K, L axes of a latent,
A numbers of a frame's action, E width of a token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from embodied.data.windows import Relabel, WindowConfig
from embodied.schema import ACTION, STATE
from embodied.transforms import Transform
from world_models.persist.actions import FRAME_ACTION, FrameActions, FramePoses
from world_models.persist.adapters import LoraSettings, Policies
from world_models.persist.edm import EDMConfig, denoise, draw_sigma, expand, loss_weight
from world_models.persist.memory import MemoryConfig
from world_models.persist.settings import PosttrainConfig

STAGES = ("base", "posttrain")
FIT_SAMPLES = 96  # windows that the latents' scales are fitted on


class Space(Protocol):
    """What the latents are. `keys`: what a batch must hold."""

    shape: tuple[int, ...]
    keys: list[str]

    def fit(self, batch: Mapping[str, Any]) -> None: ...

    def encode(self, batch: Mapping[str, Any]) -> Tensor: ...

    def decode(self, latents: Tensor) -> dict[str, Tensor]: ...


@dataclass
class WorldConfig:
    """What is the same at every size.

    actions: observed or commanded poses, or the motions since the frame before. action_key: the action column.
    residual: predict the change since the current frame, scaled to a mean square of 1, instead of the frame.
    history_noise: deviation of the noise level of each history frame in training; current_noise: of the current frame,
    in units of `scale`, so that an imagined frame's errors are corrected and not carried on. history_dropout: share of
    samples whose history is the current frame over and over; condition_dropout: of samples without actions, and as many
    without the current frame. guidance: classifier-free weight at a chunk's first and last frame, 1 turns it off.
    """

    actions: str = "commanded"
    action_key: str = ACTION
    action_width: int = 128
    residual: bool = True
    history_noise: float = 0.3
    current_noise: float = 0.0
    history_dropout: float = 0.15
    condition_dropout: float = 0.05
    guidance: list[float] = field(default_factory=lambda: [1.0, 1.0])


@dataclass(frozen=True)
class Condition:
    """c: history and current frame as the network takes them (B, H, *L), current frame (B, *L), tokens (B, F, E)."""

    past: Tensor
    current: Tensor
    tokens: Tensor

    def repeat(self, count: int) -> Condition:
        """Each row `count` times, without computing or copying anything again before it is needed."""
        return Condition(*(_repeat(x, count) for x in (self.past, self.current, self.tokens)))

    def without(self, actions: Tensor | None = None, image: Tensor | None = None) -> Condition:
        """Masks (B,) True where the actions or the current frame are dropped."""
        result = self
        if actions is not None:
            result = replace(result, tokens=result.tokens.masked_fill(expand(actions, result.tokens), 0.0))
        if image is not None:
            result = replace(result, current=result.current.masked_fill(expand(image, result.current), 0.0))
        return result


def _repeat(x: Tensor, count: int) -> Tensor:
    return x[:, None].expand(len(x), count, *x.shape[1:]).flatten(0, 1)


class ActionEncoder(nn.Module):
    """Actions of frames (B, F, A) -> tokens (B, F, E). relative: also reads the difference to the current frame's."""

    GAIN = 4.0

    def __init__(self, inside: int, width: int, relative: bool) -> None:
        super().__init__()
        self.relative = relative
        self.net = nn.Sequential(
            nn.Linear(inside * (2 if relative else 1), width), nn.SiLU(), nn.Linear(width, width), nn.LayerNorm(width)
        )

    def forward(self, actions_BFA: Tensor, current: int) -> Tensor:
        if self.relative:
            difference = actions_BFA - actions_BFA[:, current : current + 1]
            actions_BFA = torch.cat([actions_BFA, self.GAIN * difference], dim=-1)
        return self.net(actions_BFA)


Settings = dict[str, Any] | None


class PersistWorld(nn.Module):
    """A TrainableModel. Subclasses set `space` and `network` and call `_finish`.

    world, memory, edm, posttrain: settings by name, of WorldConfig, MemoryConfig, EDMConfig and PosttrainConfig.
    """

    stages = STAGES
    features, language = None, None
    frozen: tuple[str, ...] = ()
    space: Any
    network: nn.Module
    action_encoder: Any
    other_encoders: Any
    config: Callable[[], dict[str, Any]]  # of each kind
    scale: Tensor
    calls: Tensor

    def __init__(
        self,
        world: Settings = None,
        memory: Settings = None,
        edm: Settings = None,
        posttrain: Settings = None,
    ) -> None:
        super().__init__()
        self.world, self.memory = WorldConfig(**(world or {})), MemoryConfig(**(memory or {}))
        self.edm, self.posttrain = EDMConfig(**(edm or {})), PosttrainConfig(**(posttrain or {}))
        self.stage = "base"
        self.lora: LoraSettings | None = None
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))  # training steps of post-training so far
        self.policies: Policies | None = None
        self._windows: Any = None
        self._trainer: Any = None

    def _finish(self, lora: Settings) -> None:
        self.register_buffer("scale", torch.ones(self.space.shape[0], *[1] * (len(self.space.shape) - 1)))
        if lora is not None:
            self.add_adapters(LoraSettings(**lora))

    # A TrainableModel ---------------------------------------------------------------------------------------------

    def base_config(self) -> dict[str, Any]:
        """What every kind's `config()` holds."""
        return {
            "world": asdict(self.world),
            "memory": asdict(self.memory),
            "edm": asdict(self.edm),
            "posttrain": asdict(self.posttrain),
            "lora": None if self.lora is None else asdict(self.lora),
        }

    @property
    def frame_actions(self) -> FramePoses | FrameActions:
        if self.world.actions == "motions":
            return FrameActions(self.world.action_key, self.memory.skip)
        return FramePoses(STATE, self.world.actions, self.world.action_key)

    def transforms(self) -> list[Transform]:
        return [self.frame_actions]

    def offsets(self, frames: list[int]) -> dict[str, list[int]]:
        """Key -> frames of the data set to read, for model frames at the given offsets."""
        return {**dict.fromkeys(self.space.keys, frames), **self.frame_actions.offsets(frames, self.memory.skip)}

    def windows(self, stage: str) -> WindowConfig:
        check_stage(stage)
        return WindowConfig(observations=[], actions=[], chunk=1, offsets=self.offsets(self.memory.training_offsets()))

    def relabel(self, stage: str) -> list[Relabel]:
        check_stage(stage)
        return []

    def set_stage(self, stage: str) -> None:
        """base: everything but the space is trained. posttrain: LoRA adapters and the action encoder."""
        check_stage(stage)
        self.stage = stage
        if stage == "posttrain":
            if self.policies is None:
                self.add_adapters(LoraSettings(**self.posttrain.lora))
            assert self.policies is not None
            self.policies.set_trainable(self)
            return
        self.requires_grad_(True)
        space = self.space if isinstance(self.space, nn.Module) else nn.Module()
        space.requires_grad_(False)

    def add_adapters(self, settings: LoraSettings) -> None:
        """Puts LoRA into the network and copies the action encoder: new, old and reference policy."""
        self.lora = settings
        self.register_buffer("watched", torch.zeros(3))  # running share, new and reference teacher-forced loss
        self.policies = Policies(self, settings)

    def merged(self) -> PersistWorld:
        """The world as the new policy sees it, its adapters folded into the weights. ValueError when it has none."""
        if self.policies is None:
            raise ValueError("this world model has no adapters to merge: leave merge out, it is one set of weights")
        world = type(self)(**self.config() | {"lora": None})
        world.load_state_dict(self.policies.merged(self))
        return world

    @torch.no_grad()
    def fit(self, windows: Any, earlier: dict[str, Any] | None) -> None:
        """The latents' scales, from training windows, unless a checkpoint brings them. Keeps the windows for rounds."""
        self._windows = windows
        if earlier is not None:
            return
        rng = np.random.default_rng(0)
        samples = np.sort(rng.choice(len(windows), min(FIT_SAMPLES, len(windows)), replace=False))
        batch = {k: torch.from_numpy(v) for k, v in windows.get_batch(samples).items() if isinstance(v, np.ndarray)}
        self.space.fit(batch)
        latents, now = self.space.encode(batch), self.memory.context - 1
        if self.world.residual:
            change = latents[:, now + 1 :] - latents[:, now : now + 1]
            axes = [axis for axis in range(change.ndim) if axis != 2]
            deviation = change.square().mean(axes).sqrt()
            self.scale.copy_(deviation.clamp(min=0.05 * float(deviation.max())).view_as(self.scale))
        self.fit_more(windows)

    def fit_more(self, windows: Any) -> None:
        """What a kind learns without gradients beside the scales."""

    def training_step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.stage == "posttrain":
            from world_models.persist.posttrain import Posttrainer

            self._trainer = self._trainer or Posttrainer(self, self._windows)
            return self._trainer.step(batch)
        loss_B, error_B = self.teacher_forced(*self.read(batch), training=self.training)
        return loss_B.mean(), {"error": error_B.mean().detach()}

    # The model ----------------------------------------------------------------------------------------------------

    def read(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Latents (B, F, *L), actions (B, F, A), and which of the new frames lie inside the episode (B, K)."""
        latents = self.space.encode(batch)
        pad = batch.get(f"{self.space.keys[0]}_is_pad")
        valid = torch.ones(latents.shape[:2], device=latents.device) if pad is None else (~pad).float()
        return latents, batch[FRAME_ACTION], valid[:, self.memory.context :]

    def condition(self, context: Tensor, actions_BFA: Tensor, training: bool = False) -> Condition:
        """context: latents of history and current frame (B, H, *L)."""
        current = context[:, -1]
        tokens = self.encode_actions(actions_BFA, self.memory.context - 1)
        if not training:
            return Condition(self.to_model(context, current), current, tokens)
        count, device, settings = len(context), context.device, self.world
        frozen = torch.rand(count, device=device) < settings.history_dropout
        context = torch.where(expand(frozen, context), current[:, None].expand_as(context), context)
        past = self._noised(self.to_model(context, current))
        guided = any(weight != 1.0 for weight in settings.guidance)  # then both are left out at once when sampling
        drop = torch.rand(3 if guided else 2, count, device=device) < settings.condition_dropout
        both = drop[2] if guided else torch.zeros_like(drop[0])
        return Condition(past, current, tokens).without(actions=drop[0] | both, image=drop[1] | both)

    def _noised(self, past: Tensor) -> Tensor:
        """History with noise of its own level a frame, rescaled (Ctrl-World); the current frame stays as it is."""
        level = self.world.history_noise * torch.randn(past.shape[:2], device=past.device)
        level[:, -1] = 0.0
        level = level.reshape(*past.shape[:2], *[1] * (past.ndim - 2))
        return (past + level * torch.randn_like(past)) / (1 + level.square()).sqrt()

    def _noised_current(self, current: Tensor) -> Tensor:
        """(B, *L) with white noise of its own level a sample; what is predicted starts from it."""
        level = self.world.current_noise * torch.randn(len(current), device=current.device)
        return current + expand(level, current) * self.scale * torch.randn_like(current)

    def to_model(self, latents: Tensor, current: Tensor) -> Tensor:
        """Latents (B, T, *L) as diffusion sees them."""
        return (latents - current[:, None]) / self.scale if self.world.residual else latents

    def from_model(self, x: Tensor, current: Tensor) -> Tensor:
        return x * self.scale + current[:, None] if self.world.residual else x

    def encode_actions(self, actions_BFA: Tensor, current: int) -> Tensor:
        encoder = self.action_encoder if self.policies is None else self.policies.encoder(self)
        return encoder(actions_BFA, current)

    def denoised(self, x: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """D(x_s; s, c) (B, K, *L)."""
        return denoise(lambda scaled, level_B: self.frame_network(scaled, level_B, condition), x, sigma_B)

    def frame_network(self, scaled: Tensor, level_B: Tensor, condition: Condition) -> Tensor:
        """F of the new frames: history and current frame go in beside them."""
        frames = torch.cat([condition.past.to(scaled.dtype), scaled], dim=1)
        return self.network(frames, condition.current, level_B, condition.tokens)[:, self.memory.context :]

    def guided(self, x: Tensor, sigma_B: Tensor, condition: Condition) -> Tensor:
        """D with classifier-free guidance, whose weight grows over the chunk's frames."""
        first, last = self.world.guidance
        estimate = self.denoised(x, sigma_B, condition)
        if first == last == 1.0:
            return estimate
        every = torch.ones(len(x), dtype=torch.bool, device=x.device)
        plain = self.denoised(x, sigma_B, condition.without(actions=every, image=every))
        weight_K = torch.linspace(first, last, x.shape[1], device=x.device)
        return plain + weight_K.view(1, -1, *[1] * (x.ndim - 2)) * (estimate - plain)

    def teacher_forced(
        self, latents: Tensor, actions_BFA: Tensor, valid_BK: Tensor, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """w(s) |D - x|^2 and |D - x|^2 on the new frames of true clips, each (B,)."""
        context = latents[:, : self.memory.context]
        if training and self.world.current_noise:
            context = torch.cat([context[:, :-1], self._noised_current(context[:, -1])[:, None]], dim=1)
        target = self.to_model(latents[:, self.memory.context :], context[:, -1])
        condition = self.condition(context, actions_BFA, training)
        sigma_B = draw_sigma(self.edm, len(target), target.device)
        noisy = target + expand(sigma_B, target) * torch.randn_like(target)
        error_B = masked_error(self.denoised(noisy, sigma_B, condition) - target, valid_BK)
        return loss_weight(sigma_B) * error_B, error_B

    @contextmanager
    def acting_as(self, policy: str) -> Iterator[None]:
        """new, old or reference; without adapters there is one policy only."""
        if self.policies is None:
            yield
            return
        with self.policies.acting_as(policy):
            yield

    def make_score(self) -> Any:
        """Scores candidates (G, K, T, *L) against the future (G, T, *L): frames, future, weights -> GroupRewards."""
        from world_models.persist.rewards import ImageScore

        return ImageScore(self.space)

    def make_world_model(self, pipeline: Any, name: str, digest: str, device: str = "cpu") -> Any:
        """What evaluation asks a loaded checkpoint for."""
        from world_models.persist.imagination import Imagination

        return Imagination(self, pipeline, name, digest, device)


def masked_error(difference: Tensor, valid_BK: Tensor) -> Tensor:
    """Mean square over the valid frames of (B, K, *L): (B,)."""
    square_BK = difference.float().square().flatten(2).mean(2)
    return (square_BK * valid_BK).sum(1) / valid_BK.sum(1).clamp(min=1)


def check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise ValueError(f"a world model has the stages {', '.join(STAGES)}, got {stage!r}")
