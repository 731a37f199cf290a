from __future__ import annotations

import numpy as np
import pytest
import torch

from embodied.language import WIDTH
from embodied.schema import ACTION, STATE, TASK
from embodied.training.augment import StateNoise
from embodied.training.model import TrainableModel
from policies.bc.model import BehaviourCloning
from policies.layers import KeypointReader, LanguagePool, SpatialSoftmax, StateEncoder, _bilinear

SMALL = {"width": 16, "depth": 1, "heads": 2, "hidden": 8, "keypoints": 4, "mix": 4, "chunk": 3, "image_size": 32}
TEXTS = ["put the bowl on the stove", "turn on the stove"]


@pytest.fixture
def model() -> BehaviourCloning:
    torch.manual_seed(0)
    model = BehaviourCloning(**SMALL)
    model.language.table = {text: torch.randn(5 + i, WIDTH).half() for i, text in enumerate(TEXTS)}
    return model


def batch_of(model: BehaviourCloning, size: int = 2) -> dict:
    torch.manual_seed(1)
    columns = {name: torch.randn(size, *shape).half() for name, shape in model.features.columns.items()}
    pad = torch.zeros(size, model.chunk, dtype=torch.bool)
    numbers = {STATE: torch.randn(size, 11), ACTION: torch.randn(size, model.chunk, 7), f"{ACTION}_is_pad": pad}
    return {**columns, **numbers, TASK: [TEXTS[i % 2] for i in range(size)]}


def test_it_is_what_the_loop_trains(model):
    assert isinstance(model, TrainableModel)
    defaults = {"dropout": 0.0, "tune": False, "shift": 0, "colour": 0.0, "codec": ""}
    assert model.config() == {**SMALL, **defaults, "vision": "efficientnet-lite0", "language": "minilm-l6"}
    windows = model.windows("bc")
    assert (windows.chunk, windows.history) == (3, 1)
    assert set(windows.observations) == {STATE, *model.features.columns}


def test_spatial_softmax_by_hand():
    heat = torch.full((1, 12, 2), -100.0)  # 3 rows x 4 columns, two keypoints
    heat[0, 7, 0] = 5.0  # row 1, column 3
    heat[0, 0, 1] = heat[0, 8, 1] = 2.0  # rows 0 and 2 of column 0: the mean lies between
    x0, x1, y0, y1, top0, top1 = SpatialSoftmax(3, 4)(heat)[0].tolist()
    assert (x0, y0, top0) == pytest.approx((1, 0, 5), abs=1e-5)
    assert (x1, y1, top1) == pytest.approx((-1, 0, 2), abs=1e-5)


def test_enlargement_equals_interpolation():
    coarse = torch.randn(2, 3, 4, 4)
    expected = torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bilinear").flatten(2).transpose(1, 2)
    got = _bilinear((4, 4), (8, 8)) @ coarse.flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_loss_leaves_out_steps_after_the_episode(model):
    batch = batch_of(model)
    predicted = model(batch)
    batch[ACTION] = predicted.detach() + torch.tensor([1.0] * 6 + [8.0])
    loss, metrics = model.training_step(batch)
    assert loss.item() == pytest.approx(2.0, rel=1e-5)  # (6 * 1 + 8) / 7
    assert metrics["error_gripper"].item() == pytest.approx(8.0, rel=1e-5)
    batch[ACTION][:, 1:] = 1e6
    batch[f"{ACTION}_is_pad"][:, 1:] = True
    assert model.training_step(batch)[0].item() == pytest.approx(2.0, rel=1e-4)


def test_padding_words_do_not_matter():
    torch.manual_seed(0)
    pool = LanguagePool(12, 8)
    words, mask = torch.randn(1, 3, 12), torch.ones(1, 3, dtype=torch.bool)
    longer = torch.cat([words, torch.randn(1, 2, 12)], dim=1)
    longer_mask = torch.tensor([[True, True, True, False, False]])
    torch.testing.assert_close(pool(words, mask), pool(longer, longer_mask))


