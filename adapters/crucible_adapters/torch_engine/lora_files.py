"""A LoRA adapter's files in PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from crucible_adapters.torch_engine.lora import LoraAdapter
from crucible_adapters.torch_engine.lora_config import adapter_config, parse_adapter_config
from crucible_adapters.torch_engine.lora_spec import LoraSpec
from crucible_adapters.torch_engine.models import LoadedModel, adapter_dtype
from crucible_adapters.torch_engine.tensor_files import corrupt, mismatch, read_tensors, save_tensors
from crucible_kit.errors import InvalidArgumentError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def write_adapter(adapter: LoraAdapter, folder: Path, *, base_model_name: str) -> None:
    """Write both files; `base_model_name` is where other tools look for the base model."""
    config = adapter_config(adapter.spec, adapter.target_modules, base_model_name)
    (folder / ADAPTER_CONFIG).write_bytes(json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    save_tensors(adapter.named_parameters(), folder / ADAPTER_WEIGHTS)


def read_spec(folder: Path) -> tuple[LoraSpec, str]:
    """What the adapter in `folder` is, and the base model that it names.

    Raises INVALID_ARGUMENT for an adapter that the engine cannot compute with, DataLossError CHECKPOINT_CORRUPT for a
    file that is not JSON.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise corrupt(folder, ADAPTER_CONFIG, f"cannot be read ({error})") from error
    name = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return parse_adapter_config(config, field=ADAPTER_CONFIG), name or ""


def load_adapter(base: LoadedModel, folder: Path) -> LoadedModel:
    """`base` computing with the adapter in `folder`, which is only read.

    Raises FailedPreconditionError CHECKPOINT_MISMATCH for an adapter of another model.
    """
    spec, _ = read_spec(folder)
    try:
        adapter = base.slots.create(spec, adapter_dtype(base.dtype), trainable=False)
    except InvalidArgumentError as error:
        raise mismatch(folder, f"is of another model: {error.fields[0].description}") from error
    copy_tensors(read_adapter_tensors(folder, adapter, base), adapter.named_parameters())
    return replace(base, adapter=adapter)


def read_adapter_tensors(folder: Path, adapter: LoraAdapter, base: LoadedModel) -> dict[str, torch.Tensor]:
    """The file's tensors by name, exactly those of `adapter`.

    PEFT also stores the frozen embeddings when the unembedding is adapted: they are checked against the base model.
    Raises FailedPreconditionError CHECKPOINT_MISMATCH for another adapter: other layers, rank or scale.
    """
    spec, _ = read_spec(folder)
    if spec.scale != adapter.spec.scale:
        raise mismatch(
            folder,
            f"has alpha {spec.alpha:g} at rank {spec.rank}, "
            f"the session alpha {adapter.spec.alpha:g} at rank {adapter.spec.rank}",
        )
    tensors = read_tensors(folder / ADAPTER_WEIGHTS)
    ours = adapter.named_parameters()
    frozen = {name: tensors.pop(name) for name in list(tensors) if ".lora_" not in name}
    _check_frozen(folder, frozen, base)
    for name in sorted(ours.keys() ^ tensors.keys()):
        problem = "lacks" if name in ours else "has, and the session has not,"
        raise mismatch(folder, f"{problem} {name}: open the session with the layers that the checkpoint adapts")
    for name, tensor in tensors.items():
        if tensor.shape != ours[name].shape:
            raise mismatch(folder, f"has {name} of shape {list(tensor.shape)}, the session {list(ours[name].shape)}")
        if not torch.isfinite(tensor).all():
            raise mismatch(folder, f"has numbers in {name} that are not finite")
    return tensors


@torch.no_grad()
def copy_tensors(source: Mapping[str, torch.Tensor], target: Mapping[str, torch.Tensor]) -> None:
    """Copy by name, in place."""
    for name, tensor in source.items():
        target[name].copy_(tensor)


def _check_frozen(folder: Path, frozen: Mapping[str, torch.Tensor], base: LoadedModel) -> None:
    weights = base.net.state_dict()
    for name, tensor in frozen.items():
        ours = weights.get(name.removeprefix("base_model.model.").replace(".base_layer.", "."))
        same = ours is not None and ours.shape == tensor.shape and torch.equal(ours.cpu(), tensor.to(ours.dtype))
        if not same:
            raise mismatch(folder, f"has {name}, which is no LoRA weight and not the base model's: export it without")
