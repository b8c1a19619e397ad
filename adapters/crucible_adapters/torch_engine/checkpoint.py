"""Checkpoints: atomic, hashed folders that transformers or PEFT can load.

    tokenizer files                             from the model's folder
    config.json, generation_config.json         of a whole model
    model.safetensors                           its weights, tied ones once
    adapter_config.json                         of a LoRA adapter
    adapter_model.safetensors                   its matrices
    optimizer.safetensors                       moments by parameter name; absent in a weights-only one
    crucible_manifest.json                      size and SHA-256 of every other file; written last

The same state gives the same bytes: safetensors files carry one metadata key (two or more are written in an order that
differs from process to process) and JSON is written sorted.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers.core_model_loading import revert_weight_conversion

from crucible_adapters.torch_engine.lora_files import (
    ADAPTER_CONFIG,
    copy_tensors,
    read_adapter_tensors,
    read_spec,
    write_adapter,
)
from crucible_adapters.torch_engine.lora_spec import LoraSpec
from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.optimizer import AdamWState
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_adapters.torch_engine.tensor_files import corrupt, mismatch, read_tensors, save_tensors
from crucible_kit.adapter import distribution_version
from crucible_kit.chunks import canonical_json, fsync_folder, sha256_file
from crucible_kit.errors import AlreadyExistsError
from crucible_kit.faults import fault_point

MANIFEST = "crucible_manifest.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TEMPORARY_PREFIX = ".partial-"
_FORMAT = 1
_MOMENTS = ("exp_avg", "exp_avg_sq", "master")
# what travels from the model's folder as it is; config.json is rewritten with the trained dtype
_TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One file of a checkpoint."""

    path: str
    """Relative to the checkpoint's folder, with '/'."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, as its manifest describes it."""

    folder: Path
    files: tuple[CheckpointFile, ...]
    """Sorted by path, without the manifest."""
    manifest_sha256: str
    optim_steps: int
    weights_version: int
    dtype: str
    """Type of the model's weights."""
    base_model: str
    """Folder or name of the model that a LoRA adapter belongs to; empty for a whole model."""
    lora: LoraSpec | None = None
    """The adapter in it; None for a whole model."""

    @property
    def has_optimizer(self) -> bool:
        """Whether training can go on from it exactly."""
        return any(file.path == OPTIMIZER for file in self.files)


def save_checkpoint(session: TrainingSession, folder: Path, *, weights_only: bool = False) -> Checkpoint:
    """Write the session's weights, and its optimizer unless `weights_only`, as `folder`.

    The folder appears as a whole, durable, or not at all. Saving the same content again is OK; a folder with other
    content raises AlreadyExistsError CHECKPOINT_EXISTS.
    """

    session.check_weights()
    model = session.model
    partial = new_partial(folder)
    try:
        _copy_files(model, partial, _TOKENIZER_FILES)
        if model.adapter is None:
            _copy_files(model, partial, ("generation_config.json",))
            _write_config(model, partial)
            save_tensors(_weights(model), partial / WEIGHTS)
        else:
            write_adapter(model.adapter, partial, base_model_name=session.base_model_name)
        fault_point("engine.save.mid")
        if not weights_only:
            save_tensors(_optimizer_tensors(session.optimizer), partial / OPTIMIZER)
        write_manifest(
            partial,
            base_model="" if model.adapter is None else str(model.folder),
            dtype=str(model.dtype).removeprefix("torch."),
            optim_steps=session.optim_steps,
            weights_version=session.weights_version,
        )
        return publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_manifest(partial: Path, *, base_model: str, dtype: str, optim_steps: int, weights_version: int) -> None:
    """Describe the files of a checkpoint that is otherwise complete; see Checkpoint for the fields."""
    files = {path.name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size} for path in partial.iterdir()}
    manifest = {
        "base_model": base_model,
        "dtype": dtype,
        "engine_version": distribution_version(),
        "files": files,
        "format": _FORMAT,
        "optim_steps": optim_steps,
        "weights_version": weights_version,
    }
    (partial / MANIFEST).write_bytes(canonical_json(manifest))


def new_partial(folder: Path) -> Path:
    """A temporary folder beside `folder` to write a checkpoint into; `sweep_partial` removes it after a crash."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))


def publish(partial: Path, folder: Path) -> Checkpoint:
    """Make a complete partial folder durable and give it its name, unless the same content is there already."""
    for path in sorted(partial.iterdir()):
        # safetensors makes files that nobody else may read
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())
    partial.chmod(0o755)
    fsync_folder(partial)
    if not folder.exists():
        fault_point("engine.publish.before")
        partial.rename(folder)
        fsync_folder(folder.parent)
        fault_point("engine.publish.after")
    elif read_manifest(folder).files != read_manifest(partial).files:
        raise AlreadyExistsError(
            f"checkpoint {folder.name} exists with other content: save under another name",
            reason="CHECKPOINT_EXISTS",
            metadata={"name": folder.name},
        )
    return read_manifest(folder)


def read_manifest(folder: Path) -> Checkpoint:
    """A checkpoint's description. Raises DataLossError CHECKPOINT_CORRUPT for a manifest that is not ours."""
    checkpoint = _read_manifest(folder)
    is_adapter = any(file.path == ADAPTER_CONFIG for file in checkpoint.files)
    return replace(checkpoint, lora=read_spec(folder)[0]) if is_adapter else checkpoint


