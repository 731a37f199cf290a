from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from policies.prts.fast_tokenizer import FIRST_CHARACTER, FastTokenizer


def smooth_chunks(n: int = 200, steps: int = 8, channels: int = 3) -> np.ndarray:
    generator = np.random.default_rng(0)
    walk = generator.normal(size=(n, steps, channels)).cumsum(1)
    return (np.tanh(0.3 * walk)).astype(np.float32)


@pytest.fixture(scope="module")
def fitted() -> FastTokenizer:
    return FastTokenizer.fit(smooth_chunks(), vocab_size=256, scale=10.0)


def test_integers_by_hand():
    tokenizer = FastTokenizer.fit(np.zeros((1, 4, 2)), vocab_size=64, scale=10.0)
    constant = np.tile([0.5, -1.0], (1, 4, 1))  # orthonormal transform of a constant c over 4 steps: 2c, then zeros
    assert tokenizer.quantise(constant).tolist() == [[10, -20, 0, 0, 0, 0, 0, 0]]
    assert tokenizer.largest == 20
    np.testing.assert_allclose(tokenizer.decode(tokenizer.encode(constant)), constant, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(chunks=arrays(np.float32, (3, 8, 3), elements=st.floats(-1, 1, width=32)))
def test_exact_round_trip_and_bounded_error(fitted, chunks):
    tokens = fitted.encode(chunks)
    assert np.array_equal(fitted.integers(tokens), fitted.quantise(chunks))
    assert np.abs(fitted.decode(tokens) - chunks).max() <= fitted.error_bound + 1e-6
    assert [sum(fitted.lengths[ids]) for ids in tokens] == [24] * 3


def test_byte_pairs_shorten_what_was_fitted(fitted):
    tokens = fitted.encode(smooth_chunks())
    assert np.mean([len(ids) for ids in tokens]) < 0.8 * fitted.coefficients


def test_values_out_of_range_are_clipped(fitted):
    chunk = np.full((1, 8, 3), 7.0, np.float32)
    assert np.abs(fitted.decode(fitted.encode(chunk)) - 1.0).max() <= fitted.error_bound


def test_save_and_load_as_json(fitted, tmp_path):
    fitted.save(tmp_path / "fast.json")
    loaded = FastTokenizer.load(tmp_path / "fast.json")
    chunks = smooth_chunks(20)
    assert loaded.encode(chunks) == fitted.encode(chunks)
    assert json.loads((tmp_path / "fast.json").read_text())["chunk"] == 8


def test_errors_say_what_to_do(fitted):
    with pytest.raises(ValueError, match=r"actions should be \(N, 8, 3\) as fitted, got \(1, 9, 3\)"):
        fitted.encode(np.zeros((1, 9, 3)))
    with pytest.raises(ValueError, match="finite"):
        fitted.encode(np.full((1, 8, 3), np.nan))
    with pytest.raises(ValueError, match="stand for 24 integers"):
        fitted.decode([fitted.encode(np.zeros((1, 8, 3)))[0] + [0]])
    with pytest.raises(ValueError, match="token ids should lie in"):
        fitted.decode([[fitted.vocab_size]])
    with pytest.raises(ValueError, match="vocab_size should be at least 59"):
        FastTokenizer.fit(smooth_chunks(), vocab_size=32)
    with pytest.raises(ValueError, match="format"):
        FastTokenizer.from_json({"format": "other"})
    with pytest.raises(ValueError, match="damaged"):
        FastTokenizer.from_json({"format": "prts-fast-1", "chunk": 8})


def test_alphabet_has_one_character_an_integer(fitted):
    vocabulary = fitted.bpe.get_vocab()
    assert all(chr(FIRST_CHARACTER + i) in vocabulary for i in range(2 * fitted.largest + 1))
