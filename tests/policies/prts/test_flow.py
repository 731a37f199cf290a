from __future__ import annotations

import pytest
import torch

from policies.prts.flow import FlowConfig, FlowExpert

TINY = FlowConfig(width=32, layers=4, heads=2, steps=5, temperature=1.0)


def expert(seed: int = 0, **changes) -> FlowExpert:
    torch.manual_seed(seed)
    return FlowExpert(6, 4, 2, FlowConfig(**{**vars(TINY), **changes}))


def shake(module: FlowExpert) -> FlowExpert:
    """Moves the zero-initialised layers, so that everything matters."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return module


def test_times_follow_the_schedule():
    torch.manual_seed(0)
    time = expert().draw_time(200_000, torch.device("cpu"))
    assert time.min() >= 0
    assert time.max() <= 0.999
    assert time.mean().item() == pytest.approx(0.999 * (1 - 1.5 / 2.5), abs=2e-3)  # mean of Beta(a, 1) is a / (a + 1)
    assert (time < 0.5).float().mean().item() == pytest.approx(1 - (1 - 0.5 / 0.999) ** 1.5, abs=4e-3)


def test_loss_of_an_untrained_expert_by_hand():
    model = expert()  # its head is zero: the error is the mean square of action - noise over valid steps
    actions, valid = torch.full((2, 4, 2), 3.0), torch.tensor([[True] * 4, [True, False, False, False]])
    prefix = model.prefix(torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool))
    torch.manual_seed(5)
    loss = model.loss(actions, valid, prefix)
    torch.manual_seed(5)
    noise = torch.randn(2, 4, 2)
    assert loss.item() == pytest.approx((3.0 - noise)[valid].square().mean().item(), rel=1e-5)


def test_padded_context_tokens_are_not_read():
    model = shake(expert())
    context, real = torch.randn(2, 5, 6), torch.tensor([[True] * 5, [True, True, True, False, False]])
    noise = torch.randn(2, 4, 2)
    full = model.sample(model.prefix(context, real), noise)
    short = model.sample(model.prefix(context[1:, :3], real[1:, :3]), noise[1:])
    torch.testing.assert_close(full[1:], short, atol=1e-5, rtol=1e-5)
    context[1, 3:] += 100.0
    torch.testing.assert_close(model.sample(model.prefix(context, real), noise), full)


def test_sampling_is_euler_and_the_prefix_is_used_once():
    model = shake(expert())
    prefix = model.prefix(torch.randn(1, 3, 6), torch.ones(1, 3, dtype=torch.bool))
    noise = torch.randn(1, 4, 2)
    by_hand = noise
    for t in (0.0, 0.5):
        by_hand = by_hand + 0.5 * model.velocity(by_hand, torch.tensor([t]), prefix)
    torch.testing.assert_close(model.sample(prefix, noise, steps=2), by_hand)
    assert len(prefix.keys_values) == 2  # of four blocks, two look at the context


def test_the_temperature_scales_the_noise_that_sampling_starts_from() -> None:
    models = {temperature: shake(expert(temperature=temperature)) for temperature in (0.0, 0.5, 1.0)}
    for model in models.values():
        model.load_state_dict(models[1.0].state_dict())
    context, real = torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    noise = torch.randn(2, 4, 2)
    sampled = {t: model.sample(model.prefix(context, real), noise) for t, model in models.items()}
    half = models[1.0].sample(models[1.0].prefix(context, real), noise / 2)
    torch.testing.assert_close(sampled[0.5], half)
    torch.testing.assert_close(sampled[0.0], models[0.0].sample(models[0.0].prefix(context, real)))  # whatever is drawn
    assert not torch.allclose(sampled[0.0], sampled[1.0])
    with pytest.raises(ValueError, match="temperature not negative"):
        expert(temperature=-0.1)


def test_draws_repeat_the_prefix():
    model = shake(expert(draws=3))
    prefix = model.prefix(torch.randn(2, 3, 6), torch.ones(2, 3, dtype=torch.bool))
    assert prefix.repeat(3).keys_values[0][0].shape[0] == 6
    assert torch.equal(prefix.repeat(3).keys_values[0][0][2], prefix.keys_values[0][0][0])
    assert torch.isfinite(model.loss(torch.zeros(2, 4, 2), torch.ones(2, 4, dtype=torch.bool), prefix))


def test_learns_actions_that_depend_on_the_context():
    """Two contexts, two opposite chunks: after a short training the samples tell them apart."""
    model = expert(draws=32, layers=2)
    context, real = torch.eye(6)[:2, None].expand(2, 3, 6), torch.ones(2, 3, dtype=torch.bool)
    wave = torch.linspace(-1, 1, 4)[:, None].expand(4, 2)
    actions, valid = torch.stack([wave, -wave]), torch.ones(2, 4, dtype=torch.bool)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    torch.manual_seed(1)
    for _ in range(200):
        optimiser.zero_grad()
        model.loss(actions, valid, model.prefix(context, real)).backward()
        optimiser.step()
    with torch.no_grad():
        sampled = model.sample(model.prefix(context, real))
    assert (sampled - actions).abs().max() < 0.25


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="multiple of 2"):
        expert(width=30, heads=4)