def verify(folder: Path) -> Checkpoint:
    """Check every file against the manifest. Raises DataLossError CHECKPOINT_CORRUPT naming file and hashes."""
    # the adapter's configuration only after its hash: a damaged one must be told as such
    for file in _read_manifest(folder).files:
        path = folder / file.path
        if not path.is_file():
            raise corrupt(folder, file.path, "is missing", expected=file.sha256)
        actual = sha256_file(path)
        if actual != file.sha256:
            raise corrupt(
                folder, file.path, f"has SHA-256 {actual}, expected {file.sha256}", expected=file.sha256, actual=actual
            )
    return read_manifest(folder)


def _read_manifest(folder: Path) -> Checkpoint:
    """What the manifest alone tells."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, this engine reads {_FORMAT}")
        files = tuple(
            CheckpointFile(path=name, size_bytes=int(entry["size_bytes"]), sha256=str(entry["sha256"]))
            for name, entry in sorted(manifest["files"].items())
        )
        return Checkpoint(
            folder=folder,
            files=files,
            manifest_sha256=sha256_file(path),
            optim_steps=int(manifest["optim_steps"]),
            weights_version=int(manifest["weights_version"]),
            dtype=str(manifest["dtype"]),
            base_model=str(manifest.get("base_model", "")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(folder, MANIFEST, f"cannot be read ({type(error).__name__}: {error})") from error


def load_checkpoint(session: TrainingSession, folder: Path, *, weights_only: bool = False) -> Checkpoint:
    """Replace the session's weights in place, and its optimizer (fresh with `weights_only`); verifies every file.

    The session is untouched when this raises: CHECKPOINT_CORRUPT, or FailedPreconditionError CHECKPOINT_MISMATCH when
    the checkpoint is of another model, or lacks the optimizer's state or has another dtype and is to be resumed from.
    """
    checkpoint = verify(folder)
    model = session.model
    dtype = str(model.dtype).removeprefix("torch.")
    if (checkpoint.lora is None) != (model.adapter is None):
        holds, trains = ("a whole model", "a LoRA adapter") if checkpoint.lora is None else ("a LoRA adapter", "all")
        raise mismatch(folder, f"holds {holds}, the session trains {trains}: open another session for it")
    if not weights_only and not checkpoint.has_optimizer:
        raise mismatch(folder, "has no optimizer state: load it with weights_only")
    if not weights_only and checkpoint.dtype != dtype:
        raise mismatch(folder, f"holds {checkpoint.dtype}, the session {dtype}: load it with weights_only")
    if model.adapter is None:
        loaded = load_model(folder, device="cpu", dtype=dtype)
        _check_shapes(folder, _shapes(model.named_parameters()), _shapes(loaded.named_parameters()))
        weights, target = loaded.net.state_dict(), model.net.state_dict()
    else:
        weights = read_adapter_tensors(folder, model.adapter, model)
        target = model.adapter.named_parameters()
    optimizer = AdamWState() if weights_only else _load_optimizer(folder / OPTIMIZER, model)
    fault_point("engine.load.mid")
    copy_tensors(weights, target)
    session.replace_state(optimizer, checkpoint.optim_steps)
    return checkpoint


def sweep_partial(root: Path) -> None:
    """Remove what a killed process left half written."""
    for path in root.rglob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _copy_files(model: LoadedModel, target: Path, names: Sequence[str]) -> None:
    for name in names:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, target / name)


def _write_config(model: LoadedModel, target: Path) -> None:
    config = json.loads((model.folder / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    (target / "config.json").write_bytes(json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")


def _weights(model: LoadedModel) -> dict[str, torch.Tensor]:
    """Tensors under the names transformers stores them by; a tied tensor only under its first name."""
    seen: set[int] = set()
    state: dict[str, torch.Tensor] = {}
    for name, tensor in model.net.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return revert_weight_conversion(model.net, state)


def _optimizer_tensors(state: AdamWState) -> dict[str, torch.Tensor]:
    tensors = {"step": torch.tensor(state.step, dtype=torch.int64)}
    for kind in _MOMENTS:
        tensors |= {f"{kind}.{name}": tensor for name, tensor in getattr(state, kind).items()}
    return tensors


def _load_optimizer(path: Path, model: LoadedModel) -> AdamWState:
    tensors = read_tensors(path)
    step = tensors.pop("step", torch.empty(0))
    if step.shape != ():
        raise mismatch(path.parent, "does not say how many steps its optimizer has made: load it with weights_only")
    state = AdamWState(step=int(step))
    shapes = _shapes(model.named_parameters())
    dtype = torch.promote_types(model.trained_dtype, torch.float32)
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in _MOMENTS or shapes.get(name) != tensor.shape:
            raise mismatch(path.parent, f"has {key} of shape {list(tensor.shape)}, which is no weight of this model")
        if tensor.dtype != dtype:
            raise mismatch(path.parent, f"has {key} as {tensor.dtype}, the session as {dtype}")
        getattr(state, kind)[name] = tensor.to(model.device)
    return state


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _check_shapes(folder: Path, ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size]) -> None:
    if ours == theirs:
        return
    name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    raise mismatch(folder, f"is of another model: {name} is {theirs.get(name)}, the session has {ours.get(name)}")
