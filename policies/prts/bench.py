"""`embodied bench policy`: what the contrastive blocks cost in pretraining, and how long a chunk of actions takes.

All arms of a comparison run in one process and take turns; a ratio is the median over rounds of the ratio within a
round, in CPU time (on a GPU: by the clock, synchronised), which other load on the machine disturbs least. Weights are
random: time does not depend on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embodied.bench.figures import Figure
from embodied.protocols import Episode
from embodied.schema import ACTION, ACTION_DIM, IMAGE_KEYS, STATE, TASK
from embodied.transforms import Pipeline
from policies.prts.bench_attention import KernelArms, LayerArms, Tokens, interleaved, kept_bytes, ratio
from policies.prts.nano import STATE_6D, PRTSNano
from policies.prts.policy import PRTSPolicy

STATISTICS = {STATE: {"mean": [0.0] * 8, "std": [1.0] * 8}, ACTION: {"min": [-1.0] * 7, "max": [1.0] * 7}}
TEXTS = (
    "pick up the alphabet soup and place it in the basket",
    "put the bowl on the stove",
    "open the middle drawer of the cabinet",
    "pick up the black bowl on the cookie box and place it on the plate",
)
Say = Callable[[str], None]


@dataclass
class PolicyBench:
    """vision_state, instruction, action: tokens of a sample at which a layer is measured, `samples` of them a batch.

    batch_size: of a pretraining step at nano's own sizes. calls: chunks whose time is taken, a tenth of them for the
    autoregressive head. device: auto takes a GPU when there is one. flex: FlexAttention too, which takes a minute or
    more to compile.
    """

    policy: str = "prts_nano"
    vision_state: int = 512
    instruction: int = 32
    action: int = 64
    samples: int = 4
    rounds: int = 30
    batch_size: int = 64
    step_rounds: int = 8
    calls: int = 200
    threads: int = 1
    device: str = "auto"
    flex: bool = True

    def run(self, say: Say) -> list[Figure]:
        if self.device == "auto":
            self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        self.arguments = _arguments(self.policy)
        return [*self._attention(say), *self._steps(say), *self._chunks(say)]

    def _attention(self, say: Say) -> list[Figure]:
        tokens = Tokens(self.vision_state, self.instruction, self.action)
        nano = self._model(1.0).nano
        say(f"one attention layer on {self.device}, {tokens}")
        layer = interleaved(LayerArms(nano, tokens, self.samples, self.device).arms(), self.rounds, self.device)
        say("attention alone")
        kernel = interleaved(KernelArms(nano, tokens, self.samples, self.device).arms(), self.rounds, self.device)
        size = f"{self.vision_state} + {self.instruction} + {self.action} tokens, {self.samples} samples"
        where = f"forward and backward, {size}, {self._where()}"
        return [
            _overhead("attention_overhead", layer, "roles", f"whole attention layer against BC alone; {where}"),
            _overhead("attention_overhead_dense", layer, "dense", "the same under a dense mask"),
            _overhead("kernel_overhead", kernel, "roles", f"attention without projections; {where}"),
            _overhead("kernel_overhead_dense", kernel, "dense", "the same under a dense mask"),
            *(self._flex(tokens, say) if self.flex else []),
        ]

    def _flex(self, tokens: Tokens, say: Say) -> list[Figure]:
        """FlexAttention beside the others; on a CPU forward only, where torch has no backward pass for it."""
        backward = self.device != "cpu"
        say("FlexAttention, which is compiled first")
        made = KernelArms(self._model(1.0).nano, tokens, self.samples, self.device, backward)
        with torch.set_grad_enabled(backward):
            times = interleaved({**made.arms(), "flex": made.flex()}, self.rounds, self.device)
        what = (
            "attention without projections, forward and backward" if backward else "forward only (no backward on CPU)"
        )
        return [
            _overhead("kernel_overhead_flex", times, "flex", f"compiled FlexAttention, {what}"),
            _overhead("kernel_overhead_flex_ours", times, "roles", "the three calls in the same comparison"),
        ]

    def _steps(self, say: Say) -> list[Figure]:
        """Whole pretraining steps at nano's own sizes: image tokens, state, real instructions, FAST tokens."""
        say(f"pretraining steps at nano's own sizes, batch {self.batch_size}")
        models = {"bc": self._model(0.0), "roles": self._model(1.0)}
        batch = random_batch(models["roles"], self.batch_size, self.device)
        works = {name: _step(model, batch) for name, model in models.items()}
        times = interleaved(works, self.step_rounds, self.device)
        kept = {name: kept_bytes(partial(_loss, model, batch), model) for name, model in models.items()}
        rate = self.batch_size / float(np.median(times["roles"]))
        base = self.batch_size / float(np.median(times["bc"]))
        unit = "per CPU-second" if self.device == "cpu" else "by the clock"
        counts = f"{_tokens(models['roles'], batch)} tokens a sample"
        note = f"pretraining step at nano's own sizes against BC alone; batch {self.batch_size}, {counts}"
        memory = f"kept for the backward pass, batch {self.batch_size}; baseline: BC alone"
        return [
            _overhead("step_overhead", times, "roles", note),
            Figure("train_samples_per_second", rate, "samples/s", base, f"{unit}, no optimiser; baseline: BC alone"),
            Figure("step_memory_mb", kept["roles"] / 2**20, "MB", kept["bc"] / 2**20, memory),
        ]

    def _chunks(self, say: Say) -> list[Figure]:
        """Latency of one chunk, from two uint8 images, state and instruction to actions."""
        figures = []
        for head, calls in (("flow", self.calls), ("fast", max(10, self.calls // 10))):
            say(f"{calls} chunks by the {head} head")
            model = self._model(1.0, head).eval()
            policy = PRTSPolicy(model, Pipeline(model.transforms(), STATISTICS), "bench", "", 5, self.device)
            wall, cpu = _latencies(policy, calls)
            note = f"one observation, {head} head, chunk of {model.chunk}, by the clock; median CPU time {cpu:.1f} ms"
            for share in (50, 99):
                value = float(np.percentile(wall, share))
                figures.append(Figure(f"chunk_{head}_p{share}_ms", value, "ms", None, note))
        return figures

    def _model(self, contrastive: float, head: str = "fast") -> PRTSNano:
        method = {**self.arguments["method"], "contrastive": contrastive, "head": head}
        model = PRTSNano(self.arguments["backbone"], method)
        model.fit_tokenizer(_walks(512, model.chunk))
        model.set_stage("pretrain")
        model.head = head
        return model.to(self.device)

    def _where(self) -> str:
        if self.device == "cpu":
            return f"CPU time, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
        return torch.cuda.get_device_name()


def _arguments(policy: str) -> dict[str, Any]:
    """Sizes of the config `policy=NAME`. ValueError for another backbone than nano's."""
    from omegaconf import OmegaConf

    from embodied.config import compose_config

    found: Any = OmegaConf.to_container(compose_config("train", [f"policy={policy}"]).policy, resolve=True)
    if found["_target_"] != "policies.prts.nano.PRTSNano":
        raise ValueError(f"bench policy measures prts_nano and its variants, got {policy}: use policy=prts_nano")
    return dict(found)


def _walks(count: int, chunk: int, seed: int = 0) -> np.ndarray:
    """Smooth chunks (N, chunk, 7), as demonstrations are."""
    steps = np.random.default_rng(seed).normal(size=(count, chunk, ACTION_DIM)).cumsum(1)
    return np.tanh(0.2 * steps).astype(np.float32)


def random_batch(model: PRTSNano, count: int, device: str) -> dict[str, Any]:
    """A training batch with cached image features, four instructions."""
    generator = torch.Generator().manual_seed(0)
    assert model.features is not None
    columns = model.features.columns.items()
    batch: dict[str, Any] = {name: 8 * torch.randn(count, *shape, generator=generator) for name, shape in columns}
    batch[STATE] = torch.randn(count, STATE_6D, generator=generator)
    batch[ACTION] = torch.from_numpy(_walks(count, model.chunk, seed=1))
    batch[f"{ACTION}_is_pad"] = torch.zeros(count, model.chunk, dtype=torch.bool)
    batch["steps_to_go"] = torch.arange(count)
    batch = {key: value.to(device) for key, value in batch.items()}
    return {**batch, TASK: [TEXTS[i % len(TEXTS)] for i in range(count)]}


def _loss(model: PRTSNano, batch: Mapping[str, Any]) -> Tensor:
    return model.training_step(dict(batch))[0]


def _step(model: PRTSNano, batch: Mapping[str, Any]) -> Callable[[], None]:
    def work() -> None:
        model.zero_grad(set_to_none=True)
        _loss(model, batch).backward()

    return work


@torch.no_grad()
def _tokens(model: PRTSNano, batch: Mapping[str, Any]) -> str:
    """Mean tokens of a sample, block by block."""
    words, actions = model.backbone.words(batch[TASK]), model.tokens(batch[ACTION])
    encoded = model.encode(model.backbone.observe(dict(batch)), words, actions, phi=True, psi=True)
    return " + ".join(f"{count:.0f}" for count in encoded.layout.counts_SR.float().mean(0).tolist())


def _latencies(policy: PRTSPolicy, calls: int) -> tuple[np.ndarray, float]:
    """Milliseconds of each call by the clock, and the median CPU time of one; two calls before are not counted."""
    rng, size = np.random.default_rng(0), policy.spec.image_size
    observation: dict[str, Any] = {key: rng.integers(0, 256, (1, size, size, 3), np.uint8) for key in IMAGE_KEYS}
    observation |= {STATE: np.zeros((1, 8), np.float32), TASK: [TEXTS[0]]}
    policy.reset([0], [Episode("bench", 0, 0)])
    wall, cpu = [], []
    for number in range(calls + 2):
        start, begun = time.perf_counter(), time.process_time()
        policy.act(observation, [0])  # its result lies on the CPU
        if number >= 2:
            wall.append(1000 * (time.perf_counter() - start))
            cpu.append(1000 * (time.process_time() - begun))
    return np.array(wall), float(np.median(cpu))


def _overhead(name: str, times: Mapping[str, Sequence[float]], arm: str, note: str) -> Figure:
    base, ours = (1000 * float(np.median(times[key])) for key in ("bc", arm))
    return Figure(name, ratio(times, arm), "x", base, f"{note} ({ours:.3g} against {base:.3g} ms)")
