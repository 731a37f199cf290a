from __future__ import annotations

import math
import subprocess
import sys
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import normalize

from policies.prts.contrastive import (
    CRLConfig,
    CRLHead,
    CRLHeads,
    Pairs,
    action_to_goal_loss,
    chunked_logsumexp,
    contrastive_losses,
    discount_weights,
    distinct_goals,
    goal_id,
    goal_ids,
    goal_to_action_loss,
)

TINY = CRLConfig(width=16, layers=2, features=8, last_layer_init=0.1)


def example():
    """Three pairs, two goals, scale 2: logits (pairs x goals) [[2, 0], [0, 2], [1.2, 1.6]]; weights 1, .5, .25."""
    phi = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]], dtype=torch.float64)
    psi = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    return phi, psi, torch.tensor([0, 1, 1]), weight, torch.tensor(2.0, dtype=torch.float64)


def test_action_to_goal_by_hand():
    each = [math.log(math.e**2 + 1) - 2, math.log(1 + math.e**2) - 2, math.log(math.exp(1.2) + math.exp(1.6)) - 1.6]
    expected = (1.0 * each[0] + 0.5 * each[1] + 0.25 * each[2]) / 1.75
    assert action_to_goal_loss(*example()).item() == pytest.approx(expected, abs=1e-12)


def test_goal_to_action_by_hand():
    first = math.log(math.exp(2) + math.exp(0) + math.exp(1.2)) - 2  # its only pair is pair 0
    q = (0.5 / 0.75, 0.25 / 0.75)
    second = math.log(math.exp(0) + math.exp(2) + math.exp(1.6)) - (q[0] * 2 + q[1] * 1.6)
    assert goal_to_action_loss(*example()).item() == pytest.approx((first + second) / 2, abs=1e-12)


def test_same_instruction_is_never_a_negative():
    heads = CRLHeads(4, TINY)
    phi = normalize(torch.randn(4, 8), dim=-1)
    psi = normalize(torch.randn(1, 8), dim=-1).expand(4, 8)
    losses = contrastive_losses(Pairs(phi, psi, goal_ids(["pick up the cup"] * 4), torch.ones(4)), heads)
    assert losses["action_to_goal"].item() == pytest.approx(0.0, abs=1e-6)


def test_a_pair_that_never_reaches_its_goal_is_a_negative_only():
    phi, psi, goal, _, scale = example()
    weight = discount_weights(torch.tensor([1.0, 3.0, math.inf], dtype=torch.float64), 0.9)
    assert weight.tolist() == pytest.approx([0.9, 0.729, 0.0])
    second = math.log(math.exp(0) + math.exp(2) + math.exp(1.6)) - 2
    first = math.log(math.exp(2) + math.exp(0) + math.exp(1.2)) - 2
    assert goal_to_action_loss(phi, psi, goal, weight, scale).item() == pytest.approx((first + second) / 2)
    nothing = torch.tensor([0.9, 0.0, 0.0], dtype=torch.float64)
    assert goal_to_action_loss(phi, psi, goal, nothing, scale).item() == pytest.approx(first)


def test_goal_ids_are_stable_and_the_first_pair_names_the_goal():
    assert goal_id("Pick up the cup ") == goal_id("pick up the cup") != goal_id("pick up the can")
    assert goal_id("pick up the cup") == 0x7FFFFFFFFFFFFFFF & goal_id("pick up the cup")
    psi, index = distinct_goals(torch.tensor([9, 4, 9, 4]), torch.arange(4.0)[:, None])
    assert psi.flatten().tolist() == [1.0, 0.0]
    assert index.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("loss", [action_to_goal_loss, goal_to_action_loss])
@pytest.mark.parametrize("chunk", [1, 100])
def test_gradients_are_right(loss, chunk):
    generator = torch.Generator().manual_seed(0)
    phi, psi = (torch.randn(n, 3, generator=generator, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    goal, weight = torch.tensor([0, 1, 2, 1, 0]), torch.rand(5, generator=generator, dtype=torch.float64)
    scale = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b, c: loss(a, b, goal, weight, c, chunk), (phi, psi, scale))


def test_chunks_equal_the_whole_and_bound_memory():
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(n, 4, generator=generator, requires_grad=True) for n in (103, 57))
    results, saved = {}, {}
    for chunk in (10, 1000):
        sizes: list[int] = []

        def pack(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = chunked_logsumexp(rows, columns, torch.tensor(3.0), chunk)
        saved[chunk] = max(sizes)
        results[chunk] = (value, *torch.autograd.grad(value.square().sum(), (rows, columns)))
    for got, expected in zip(results[10], results[1000], strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert saved[1000] == 103 * 57
    assert saved[10] < 103 * 57  # no matrix of logits is kept for the backward pass


def test_head_starts_as_the_paper_says():
    torch.manual_seed(0)
    head = CRLHead(12, CRLConfig())
    linear = [layer for layer in head.hidden if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [1024] * 4
    assert head.last.out_features == 256
    assert 0 < head.last.weight.abs().max() <= 1e-12
    out = head(torch.randn(3, 12))
    torch.testing.assert_close(out.norm(dim=-1), torch.ones(3))
    assert CRLHeads(12, TINY).scale().item() == pytest.approx(5.0)


def data(n: int):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(n, 2, 6, generator=generator)
    goal = goal_ids([f"goal {i}" for i in [0, 1, 2, 1, 0, 3, 3, 1]][:n])
    hidden[:, 1] = torch.stack([torch.full((6,), float(g % 97)) / 97 for g in goal.tolist()])
    return hidden, goal, 0.9 ** torch.arange(n)


def train_step(hidden, goal, weight, world: int = 1):
    """Loss and the gradient of every parameter, averaged over ranks as data-parallel training does."""
    torch.manual_seed(0)
    heads = CRLHeads(6, TINY)
    pairs = Pairs(heads.phi(hidden[:, 0]), heads.psi(hidden[:, 1]), goal, weight)
    loss = sum(contrastive_losses(pairs, heads, chunk=3).values())
    loss.backward()
    gradients = [parameter.grad for parameter in heads.parameters()]
    if world > 1:
        for gradient in gradients:
            dist.all_reduce(gradient)
            gradient /= world
    return loss.item(), gradients


def run_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=patience)
    hidden, goal, weight = data(8)
    mine = slice(4 * rank, 4 * rank + 4)
    loss, gradients = train_step(hidden[mine], goal[mine], weight[mine], world=2)
    if rank == 0:
        heads = CRLHeads(6, TINY)
        with torch.no_grad():  # validation is of one rank: it should not wait for the other
            alone = contrastive_losses(Pairs(heads.phi(hidden[:, 0]), heads.psi(hidden[:, 1]), goal, weight), heads)
        torch.save({"loss": loss, "gradients": gradients, "alone": len(alone)}, f"{folder}/result.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    other = subprocess.Popen([sys.executable, __file__, str(tmp_path)])
    run_rank(0, str(tmp_path))
    assert other.wait(timeout=120) == 0
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    loss, gradients = train_step(*data(8))
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["alone"] == 2
    for got, expected in zip(result["gradients"], gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max() + 1e-12))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="at least 0"):
        discount_weights(torch.tensor([-1.0]), 0.9)
    with pytest.raises(ValueError, match="at least 1 row"):
        chunked_logsumexp(torch.zeros(2, 2), torch.zeros(2, 2), torch.tensor(1.0), 0)


if __name__ == "__main__":
    run_rank(1, sys.argv[1])
