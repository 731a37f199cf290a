"""Post-training on own rollouts (PersistWorld): rounds of branching and scoring, contrastive steps, guards.

A round: from true states the old policy imagines a while; from where it ended, it branches K candidates; their
fidelity to the recorded future, compared within the group, becomes r. Each training step then draws chunks of the
round, each with its own candidate's history, and fresh noise. A round is a pure function of (seed, round, old policy):
after a crash in its middle it is made again, and the run goes on bit for bit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.chunk_policy import to_tensors
from embodied.data.windows import WindowConfig, Windows
from embodied.training.setup import PipelineWindows
from world_models.persist.actions import FRAME_ACTION
from world_models.persist.adapters import NEW, OLD, REFERENCE
from world_models.persist.contrastive import contrastive_loss, mean_square, optimality
from world_models.persist.edm import draw_sigma, expand, loss_weight
from world_models.persist.rollout import RolloutState, Sampling, branch, imagine

TRIES = 4096


class StopPosttrainingError(ValueError):
    """The guard stopped the run: the teacher-forced loss rose too far above the reference's."""


@dataclass(frozen=True)
class Round:
    """Chunks to train on, P of them, each by K candidates of one group: context (P, K, H, *L), actions (P, K, F, A),
    what diffusion sampled (P, K, chunk, *L), r (P, K)."""

    number: int
    context: Tensor
    actions: Tensor
    samples: Tensor
    reward: Tensor
    report: dict[str, float]


