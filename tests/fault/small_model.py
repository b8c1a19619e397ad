"""A model folder for runs whose checkpoints cost nothing: the shipped tiny model's tokenizer, a 90th of its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from crucible_adapters.builtin.weights import ASSETS, qwen3_shapes

_SHIPPED = ASSETS / "tiny_qwen3"


def make_small_model(folder: Path) -> Path:
    """Writes the folder; weights are drawn from a seed."""
    shutil.copytree(_SHIPPED, folder)
    config = json.loads((_SHIPPED / "config.json").read_text())
    config |= {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:2]
    (folder / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    weights = {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.normal(0, 0.1, shape).astype(np.float32)
        for name, shape in qwen3_shapes(config)
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
