"""`embodied bench policy`: its arithmetic by hand, and one short run."""

from __future__ import annotations

import pytest
import torch

from policies.prts.bench import PolicyBench
from policies.prts.bench_attention import KernelArms, Tokens, interleaved, kept_bytes, ratio
from policies.prts.layout import Role
from policies.prts.nano import NanoConfig


def test_a_ratio_is_the_median_of_ratios() -> None:
    """Rounds 2/1, 3/3, 8/2: the ratio of medians would be 3/2."""
    assert ratio({"roles": [2.0, 3.0, 8.0], "bc": [1.0, 3.0, 2.0]}, "roles") == 2.0


def test_arms_take_turns_and_the_first_turn_is_not_counted() -> None:
    order: list[str] = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "ab"}, 2, "cpu")
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert [len(times[name]) for name in "ab"] == [2, 2]


def test_the_blocks_of_a_sample() -> None:
    counts = Tokens(8, 3, 4).layout(2, contrastive=True).counts_SR
    assert counts.tolist() == [[8, 3, 4, 5, 4]] * 2
    assert Tokens(8, 3, 4).layout(2, contrastive=False).counts_SR[:, Role.CRL_ACTION :].sum() == 0


def test_forward_only_leaves_no_gradient_to_compute() -> None:
    arms = KernelArms(NanoConfig(), Tokens(8, 3, 4), 2, "cpu", backward=False)
    for work in arms.arms().values():
        work()


def test_kept_memory_leaves_weights_out() -> None:
    """A linear layer keeps its input (4 x 8 floats) for the weight's gradient; the square keeps its own (4 x 2)."""
    layer, x = torch.nn.Linear(8, 2), torch.randn(4, 8)
    assert kept_bytes(lambda: layer(x).square().sum(), layer) == 4 * (4 * 8 + 4 * 2)


@pytest.mark.slow
def test_a_short_run_measures_everything() -> None:
    sizes = {"vision_state": 32, "instruction": 4, "action": 6, "samples": 2, "rounds": 1}
    bench = PolicyBench(**sizes, batch_size=4, step_rounds=1, calls=1, device="cpu", flex=False)
    figures = {figure.name: figure for figure in bench.run(lambda _: None)}
    assert {"attention_overhead", "step_overhead", "train_samples_per_second", "chunk_flow_p99_ms"} <= set(figures)
    assert all(figure.value > 0 for figure in figures.values())
    assert figures["step_memory_mb"].value > figures["step_memory_mb"].baseline
    with pytest.raises(ValueError, match="measures prts_nano and its variants, got bc"):
        PolicyBench(policy="bc").run(lambda _: None)