def test_words_change_the_action_and_order_in_the_batch_does_not(model):
    batch = batch_of(model)
    first = model(batch)
    swapped = model({**batch, TASK: TEXTS[::-1]})
    assert not torch.allclose(first, swapped)
    turned = model({**{k: v.flip(0) for k, v in batch.items() if k != TASK}, TASK: TEXTS[::-1]})
    torch.testing.assert_close(turned.flip(0), first, atol=1e-5, rtol=1e-4)


def test_every_parameter_is_trained(model):
    model.training_step(batch_of(model))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_with_mix_a_cell_is_read_with_its_neighbours():
    """The heat of a cell moves when its right neighbour's features do; without mix it does not."""
    fine, coarse = torch.randn(1, 5, 4, 4), torch.randn(1, 6, 2, 2)
    changed = fine.clone()
    changed[..., 2, 2] += 50.0
    for mix in (0, 4):
        torch.manual_seed(0)
        reader, heats = KeypointReader((5, 4, 4), (6, 2, 2), 8, 4, None, 16, mix), []
        reader.keypoints[0].register_forward_pre_hook(lambda _, inputs, heats=heats: heats.append(inputs[0]))
        reader(fine, coarse), reader(changed, coarse)
        moved = (heats[0] != heats[1]).any(dim=-1).view(4, 4)
        assert moved[2, 2]
        assert moved[2, 1].item() is bool(mix)
        assert not moved[:, 0].any()


@pytest.mark.parametrize("mix", [-1, 10**9])
def test_sizes_have_bounds(mix):
    with pytest.raises(ValueError, match=r"mix should be an integer in 0\.\.512"):
        BehaviourCloning(**SMALL | {"mix": mix})


@pytest.mark.parametrize("mix", [0, 4])
def test_language_moves_the_keypoints(mix):
    torch.manual_seed(0)
    reader = KeypointReader((5, 4, 4), (6, 2, 2), 8, 4, 3, 16, mix)
    fine, coarse = torch.randn(1, 5, 4, 4), torch.randn(1, 6, 2, 2)
    one, other = (reader(fine, coarse, torch.randn(1, 3)) for _ in range(2))
    assert one.shape == (1, 2, 16)
    assert not torch.allclose(one, other)


def test_state_encoding_resolves_millimetres():
    """Half a centimetre apart in a range of a metre: the sines differ by more than the number itself does."""
    encoder = StateEncoder(11, 8)
    one, other = torch.zeros(1, 11), torch.zeros(1, 11)
    other[0, 2] = 0.01
    phase = (other[:, :3, None] * encoder.frequency).flatten(1)
    assert phase.sin().abs().max() > 0.2
    assert not torch.allclose(encoder(one), encoder(other))


def test_state_noise_has_the_given_deviation_and_comes_from_the_generator():
    state = np.zeros((4000, 8), np.float32)
    noise = StateNoise()
    once, again = (noise({STATE: state}, None, None, np.random.default_rng(3))[STATE] for _ in range(2))  # type: ignore[arg-type]
    np.testing.assert_array_equal(once, again)
    np.testing.assert_allclose(once.std(axis=0), [0.005] * 3 + [0.01] * 3 + [0.0007] * 2, rtol=0.06)
    with pytest.raises(ValueError, match="deviation"):
        noise({STATE: state[:, :5]}, None, None, np.random.default_rng(3))  # type: ignore[arg-type]


def test_dropout_acts_in_training_only():
    torch.manual_seed(0)
    model = BehaviourCloning(**SMALL, dropout=0.5)
    model.language.table = {text: torch.randn(5 + i, WIDTH).half() for i, text in enumerate(TEXTS)}
    batch = batch_of(model)
    assert not torch.equal(model(batch), model(batch))
    model.eval()
    assert torch.equal(model(batch), model(batch))
    with pytest.raises(ValueError, match=r"dropout should lie in \[0, 1\), got 1.0"):
        BehaviourCloning(**SMALL, dropout=1.0)
