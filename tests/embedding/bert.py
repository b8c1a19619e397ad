"""all-MiniLM-L6-v2 once more, in NumPy and float64, from the paper and the model's files, with a tokenizer made of the
vocabulary."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import BertWordPieceTokenizer


def _erf(values_TF: np.ndarray) -> np.ndarray:
    return np.reshape([*map(math.erf, values_TF.ravel().tolist())], values_TF.shape)


class Bert:
    """The model in a folder as sentence-transformers describes it: mean of all tokens, scaled to length 1."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        self._layers, self._heads = config["num_hidden_layers"], config["num_attention_heads"]
        self._epsilon = config["layer_norm_eps"]
        self._weights = {
            name: each.astype(np.float64) for name, each in load_file(folder / "model.safetensors").items()
        }
        self._tokenizer = BertWordPieceTokenizer(str(folder / "vocab.txt"), lowercase=True)
        modules = [each["type"].rpartition(".")[2] for each in json.loads((folder / "modules.json").read_text())]
        pooling = json.loads((folder / "1_Pooling/config.json").read_text())
        assert modules == ["Transformer", "Pooling", "Normalize"]
        assert [name for name, value in pooling.items() if value is True] == ["pooling_mode_mean_tokens"]

    def tokens(self, text: str) -> list[int]:
        """Their ids, [CLS] and [SEP] among them."""
        return self._tokenizer.encode(text).ids

    def embed(self, text: str) -> np.ndarray:
        """Its vector."""
        ids = self.tokens(text)
        states_TD = (
            self._weights["embeddings.word_embeddings.weight"][ids]
            + self._weights["embeddings.position_embeddings.weight"][: len(ids)]
            + self._weights["embeddings.token_type_embeddings.weight"][0]
        )
        states_TD = self._norm("embeddings.LayerNorm", states_TD)
        for number in range(self._layers):
            states_TD = self._layer(f"encoder.layer.{number}", states_TD)
        mean_D = states_TD.mean(0)
        return mean_D / np.linalg.norm(mean_D)

    def _layer(self, name: str, states_TD: np.ndarray) -> np.ndarray:
        queries_HTK, keys_HTK, values_HTK = (
            self._linear(f"{name}.attention.self.{part}", states_TD)
            .reshape(len(states_TD), self._heads, -1)
            .swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores_HTT = queries_HTK @ keys_HTK.swapaxes(1, 2) / math.sqrt(queries_HTK.shape[2])
        scores_HTT = np.exp(scores_HTT - scores_HTT.max(2, keepdims=True))
        mixed_TD = (scores_HTT / scores_HTT.sum(2, keepdims=True) @ values_HTK).swapaxes(0, 1).reshape(states_TD.shape)
        attended_TD = self._linear(f"{name}.attention.output.dense", mixed_TD)
        states_TD = self._norm(f"{name}.attention.output.LayerNorm", states_TD + attended_TD)
        inner_TF = self._linear(f"{name}.intermediate.dense", states_TD)
        inner_TF = inner_TF * (1 + _erf(inner_TF / math.sqrt(2))) / 2
        return self._norm(f"{name}.output.LayerNorm", states_TD + self._linear(f"{name}.output.dense", inner_TF))

    def _linear(self, name: str, states_TD: np.ndarray) -> np.ndarray:
        return states_TD @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, name: str, states_TD: np.ndarray) -> np.ndarray:
        centred_TD = states_TD - states_TD.mean(1, keepdims=True)
        scaled_TD = centred_TD / np.sqrt((centred_TD**2).mean(1, keepdims=True) + self._epsilon)
        return scaled_TD * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
