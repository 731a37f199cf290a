"""The objective against its formula on a small posterior, its forms against each other, the old-policy schedule."""

from __future__ import annotations

import pytest
import torch

from world_models.persist.contrastive import (
    contrastive_loss,
    flow_weight,
    group_advantage,
    minimiser,
    optimality,
    to_f,
    to_flow,
)
from world_models.persist.edm import loss_weight


def posterior(sigma: float, beta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Minimiser found by gradient descent and the formula's, for three samples x_i with rewards r_i seen as x_s."""
    points = torch.tensor([[-1.0, 0.5], [0.3, 1.2], [1.5, -0.7]], dtype=torch.float64)
    reward = torch.tensor([0.9, 0.2, 0.55], dtype=torch.float64)
    noisy = torch.tensor([0.4, 0.6], dtype=torch.float64)
    weight = (-((noisy - points) ** 2).sum(1) / (2 * sigma**2)).softmax(0)  # p(x_i | x_s), equal priors
    old = (weight[:, None] * points).sum(0)
    mean_reward = (weight * reward).sum()
    covariance = (weight[:, None] * (reward - mean_reward)[:, None] * (points - old)).sum(0)
    new = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([new], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss_B = contrastive_loss(new.expand(3, 2), old.expand(3, 2), points, reward, beta)
        loss = (weight * loss_B).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return new.detach(), minimiser(old, covariance, beta)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_the_minimiser_is_old_plus_covariance(sigma: float, beta: float) -> None:
    found, formula = posterior(sigma, beta)
    torch.testing.assert_close(found, formula, atol=1e-3, rtol=0)
    assert (formula.abs() > 0.01).any()


def test_x0_f_and_flow_forms_agree() -> None:
    torch.manual_seed(0)
    new, old, x, noisy = torch.randn(4, 5, 3, 2, dtype=torch.float64).unbind(0)
    sigma = torch.tensor([0.05, 0.3, 1.0, 4.0, 30.0], dtype=torch.float64)
    reward = torch.rand(5, dtype=torch.float64)
    weight = loss_weight(sigma)
    x0 = contrastive_loss(new, old, x, reward, 0.7, weight)
    f = contrastive_loss(*(to_f(value, noisy, sigma) for value in (new, old, x)), reward, 0.7)
    flow = contrastive_loss(
        *(to_flow(value, noisy, sigma) for value in (new, old, x)), reward, 0.7, weight * flow_weight(sigma)
    )
    assert ((f - x0).abs() / x0).max() < 1e-6
    assert ((flow - x0).abs() / x0).max() < 1e-6


def test_f_is_v() -> None:
    """With sigma_data 1: v = alpha eps - sigma x0 of the variance-preserving process at alpha = 1 / sqrt(1 + s^2)."""
    x0, eps, s = torch.randn(2, 3), torch.randn(2, 3), torch.tensor([0.5, 2.0])
    alpha = 1 / (1 + s[:, None] ** 2).sqrt()
    v = alpha * eps - s[:, None] * alpha * x0
    torch.testing.assert_close(to_f(x0, x0 + s[:, None] * eps, s), v, atol=1e-5, rtol=1e-5)


def test_equal_policies_give_no_first_order_pull_without_rewards() -> None:
    """With r = 1/2 everywhere and D = D_old at the posterior mean, the gradient is zero."""
    points = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    new = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = contrastive_loss(new.expand(2, 1), torch.zeros(2, 1), points, torch.full((2,), 0.5), 0.5).mean()
    loss.backward()
    assert new.grad is not None
    assert new.grad.abs().item() < 1e-12


def test_advantage_and_optimality_by_hand() -> None:
    advantage = group_advantage(torch.tensor([[1.0, 3.0], [2.0, 2.0]]))
    assert advantage.tolist() == [[-1.0, 1.0], [0.0, 0.0]]
    assert optimality(torch.tensor([-9.0, -1.0, 0.0, 5.0]), 5.0).tolist() == pytest.approx([0.0, 0.4, 0.5, 1.0])


def test_beta_must_be_positive() -> None:
    with pytest.raises(ValueError, match="beta should be positive"):
        contrastive_loss(*torch.zeros(3, 1, 1), torch.zeros(1), 0.0)
