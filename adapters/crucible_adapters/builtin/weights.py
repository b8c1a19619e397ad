"""Builtin models: a shipped configuration and tokenizer, and weights that ship too or are made from a seed.

NumPy only. Random weights are drawn tensor by tensor from `Generator(PCG64(seed))`, so that the same seed gives the
same bytes on every machine; shipped ones are copied as they are. Tests pin the hashes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from safetensors.numpy import save

ASSETS: Final = Path(__file__).resolve().parent
INIT_STD: Final = 0.02
# By name: what else lies in the package's folder (an editor's backup) must not change the content hash.
_SHIPPED: Final = (
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_WEIGHTS: Final = "model.safetensors"


class BuiltinModel(NamedTuple):
    folders: tuple[str, ...]
    """Folders of shipped files, under this package; the first that has a file gives it."""
    seed: int | None
    """Seed of the random weights; None where model.safetensors is shipped."""


class ModelFolder(NamedTuple):
    path: Path
    sha256: str
    """Content hash, hex: SHA-256 over the lines `<sha256 of file>  <name>\\n` of all files, sorted by name."""


MODELS: Final[dict[str, BuiltinModel]] = {
    "tiny-qwen3": BuiltinModel(folders=("tiny_qwen3",), seed=0),
    # what scripts/make_tiny_base.py makes of the first
    "tiny-qwen3-base": BuiltinModel(folders=("tiny_qwen3_base", "tiny_qwen3"), seed=None),
}


def qwen3_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor that transformers saves for Qwen3ForCausalLM; a linear layer's is (out, in)."""
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (queries, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (keys, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, queries)
        yield f"{prefix}.self_attn.q_norm.weight", (head,)
        yield f"{prefix}.self_attn.k_norm.weight", (head,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (inner, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (config["vocab_size"], hidden)


def qwen3_initial_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """Initial float32 weights of a Qwen3ForCausalLM, by tensor name: norms 1, the rest normal with mean 0 and std 0.02.

    `config` is the model's config.json without attention biases; `seed` is 0 or more.
    """
    if config.get("attention_bias"):
        raise ValueError("attention_bias is true: builtin models have no biases; leave it out")
    generator = np.random.Generator(np.random.PCG64(seed))
    weights: dict[str, np.ndarray] = {}
    for name, shape in qwen3_shapes(config):
        if len(shape) == 1:
            weights[name] = np.ones(shape, dtype=np.float32)
        else:
            weights[name] = generator.standard_normal(shape, dtype=np.float32) * np.float32(INIT_STD)
    return weights


def materialise(name: str, target: Path) -> ModelFolder:
    """Writes builtin model `name` as a complete transformers folder at `target`, all at once; returns it with its hash.

    Where `target` already holds exactly this model nothing is written. Raises ValueError for an unknown name and
    FileExistsError where `target` holds anything else (another version's files, or damaged ones).
    """
    files = _files(name)
    if not target.exists():
        _write(files, target)
    if not _holds(target, files):
        raise FileExistsError(
            f"{target} is not builtin model {name} as this version makes it (another version's, or damaged): "
            "delete that folder or give another"
        )
    return ModelFolder(target, _content_hash(files))


def content_hash(name: str) -> str:
    """The hash that `materialise` returns for `name`, without writing anything: to name a folder by what it holds."""
    return _content_hash(_files(name))


def _files(name: str) -> dict[str, bytes]:
    model = MODELS.get(name)
    if model is None:
        near = difflib.get_close_matches(name, MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(MODELS))}"
        raise ValueError(f"no builtin model is named {name!r}: {hint}")
    files = {file: _shipped(model, file) for file in _SHIPPED}
    if model.seed is None:
        return files | {_WEIGHTS: _shipped(model, _WEIGHTS)}
    weights = qwen3_initial_weights(json.loads(files["config.json"]), model.seed)
    return files | {_WEIGHTS: save(weights, metadata={"format": "pt"})}


def _shipped(model: BuiltinModel, file: str) -> bytes:
    paths = [ASSETS / folder / file for folder in model.folders]
    return next((path for path in paths if path.is_file()), paths[0]).read_bytes()


def _content_hash(files: dict[str, bytes]) -> str:
    lines = (f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _holds(folder: Path, files: dict[str, bytes]) -> bool:
    # Names first, so that a foreign folder is not read.
    if not folder.is_dir() or {path.name for path in folder.iterdir()} != set(files):
        return False
    return all((folder / name).is_file() and (folder / name).read_bytes() == data for name, data in files.items())


def _write(files: dict[str, bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        for name, data in files.items():
            with open(fresh / name, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)
        _sync_folder(fresh)
        try:
            fresh.rename(target)
        except OSError:
            # Another process was first; materialise then checks that it wrote the same.
            if not target.is_dir():
                raise
        _sync_folder(target.parent)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