class Posttrainer:
    """Drives `world.training_step` in the stage posttrain. `windows`: the training windows that rounds start from."""

    def __init__(self, world: Any, windows: Any) -> None:
        if windows is None or world.policies is None:
            raise ValueError("post-training needs training windows and adapters: run it by `embodied train`")
        self.world, self.config, self.windows = world, world.posttrain, windows
        self.round: Round | None = None
        self._score: Any = world.make_score()

    def step(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """One training step; `batch` is what the teacher-forced watch looks at. In evaluation only the watch runs."""
        world, config = self.world, self.config
        if not world.training:
            loss_B, error_B = world.teacher_forced(*world.read(batch))
            return loss_B.mean(), {"error": error_B.mean()}
        number = int(world.calls)
        if number % config.round == 0 and number:
            world.policies.move_old(min(config.old_rate * number, config.old_max))
        if self.round is None or self.round.number != number // config.round:
            self.round = self.collect(number // config.round)
        ratio = self.watch(batch)
        loss, metrics = self.loss(self.round)
        world.calls += 1
        extra = {
            key: torch.tensor(value) for key, value in {**self.round.report, "teacher_forced_ratio": ratio}.items()
        }
        return loss, {**metrics, **extra}

    def loss(self, round_: Round) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrastive loss in x0 form on chunks drawn from the round, and the KL to the reference.

        The candidates of a chunk share noise and noise level: r - 1/2 adds up to 0 over them, and with it what they
        have in common.
        """
        world, config = self.world, self.config
        count, candidates = max(1, config.batch // round_.reward.shape[1]), round_.reward.shape[1]
        chosen = torch.randint(len(round_.reward), (count,), device=round_.reward.device)
        context, actions, x, reward = (
            value[chosen].flatten(0, 1) for value in (round_.context, round_.actions, round_.samples, round_.reward)
        )
        sigma_B = draw_sigma(world.edm, count, x.device).repeat_interleave(candidates)
        noise = torch.randn(count, *x.shape[1:], device=x.device).repeat_interleave(candidates, dim=0)
        noisy = x + expand(sigma_B, x) * noise
        estimates = {}
        for policy in (NEW, OLD, REFERENCE):
            with world.acting_as(policy), torch.set_grad_enabled(policy == NEW):
                estimates[policy] = world.denoised(noisy, sigma_B, world.condition(context, actions)).float()
        weight_B = loss_weight(sigma_B)
        main = contrastive_loss(estimates[NEW], estimates[OLD], x, reward, config.beta, weight_B).mean()
        kl = (weight_B * mean_square(estimates[NEW] - estimates[REFERENCE])).mean()
        moved = (weight_B * mean_square(estimates[NEW] - estimates[OLD])).mean()
        return main + config.kl * kl, {"contrastive": main.detach(), "kl": kl.detach(), "moved": moved.detach()}

    # Rounds -------------------------------------------------------------------------------------------------------

    def collect(self, number: int) -> Round:
        """Rolls out, branches and scores with the old policy."""
        world, config = self.world, self.config
        rng = np.random.default_rng([config.seed, number, _rank()])
        own, length = int(rng.integers(config.own + 1)), int(rng.integers(config.lengths[0], config.lengths[1] + 1))
        state, truth = self.start(rng, own + length)
        streams = [(config.seed, number, _rank(), i) for i in range(len(state.buffer))]
        sampling = Sampling(config.steps, guided=False, policy=OLD)  # D_old must be the mean of its own samples
        state = imagine(world, state, own, streams, sampling)
        lengths = torch.full((len(streams), config.candidates), length)
        branches = branch(world, state, lengths, streams, sampling, first=own)
        future = truth[:, own * world.memory.chunk :]
        rewards = self._score(branches.frames, future, config.weights)
        self._warn(rewards.spread, number)
        report = {f"spread_{name}": value for name, value in rewards.spread.items()}
        report |= {f"score_{name}": float(value.mean()) for name, value in rewards.scores.items()}
        told = informative(rewards.scores, config.spread_floor)
        advantage = rewards.advantage if told is None else rewards.advantage * told[:, None]
        report["informative"] = 1.0 if told is None else float(told.float().mean())
        context, actions, samples = self._chunks(state, branches.frames)
        repeated = optimality(advantage, config.clip).repeat_interleave(length, dim=0)
        return Round(number, context, actions, samples, repeated, {**report, "own": float(own)})

    def start(self, rng: np.random.Generator, interactions: int) -> tuple[RolloutState, Tensor]:
        """True states with enough future, and that future's latents (G, T, *L)."""
        world, memory = self.world, self.world.memory
        count = interactions * memory.chunk
        frames = [*memory.buffer_offsets(), *memory.future_offsets(count)]
        config = WindowConfig(observations=[], actions=[], chunk=1, offsets=world.offsets(frames))
        members = [Windows(m.cache, config, m.episodes) for m in self.windows.members]
        mixture = PipelineWindows(members, self.windows.pipeline)
        samples = _with_future(mixture, count * memory.skip, self.config.contexts, rng)
        device = next(world.parameters()).device
        batch = to_tensors({k: v for k, v in mixture.get_batch(samples).items() if isinstance(v, np.ndarray)}, device)
        latents, known = world.space.encode(batch), memory.lookback + 2
        return RolloutState(latents[:, :known], batch[FRAME_ACTION]), latents[:, known:]

    def _chunks(self, state: RolloutState, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Every chunk of every candidate (G, K, T, *L), own histories before it: (P, K, ...), a group's in a row."""
        world, chunk = self.world, self.world.memory.chunk
        candidates, start = frames.shape[1], state.buffer.shape[1]
        known = state.buffer[:, None].expand(-1, candidates, *state.buffer.shape[1:])
        buffer = torch.cat([known, frames], dim=2).flatten(0, 1)
        actions = state.actions.repeat_interleave(candidates, dim=0)
        context, told, samples = [], [], []
        for length in range(start, buffer.shape[1], chunk):
            places = world.memory.positions(length)
            context.append(buffer[:, places])
            told.append(torch.cat([actions[:, places], actions[:, length : length + chunk]], dim=1))
            samples.append(world.to_model(buffer[:, length : length + chunk], buffer[:, length - 1]))
        return tuple(
            torch.stack(parts, dim=1).unflatten(0, (-1, candidates)).transpose(1, 2).flatten(0, 1)
            for parts in (context, told, samples)
        )

    # Guards -------------------------------------------------------------------------------------------------------

    def _warn(self, spread: Mapping[str, float], number: int) -> None:
        if "psnr" in spread and spread["psnr"] < self.config.spread_floor:
            warnings.warn(
                f"round {number}: candidates of a group differ by {spread['psnr']:.3f} dB PSNR only, below "
                f"{self.config.spread_floor}: the reward is mostly noise; lengthen posttrain.lengths or train the base "
                "for longer",
                stacklevel=2,
            )

    @torch.no_grad()
    def watch(self, batch: Mapping[str, Any]) -> float:
        """Teacher-forced loss over the reference's, averaged over about `watch` steps, on the same clips and noise."""
        world, keep = self.world, 1 - 1 / self.config.watch
        read = world.read(batch)
        seed = int(torch.randint(2**31, ()))
        losses = []
        for policy in (NEW, REFERENCE):
            with world.acting_as(policy), torch.random.fork_rng():
                torch.manual_seed(seed)
                losses.append(world.teacher_forced(*read)[0].mean())
        world.watched.mul_(keep).add_((1 - keep) * torch.stack([torch.ones_like(losses[0]), *losses]))
        share, new, reference = world.watched.tolist()
        ratio = new / max(reference, 1e-12)
        if share > 0.2 and ratio > 1 + self.config.tolerance:
            raise StopPosttrainingError(
                f"post-training stopped at step {int(world.calls)}: the teacher-forced loss is {ratio:.3f} times the "
                f"reference's, allowed are {1 + self.config.tolerance:.3f}; take an earlier checkpoint, or lower "
                "stage.lr or raise posttrain.kl"
            )
        return ratio


def informative(scores: Mapping[str, Tensor], floor: float) -> Tensor | None:
    """(G,) True where the candidates' PSNR deviates by `floor` dB or more; None without a PSNR."""
    if "psnr" not in scores:
        return None
    return scores["psnr"].std(1, unbiased=False).mean(-1) >= floor


def _with_future(mixture: Any, steps: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Samples that have `steps` more frames of data. ValueError when there are none."""
    found: list[int] = []
    for sample in rng.integers(len(mixture), size=TRIES):
        member = int(np.searchsorted(mixture._ends, sample, side="right"))
        local = sample - mixture._ends[member] + len(mixture.members[member])
        rows = mixture.members[member].rows(np.array([local]))
        if rows.last[0] - rows.frame[0] >= steps:
            found.append(int(sample))
        if len(found) == count:
            return np.array(found)
    raise ValueError(
        f"rollouts need {steps} frames of future, the episodes have none such: lower posttrain.own/lengths"
    )


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
