"""Checkpoints as files in memory: what is in them, where they are, and bringing one piece by piece.

    config.json, model.safetensors                        of a whole model
    adapter_config.json, adapter_model.safetensors        of a LoRA adapter, in PEFT's format
    optimizer.safetensors                                 step and moments; absent in a weights-only one
    crucible_manifest.json                                size and SHA-256 of every other file

The same state gives the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from crucible_adapters.fakes.toy.model import LORA_A, LORA_B, TARGET, Adam, Lora, ToyModel
from crucible_adapters.fakes.toy.session import ToySession
from crucible_kit.chunks import canonical_json
from crucible_kit.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, field_error

MANIFEST = "crucible_manifest.json"
OPTIMIZER = "optimizer.safetensors"
WHOLE, ADAPTER = ("config.json", "model.safetensors"), ("adapter_config.json", "adapter_model.safetensors")
_MOMENTS = ("first", "second")

Files = Mapping[str, bytes]


class Content(NamedTuple):
    """What a checkpoint holds.

    Attributes:
        base_model: the model that an adapter belongs to; empty for a whole model.
        adam: None in a weights-only one.
    """

    base_model: str
    lora: Lora | None
    weights: dict[str, np.ndarray]
    adam: Adam | None
    optim_steps: int
    weights_version: int


def to_files(session: ToySession, base_model: str, *, weights_only: bool) -> dict[str, bytes]:
    """The files of a session's state. Raises FAILED_PRECONDITION NUMERIC_ERROR."""
    session.check_weights()
    model = session.model
    if model.lora is None:
        config: dict[str, Any] = {"model_type": "crucible_toy", **model.size._asdict()}
    else:
        config = {"base_model_name_or_path": base_model, "lora_alpha": model.lora.alpha, "peft_type": "LORA"}
        config |= {"r": model.lora.rank, "target_modules": [TARGET]}
    names = WHOLE if model.lora is None else ADAPTER
    files = {names[0]: canonical_json(config), names[1]: save(model.trained)}
    if not weights_only:
        moments = {f"{kind}.{name}": array for kind in _MOMENTS for name, array in getattr(session.adam, kind).items()}
        files[OPTIMIZER] = save({"step": np.array(session.adam.step), **moments})
    about = {"base_model": base_model if model.lora else "", "optim_steps": session.optim_steps}
    return with_manifest(files, **about, weights_version=session.weights_version)


def with_manifest(files: Files, **about: object) -> dict[str, bytes]:
    """The files, and the manifest that lists them."""
    listed = {
        path: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)} for path, data in files.items()
    }
    return {**files, MANIFEST: canonical_json({"files": listed, "format": 1, **about})}


def from_files(files: Files, name: str) -> Content:
    """What a checkpoint holds, every file checked against the manifest; without one, a folder made elsewhere.

    Args:
        name: what errors call it.

    Raises:
        DataLossError: CHECKPOINT_CORRUPT naming the file.
        InvalidArgumentError: FIELD_INVALID when it is no checkpoint of a toy model.
    """
    manifest = _read_manifest(files, name)
    kind = ADAPTER if ADAPTER[0] in files else WHOLE
    missing = [path for path in kind if path not in files]
    if missing:
        needs = " or ".join(" and ".join(each) for each in (WHOLE, ADAPTER))
        raise field_error("header.files", f"holds no {missing[0]}: a checkpoint needs {needs}")
    try:
        config = json.loads(files[kind[0]])
        weights = load(files[kind[1]])
        lora = Lora(rank=int(config["r"]), alpha=float(config["lora_alpha"])) if kind == ADAPTER else None
        base_model = str(config["base_model_name_or_path"]) if kind == ADAPTER else ""
        adam = _read_adam(files[OPTIMIZER]) if OPTIMIZER in files else None
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _foreign(f"{kind[0]} or {kind[1]} can't be read: {error}") from error
    names = {LORA_A, LORA_B} if kind == ADAPTER else {"bias", TARGET}
    if set(weights) != names or any(array.dtype != np.float64 for array in weights.values()):
        raise _foreign(f"{kind[1]} must hold {', '.join(sorted(names))} in float64, it holds {', '.join(weights)}")
    return Content(
        base_model=manifest.get("base_model", "") or base_model,
        lora=lora,
        weights=weights,
        adam=adam,
        optim_steps=int(manifest.get("optim_steps", 0)),
        weights_version=int(manifest.get("weights_version", 0)),
    )


def load_into(session: ToySession, content: Content, name: str, *, weights_only: bool) -> None:
    """Puts a checkpoint's state into a session, all of it or, with FAILED_PRECONDITION CHECKPOINT_MISMATCH, nothing."""
    trained = session.model.trained
    shapes = {each: array.shape for each, array in content.weights.items()}
    if content.lora != session.model.lora or shapes != {each: array.shape for each, array in trained.items()}:
        raise _mismatch(name, "is of another model: open another session for it")
    if weights_only:
        session.replace(content.weights, Adam(), content.optim_steps)
    elif content.adam is None:
        raise _mismatch(name, "has no optimizer state: load it with weights_only")
    else:
        adam = replace(content.adam, first=dict(content.adam.first), second=dict(content.adam.second))
        session.replace(content.weights, adam, content.optim_steps)


def to_model(content: Content, name: str, base: ToyModel | None) -> ToyModel:
    """The model to sample from. Raises FAILED_PRECONDITION CHECKPOINT_MISMATCH.

    Args:
        base: the adapter's base model; None for a whole model.
    """
    if base is None:
        return ToyModel(base=content.weights)
    rows, vocab_size = base.base[TARGET].shape
    if content.weights[LORA_A].shape[1:] + content.weights[LORA_B].shape[:1] != (rows, vocab_size):
        raise _mismatch(name, "is an adapter of another model")
    return ToyModel(base=base.base, lora=content.lora, adapter=content.weights)


def _read_manifest(files: Files, name: str) -> dict[str, Any]:
    if MANIFEST not in files:
        return {}
    try:
        manifest = json.loads(files[MANIFEST])
        listed = {path: str(entry["sha256"]) for path, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(name, MANIFEST, "cannot be read") from error
    for path in sorted(listed.keys() | files.keys() - {MANIFEST}):
        expected = listed.get(path, "")
        actual = hashlib.sha256(files[path]).hexdigest() if path in files else ""
        if actual != expected:
            raise corrupt(name, path, "is not what the manifest lists", expected=expected, actual=actual)
    return manifest


def _read_adam(data: bytes) -> Adam:
    tensors = load(data)
    adam = Adam(step=int(tensors.pop("step")))
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in _MOMENTS:
            raise ValueError(f"{key} is no moment")
        getattr(adam, kind)[name] = tensor
    return adam


def corrupt(name: str, path: str, problem: str, *, expected: str = "", actual: str = "") -> DataLossError:
    """The error of a checkpoint whose bytes are not those that were saved."""
    return DataLossError(
        f"checkpoint {name}: {path} {problem} (expected {expected or 'no such file'}, is {actual or 'absent'})",
        reason="CHECKPOINT_CORRUPT",
        metadata={"file": path, "expected": expected, "actual": actual},
    )


def _mismatch(name: str, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"checkpoint {name} {problem}", reason="CHECKPOINT_MISMATCH", metadata={"checkpoint": name}
    )


def _foreign(problem: str) -> InvalidArgumentError:
    return field_error("header.files", problem)
