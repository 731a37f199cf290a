"""A tiny PRTSNano with made-up word features and image maps: no frozen weights are loaded. Use the fixture `nano`."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from embodied.language import WIDTH
from embodied.schema import ACTION, STATE, TASK
from policies.prts.nano import STATE_6D, PRTSNano

TEXTS = ("pick up the cup", "open it", "put the black bowl on the left plate")
BACKBONE = {
    "width": 32,
    "layers": 2,
    "heads": 2,
    "key_value_heads": 1,
    "mlp": 48,
    "grid": [2, 2],
    "keypoints": 4,
    "hidden": 8,
    "direct": True,
}
METHOD = {
    "chunk": 4,
    "fast_vocab": 128,
    "crl": {"width": 32, "layers": 2, "features": 16, "last_layer_init": 0.1, "gamma": 0.9},
    "flow": {"width": 32, "layers": 2, "heads": 2, "steps": 3, "temperature": 1.0},
}


def tiny(seed: int = 0, **method) -> PRTSNano:
    torch.manual_seed(seed)
    model = PRTSNano(BACKBONE, {**METHOD, **method})
    model.fit_tokenizer(chunks(64).numpy())
    for i, text in enumerate(TEXTS):
        words = torch.randn(len(text.split()) + 2, WIDTH, generator=torch.Generator().manual_seed(i))
        model.language.table[text] = words.half()
    return model


def chunks(count: int, seed: int = 0) -> torch.Tensor:
    walk = np.random.default_rng(seed).normal(size=(count, 4, 7)).cumsum(1)
    return torch.from_numpy(np.tanh(0.5 * walk).astype(np.float32))


def batch_for(model: PRTSNano, texts: tuple[str, ...], seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    count = len(texts)
    batch = {
        name: 8 * torch.randn(count, *shape, generator=generator) for name, shape in model.features.columns.items()
    }
    batch[STATE] = torch.randn(count, STATE_6D, generator=generator)
    batch[ACTION] = chunks(count, seed)
    batch[f"{ACTION}_is_pad"] = torch.zeros(count, 4, dtype=torch.bool)
    batch[TASK] = list(texts)
    batch["steps_to_go"] = torch.arange(count)
    batch["success"] = torch.ones(count, dtype=torch.int8)
    return batch


@pytest.fixture(scope="session")
def nano() -> SimpleNamespace:
    """`tiny(seed, **method)` makes a model, `batch_for(model, texts, seed)` a batch for it."""
    five = (TEXTS[0], TEXTS[2], TEXTS[0], TEXTS[1], TEXTS[2])
    return SimpleNamespace(
        tiny=tiny, chunks=chunks, batch_for=batch_for, texts=TEXTS, five=five, backbone=BACKBONE, method=METHOD
    )
