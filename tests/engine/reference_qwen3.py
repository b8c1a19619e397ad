"""Qwen3 with LoRA written out from its description, in float64; it shares nothing with transformers.

    x = E[token]
    x = x + O(attention(norm(x)))      queries and keys normed per head, then rotated; query heads share key heads
    x = x + down(silu(gate(norm(x))) * up(norm(x)))
    logits = W norm(x)                 W is E where the head is tied

Every matrix M is M + alpha / rank * B A where an adapter has it. Norms and angles are taken in float32, as Qwen3 does
in every type: in float64 the two models would be 1e-6 apart.

Shape suffixes: T tokens, D hidden size, H query heads, K key/value heads, S size of a head, V vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file

Update = tuple[torch.Tensor, torch.Tensor, float]
"""A (rank, in), B (out, rank), alpha / rank."""


class ReferenceQwen3:
    """A Qwen3 folder's model; `weights` by stored name, float64."""

    def __init__(self, folder: Path, *, trained: bool = False) -> None:
        self.config = json.loads((folder / "config.json").read_bytes())
        stored = load_file(folder / "model.safetensors")
        self.weights = {name: tensor.double().requires_grad_(trained) for name, tensor in stored.items()}
        self.updates: dict[str, Update] = {}

    def __call__(self, *, input_ids: torch.Tensor, use_cache: bool = False) -> SimpleNamespace:
        """logits (1, T, V) of one sequence."""
        x_TD = self._embed(input_ids[0])
        for number in range(self.config["num_hidden_layers"]):
            layer = f"model.layers.{number}"
            x_TD = x_TD + self._attention(f"{layer}.self_attn", self._norm(x_TD, f"{layer}.input_layernorm"))
            x_TD = x_TD + self._mlp(f"{layer}.mlp", self._norm(x_TD, f"{layer}.post_attention_layernorm"))
        return SimpleNamespace(logits=self._linear("lm_head", self._norm(x_TD, "model.norm"))[None])

    def _embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        x_TD = self.weights["model.embed_tokens.weight"][ids_T]
        # transformers gives the padding token's embedding no gradient, wherever the token stands
        return torch.where((ids_T == self.config["pad_token_id"])[:, None], x_TD.detach(), x_TD)

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        tied = name == "lm_head" and self.config["tie_word_embeddings"]
        y = x @ self.weights["model.embed_tokens.weight" if tied else f"{name}.weight"].T
        if name in self.updates:
            a, b, scale = self.updates[name]
            y = y + scale * (x @ a.T @ b.T)
        return y

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        single = x.float()
        inverse = (single.square().mean(-1, keepdim=True) + self.config["rms_norm_eps"]).rsqrt()
        return (single * inverse).double() * self.weights[f"{name}.weight"]

    def _attention(self, name: str, x_TD: torch.Tensor) -> torch.Tensor:
        size = self.config["head_dim"]
        heads = {
            side: self._linear(f"{name}.{side}_proj", x_TD).unflatten(-1, (-1, size)).transpose(0, 1) for side in "qkv"
        }
        q_HTS = self._rotate(self._norm(heads["q"], f"{name}.q_norm"))
        k_KTS = self._rotate(self._norm(heads["k"], f"{name}.k_norm"))
        shared = self.config["num_attention_heads"] // self.config["num_key_value_heads"]
        # query head h reads key head h // shared
        k_HTS, v_HTS = (each.repeat_interleave(shared, 0) for each in (k_KTS, heads["v"]))
        scores_HTT = q_HTS @ k_HTS.transpose(-1, -2) / math.sqrt(size)
        future_TT = torch.ones(len(x_TD), len(x_TD), dtype=torch.bool).triu(1)
        mixed_HTS = scores_HTT.masked_fill(future_TT, -math.inf).softmax(-1) @ v_HTS
        return self._linear(f"{name}.o_proj", mixed_HTS.transpose(0, 1).flatten(1))

    def _rotate(self, x_HTS: torch.Tensor) -> torch.Tensor:
        """Rotary positions (Su et al. 2021): pairs are (i, i + S / 2), turned by position * theta ** (-2 i / S)."""
        half = x_HTS.shape[-1] // 2
        theta = self.config["rope_parameters"]["rope_theta"]
        angle_TS = torch.arange(x_HTS.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
        cos_TS, sin_TS = angle_TS.cos().double(), angle_TS.sin().double()
        one, two = x_HTS[..., :half], x_HTS[..., half:]
        return torch.cat([one * cos_TS - two * sin_TS, two * cos_TS + one * sin_TS], dim=-1)

    def _mlp(self, name: str, x_TD: torch.Tensor) -> torch.Tensor:
        gate = self._linear(f"{name}.gate_proj", x_TD)
        return self._linear(f"{name}.down_proj", gate * gate.sigmoid() * self._linear(f"{name}.up_proj", x_TD))


def adapters_of(
    parameters: Mapping[str, torch.Tensor], scale: float
) -> tuple[dict[str, torch.Tensor], dict[str, Update]]:
    """Leaves to differentiate, by PEFT's names, and the updates that they make, by layer."""
    leaves = {name: tensor.detach().double().clone().requires_grad_() for name, tensor in parameters.items()}
    updates = {}
    for name, a in leaves.items():
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            updates[layer.removeprefix("base_model.model.")] = (a, leaves[f"{layer}.lora_B.weight"], scale)
    return leaves, updates
