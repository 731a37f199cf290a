"""A frozen language tower: instructions to word features, kept in a table by text.

A word's feature is its contextual embedding (a paraphrase lands near the original) next to its own embedding before
attention ("on the ramekin" and "next to the ramekin" are 0.995 alike once pooled over contextual embeddings).
The table can be saved beside a frame cache, so that a machine without the weights can train on known instructions.
Shapes: B texts, L words (word pieces with the start and end marks), E = 2 x 384.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save

from embodied.frozen import frozen_weights, locate
from embodied.io import write_atomic

WIDTH = 768
MAX_WORDS = 64


class LanguageTower:
    """Word features of a frozen MiniLM. Loads the network at the first text that the table does not hold."""

    def __init__(self, name: str = "minilm-l6") -> None:
        self.weights = frozen_weights(name)
        self.name = name
        self.table: dict[str, torch.Tensor] = {}
        self._network: tuple[Any, Any] | None = None

    @property
    def digest(self) -> str:
        content = json.dumps([self.weights.to_json(), WIDTH, MAX_WORDS], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def __call__(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """B texts -> features (B, L, E) float32, zero where there is no word, and mask (B, L), true at words."""
        self.learn(texts)
        rows = [self.table[text].float() for text in texts]
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(features.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        return features, mask

    def learn(self, texts: Iterable[str]) -> None:
        """Adds texts to the table."""
        for text in dict.fromkeys(texts):
            if text not in self.table:
                self.table[text] = self._encode(text)

    def save(self, path: Path) -> None:
        """Writes the table as safetensors: one float16 (L, E) per text."""
        texts = sorted(self.table)
        metadata = {"texts": json.dumps(texts), "digest": self.digest}
        write_atomic(path, save({str(i): self.table[text] for i, text in enumerate(texts)}, metadata))

    def load(self, path: Path) -> None:
        """Adds a saved table. ValueError when other weights made it."""
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("digest") != self.digest:
                raise ValueError(
                    f"{path} should be made by {self.name} {self.digest[:12]}: delete it to compute it again"
                )
            for i, text in enumerate(json.loads(metadata["texts"])):
                self.table[text] = file.get_tensor(str(i))

    @torch.inference_mode()
    def _encode(self, text: str) -> torch.Tensor:
        """float16 (L, E): [after the last layer, before the first], each scaled to unit mean square."""
        tokenizer, network = self._load()
        words = tokenizer([text], truncation=True, max_length=MAX_WORDS, return_tensors="pt")
        out = network(**words, output_hidden_states=True)
        layers = (out.hidden_states[-1][0], out.hidden_states[0][0])
        return torch.cat([x / x.square().mean(dim=-1, keepdim=True).sqrt() for x in layers], dim=-1).half()

    def _load(self) -> tuple[Any, Any]:
        if self._network is None:
            from safetensors.torch import load_file
            from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

            files = locate(self.name)
            with torch.random.fork_rng(devices=[]):  # a network made on first use draws nothing from the caller's
                network = BertModel(BertConfig(**json.loads(files["config.json"].read_text())), add_pooling_layer=False)
            state = load_file(files["model.safetensors"])
            missing, _ = network.load_state_dict(state, strict=False)
            if missing:
                raise ValueError(f"{files['model.safetensors']} lacks {missing[0]}: reinstall {self.weights.package}")
            tokenizer = PreTrainedTokenizerFast(
                tokenizer_file=str(files["tokenizer.json"]), pad_token="[PAD]", unk_token="[UNK]"
            )
            self._network = tokenizer, network.eval().requires_grad_(False)
        return self._network
