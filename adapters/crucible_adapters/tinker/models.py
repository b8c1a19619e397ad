"""Base models: what is known of them, and the LoRA adapters that Tinker trains on them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible.port.training.v1 import training_pb2
from crucible_adapters.tinker.options import TinkerModel
from crucible_kit.errors import capability_missing, field_error

UNKNOWN = 2**31 - 1
"""In place of a size that is not known: what is below it goes to Tinker, which refuses what its model does not take."""
_MODULES = "training.lora_modules"
_GROUPS = ("train_attention", "train_mlp", "train_unembedding")


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """A base model.

    Attributes:
        name: at Tinker.
        matrices: by group the matrices that are adapted: name, inputs + outputs, how many there are. Empty: unknown.
    """

    name: str
    vocab_size: int = UNKNOWN
    max_sequence_tokens: int = UNKNOWN
    matrices: dict[str, list[tuple[str, int, int]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """The adapter to train, as Tinker takes it."""

    rank: int
    train_attention: bool
    train_mlp: bool
    train_unembedding: bool

    def parameters(self, facts: ModelFacts) -> int:
        """Number of its parameters; 0: unknown."""
        return sum(self.rank * sizes * count for _, sizes, count in self._chosen(facts))

    def describe(self, facts: ModelFacts) -> training_pb2.LoraConfig:
        """As the wire shows it: with its matrices where they are known, otherwise with the groups."""
        modules = [name for name, _, _ in self._chosen(facts)]
        described = training_pb2.LoraConfig(rank=self.rank, alpha=self.rank, target_modules=modules)
        if not modules:
            for name in _GROUPS:
                setattr(described, name, getattr(self, name))
        return described

    def _chosen(self, facts: ModelFacts) -> list[tuple[str, int, int]]:
        return [each for name in _GROUPS if getattr(self, name) for each in facts.matrices.get(name, [])]


def parse_lora(config: training_pb2.LoraConfig) -> Lora:
    """The adapter to train. Raises CAPABILITY_MISSING, FIELD_INVALID."""
    if config.target_modules:
        raise capability_missing("training", _MODULES, "leave lora.target_modules out, Tinker has groups")
    if config.HasField("alpha") and config.alpha != config.rank:
        raise capability_missing(
            "training",
            _MODULES,
            f"lora.alpha is {config.alpha:g}, but Tinker sets an adapter's scale itself: leave it out or give the rank",
        )
    groups = {
        "train_attention": config.train_attention or not config.HasField("train_attention"),
        "train_mlp": config.train_mlp or not config.HasField("train_mlp"),
        "train_unembedding": config.train_unembedding,
    }
    if not any(groups.values()):
        raise field_error("lora", "adapts nothing: set train_mlp, train_attention or train_unembedding")
    return Lora(rank=config.rank, **groups)


def model_facts(entry: TinkerModel, *, told_max_tokens: int | None) -> ModelFacts:
    """What the settings, the model's folder and Tinker tell. Reads a file.

    Raises:
        InvalidArgumentError: MANIFEST_INVALID when the folder has no config.json that can be read.
    """
    config = _read_config(entry.folder) if entry.folder else {}
    longest = entry.max_sequence_tokens or told_max_tokens or config.get("max_position_embeddings")
    return ModelFacts(
        name=entry.name,
        vocab_size=entry.vocab_size or config.get("vocab_size") or UNKNOWN,
        max_sequence_tokens=longest or UNKNOWN,
        matrices=_matrices(config) if config else {},
    )


def _read_config(folder: str) -> dict[str, Any]:
    try:
        config = json.loads((Path(folder) / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise field_error(
            "options.models.folder",
            f"{folder!r} has no config.json that can be read ({type(error).__name__}): name the folder of a model",
            reason="MANIFEST_INVALID",
        ) from error
    return config if isinstance(config, dict) else {}


def _matrices(config: dict[str, Any]) -> dict[str, list[tuple[str, int, int]]]:
    """Of the dense models that Llama and Qwen are; of others nothing."""
    hidden, layers, heads = (config.get(key) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads"))
    inner, vocabulary = config.get("intermediate_size"), config.get("vocab_size")
    experts = any("expert" in key for key in config)
    if experts or not all(isinstance(each, int) and each > 0 for each in (hidden, layers, heads, inner, vocabulary)):
        return {}
    assert isinstance(hidden, int) and isinstance(layers, int) and isinstance(heads, int)
    assert isinstance(inner, int) and isinstance(vocabulary, int)
    width = config.get("head_dim") or hidden // heads
    query, keys = heads * width, (config.get("num_key_value_heads") or heads) * width
    return {
        "train_attention": [
            (name, hidden + size, layers)
            for name, size in (("k_proj", keys), ("o_proj", query), ("q_proj", query), ("v_proj", keys))
        ],
        "train_mlp": [(name, hidden + inner, layers) for name in ("down_proj", "gate_proj", "up_proj")],
        "train_unembedding": [("lm_head", hidden + vocabulary, 1)],
    }
