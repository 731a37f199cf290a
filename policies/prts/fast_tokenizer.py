"""FAST action tokens (arXiv 2501.09747): cosine transform over the chunk, quantise, byte-pair encode.

A chunk (T, A) of actions in [-1, 1] becomes T * A integers, low frequencies first and all channels of a frequency
side by side; each integer is one character, and byte-pair encoding, fitted on a data set, joins frequent neighbours.
The alphabet holds every integer an action in range can give, so any chunk of the fitted size can be encoded, and
decoding gives back exactly the integers that were encoded. Saved as JSON.

Shapes: N chunks, T steps of a chunk, A action channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from embodied.io import write_json

FORMAT = "prts-fast-1"
FIRST_CHARACTER = 0x4E00  # printable, no surrogate, no whitespace: any integer offset stays one character


@dataclass(frozen=True)
class FastTokenizer:
    """Chunks of exactly `chunk` steps and `action_dim` channels to token ids and back.

    `scale` is the number of quantisation steps for a coefficient of 1: the error of a decoded action is at most
    `error_bound`. Actions beyond [-1, 1] are clipped first.
    """

    chunk: int
    action_dim: int
    scale: float
    bpe: Tokenizer

    @classmethod
    def fit(cls, actions_NTA: np.ndarray, vocab_size: int = 512, scale: float = 10.0) -> FastTokenizer:
        """Learns the byte-pair merges from chunks (N, T, A). ValueError when the alphabet alone exceeds the size."""
        if actions_NTA.ndim != 3 or not actions_NTA.size:
            raise ValueError(f"actions should be (N, T, A) with N, T, A > 0, got {actions_NTA.shape}")
        tokenizer = cls(actions_NTA.shape[1], actions_NTA.shape[2], scale, Tokenizer(BPE()))
        alphabet = [chr(FIRST_CHARACTER + i) for i in range(2 * tokenizer.largest + 1)]
        if vocab_size < len(alphabet):
            raise ValueError(
                f"vocab_size should be at least {len(alphabet)} (every integer a chunk of {tokenizer.chunk} steps "
                f"can give at scale {scale}), got {vocab_size}: enlarge it or lower the scale"
            )
        texts = [_text(row, tokenizer.largest) for row in tokenizer.quantise(actions_NTA)]
        trainer = BpeTrainer(vocab_size=vocab_size, initial_alphabet=alphabet, show_progress=False, special_tokens=[])
        tokenizer.bpe.train_from_iterator(texts, trainer)
        return tokenizer

    @property
    def largest(self) -> int:
        """The largest integer an in-range chunk can give: an orthonormal transform of T values of at most 1."""
        return math.ceil(math.sqrt(self.chunk) * self.scale)

    @property
    def vocab_size(self) -> int:
        return self.bpe.get_vocab_size()

    @property
    def coefficients(self) -> int:
        """Integers of one chunk: T * A. Decoding needs exactly so many."""
        return self.chunk * self.action_dim

    @property
    def error_bound(self) -> float:
        """No decoded action differs by more: T coefficients, each off by at most half a step, orthonormal transform."""
        return 0.5 / self.scale * math.sqrt(self.chunk)

    @cached_property
    def lengths(self) -> np.ndarray:
        """(vocab_size,) how many integers each token stands for: sampling ends when they add up to `coefficients`."""
        return np.array([len(self.bpe.id_to_token(i)) for i in range(self.vocab_size)])

    def quantise(self, actions_NTA: np.ndarray) -> np.ndarray:
        """(N, T, A) -> (N, T * A) integers, low frequencies first. ValueError for another T or A, or NaN."""
        from scipy.fft import dct

        self._check(actions_NTA)
        spectrum_NTA = dct(np.clip(actions_NTA, -1.0, 1.0).astype(np.float64), type=2, norm="ortho", axis=1)
        return np.rint(spectrum_NTA * self.scale).astype(np.int64).reshape(len(actions_NTA), -1)

    def dequantise(self, integers_NC: np.ndarray) -> np.ndarray:
        """(N, T * A) integers -> (N, T, A) float32 actions."""
        from scipy.fft import idct

        spectrum_NTA = integers_NC.reshape(-1, self.chunk, self.action_dim) / self.scale
        return idct(spectrum_NTA, type=2, norm="ortho", axis=1).astype(np.float32)

    def encode(self, actions_NTA: np.ndarray) -> list[list[int]]:
        """(N, T, A) -> N lists of token ids, of varying length."""
        texts = [_text(row, self.largest) for row in self.quantise(actions_NTA)]
        return [encoding.ids for encoding in self.bpe.encode_batch(texts)]

    def integers(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """N lists of token ids -> (N, T * A) integers. ValueError when a list does not stand for exactly T * A."""
        rows = []
        for ids in tokens:
            text = "".join(self._token(i) for i in ids)
            if len(text) != self.coefficients:
                raise ValueError(
                    f"tokens should stand for {self.coefficients} integers ({self.chunk} steps of {self.action_dim}), "
                    f"got {len(text)} from {len(ids)} tokens: sample under `lengths`, or use their own tokenizer"
                )
            rows.append([ord(character) - FIRST_CHARACTER - self.largest for character in text])
        return np.array(rows, dtype=np.int64).reshape(len(tokens), self.coefficients)

    def decode(self, tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """N lists of token ids -> (N, T, A) float32 actions, within `error_bound` of what was encoded."""
        return self.dequantise(self.integers(tokens))

    def to_json(self) -> dict:
        return {
            "format": FORMAT,
            "chunk": self.chunk,
            "action_dim": self.action_dim,
            "scale": self.scale,
            "bpe": json.loads(self.bpe.to_str()),
        }

    @classmethod
    def from_json(cls, content: dict) -> FastTokenizer:
        """What `to_json` gave. ValueError for anything else."""
        if content.get("format") != FORMAT:
            raise ValueError(
                f"a FAST tokenizer should have format {FORMAT!r}, got {content.get('format')!r}: fit again"
            )
        try:
            bpe = Tokenizer.from_str(json.dumps(content["bpe"]))
            return cls(int(content["chunk"]), int(content["action_dim"]), float(content["scale"]), bpe)
        except KeyError as error:
            raise ValueError(f"a FAST tokenizer should have key {error}: the file is damaged, fit again") from error

    def save(self, path: Path) -> None:
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> FastTokenizer:
        return cls.from_json(json.loads(path.read_text()))

    def _token(self, token: int) -> str:
        text = self.bpe.id_to_token(int(token)) if 0 <= token < self.vocab_size else None
        if text is None:
            raise ValueError(f"token ids should lie in 0 .. {self.vocab_size - 1}, got {token}")
        return text

    def _check(self, actions_NTA: np.ndarray) -> None:
        if actions_NTA.ndim != 3 or actions_NTA.shape[1:] != (self.chunk, self.action_dim):
            raise ValueError(
                f"actions should be (N, {self.chunk}, {self.action_dim}) as fitted, got {actions_NTA.shape}: "
                "cut chunks of that size, or fit a tokenizer for the new one"
            )
        if not np.isfinite(actions_NTA).all():
            raise ValueError("actions should be finite numbers, got NaN or infinity: repair the data")


def _text(integers_C: np.ndarray, largest: int) -> str:
    return "".join(chr(FIRST_CHARACTER + largest + int(i)) for i in integers_C)
