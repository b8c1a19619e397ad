"""Checkpoints: atomic, hashed folders that transformers can load.

    config.json, generation_config.json, tokenizer files   from the model's folder
    model.safetensors                                      weights, tied ones once
    optimizer.safetensors                                  moments by parameter name; absent in a weights-only one
    crucible_manifest.json                                 size and SHA-256 of every other file; written last

The same state gives the same bytes: safetensors files carry one metadata key (two or more are written in an order that
differs from process to process) and JSON is written sorted.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers.core_model_loading import revert_weight_conversion

from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.optimizer import AdamWState
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.adapter import distribution_version
from crucible_kit.chunks import canonical_json, fsync_folder, sha256_file
from crucible_kit.errors import AlreadyExistsError, DataLossError, FailedPreconditionError

MANIFEST = "crucible_manifest.json"
WEIGHTS = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
TEMPORARY_PREFIX = ".partial-"
_FORMAT = 1
_SAFETENSORS_METADATA = {"format": "pt"}
_MOMENTS = ("exp_avg", "exp_avg_sq", "master")
# what travels from the model's folder as it is; config.json is rewritten with the trained dtype
_COPIED = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
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

    @property
    def has_optimizer(self) -> bool:
        """Whether training can go on from it exactly."""
        return any(file.path == OPTIMIZER for file in self.files)


def save_checkpoint(session: TrainingSession, folder: Path, *, weights_only: bool = False) -> Checkpoint:
    """Write the session's weights, and its optimizer unless `weights_only`, as `folder`.

    The folder appears as a whole, durable, or not at all. Saving the same content again is OK; a folder with other
    content raises AlreadyExistsError CHECKPOINT_EXISTS.
    """

    model = session.model
    partial = new_partial(folder)
    try:
        _copy_model_files(model, partial)
        _save_tensors(_weights(model), partial / WEIGHTS)
        if not weights_only:
            _save_tensors(_optimizer_tensors(session.optimizer), partial / OPTIMIZER)
        files = {
            path.name: {"sha256": sha256_file(path), "size_bytes": path.stat().st_size} for path in partial.iterdir()
        }
        manifest = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "engine_version": distribution_version(),
            "files": files,
            "format": _FORMAT,
            "optim_steps": session.optim_steps,
            "weights_version": session.weights_version,
        }
        (partial / MANIFEST).write_bytes(canonical_json(manifest))
        return publish(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def new_partial(folder: Path) -> Path:
    """A temporary folder beside `folder` to write a checkpoint into; `sweep_partial` removes it after a crash."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=TEMPORARY_PREFIX, dir=folder.parent))


def publish(partial: Path, folder: Path) -> Checkpoint:
    """Make a complete partial folder durable and give it its name, unless the same content is there already."""
    for path in sorted(partial.iterdir()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    partial.chmod(0o755)
    fsync_folder(partial)
    if not folder.exists():
        partial.rename(folder)
        fsync_folder(folder.parent)
    elif read_manifest(folder).files != read_manifest(partial).files:
        raise AlreadyExistsError(
            f"checkpoint {folder.name} exists with other content: save under another name",
            reason="CHECKPOINT_EXISTS",
            metadata={"name": folder.name},
        )
    return read_manifest(folder)


def read_manifest(folder: Path) -> Checkpoint:
    """A checkpoint's description. Raises DataLossError CHECKPOINT_CORRUPT for a manifest that is not ours."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest["format"] != _FORMAT:
            raise ValueError(f"format {manifest['format']}, this engine reads {_FORMAT}")
        return Checkpoint(
            folder=folder,
            files=tuple(
                CheckpointFile(path=name, size_bytes=int(entry["size_bytes"]), sha256=str(entry["sha256"]))
                for name, entry in sorted(manifest["files"].items())
            ),
            manifest_sha256=sha256_file(path),
            optim_steps=int(manifest["optim_steps"]),
            weights_version=int(manifest["weights_version"]),
            dtype=str(manifest["dtype"]),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise corrupt(folder, MANIFEST, f"cannot be read ({type(error).__name__}: {error})") from error


def verify(folder: Path) -> Checkpoint:
    """Check every file against the manifest. Raises DataLossError CHECKPOINT_CORRUPT naming file and hashes."""
    checkpoint = read_manifest(folder)
    for file in checkpoint.files:
        path = folder / file.path
        if not path.is_file():
            raise corrupt(folder, file.path, "is missing", expected=file.sha256)
        actual = sha256_file(path)
        if actual != file.sha256:
            raise corrupt(
                folder, file.path, f"has SHA-256 {actual}, expected {file.sha256}", expected=file.sha256, actual=actual
            )
    return checkpoint


def load_checkpoint(session: TrainingSession, folder: Path, *, weights_only: bool = False) -> Checkpoint:
    """Replace the session's weights in place, and its optimizer (fresh with `weights_only`); verifies every file.

    The session is untouched when this raises: CHECKPOINT_CORRUPT, or FailedPreconditionError CHECKPOINT_MISMATCH when
    the checkpoint is of another model, or lacks the optimizer's state or has another dtype and is to be resumed from.
    """
    checkpoint = verify(folder)
    model = session.model
    dtype = str(model.dtype).removeprefix("torch.")
    if not weights_only and not checkpoint.has_optimizer:
        raise _mismatch(folder, "has no optimizer state: load it with weights_only")
    if not weights_only and checkpoint.dtype != dtype:
        raise _mismatch(folder, f"holds {checkpoint.dtype}, the session {dtype}: load it with weights_only")
    loaded = load_model(folder, device="cpu", dtype=dtype)
    _check_shapes(folder, _shapes(model.named_parameters()), _shapes(loaded.named_parameters()))
    optimizer = AdamWState() if weights_only else _load_optimizer(folder / OPTIMIZER, model)
    with torch.no_grad():
        state = model.net.state_dict()
        for name, tensor in loaded.net.state_dict().items():
            state[name].copy_(tensor)
    session.replace_state(optimizer, checkpoint.optim_steps)
    return checkpoint


def sweep_partial(root: Path) -> None:
    """Remove what a killed process left half written."""
    for path in root.rglob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


def _copy_model_files(model: LoadedModel, target: Path) -> None:
    config = json.loads((model.folder / "config.json").read_bytes())
    config.pop("torch_dtype", None)
    config["dtype"] = str(model.dtype).removeprefix("torch.")
    (target / "config.json").write_bytes(json.dumps(config, indent=2, sort_keys=True).encode() + b"\n")
    for name in _COPIED:
        if (model.folder / name).is_file():
            shutil.copyfile(model.folder / name, target / name)


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
    tensors = _read_tensors(path)
    state = AdamWState(step=int(tensors.pop("step")))
    shapes = _shapes(model.named_parameters())
    for key, tensor in tensors.items():
        kind, _, name = key.partition(".")
        if kind not in _MOMENTS or shapes.get(name) != tensor.shape:
            raise _mismatch(path.parent, f"has {key} of shape {list(tensor.shape)}, which is no weight of this model")
        getattr(state, kind)[name] = tensor.to(model.device)
    return state


def _save_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, path, _SAFETENSORS_METADATA)


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise corrupt(path.parent, path.name, f"is not a safetensors file ({error})") from error


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _check_shapes(folder: Path, ours: Mapping[str, torch.Size], theirs: Mapping[str, torch.Size]) -> None:
    if ours == theirs:
        return
    name = min(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    raise _mismatch(folder, f"is of another model: {name} is {theirs.get(name)}, the session has {ours.get(name)}")


def _mismatch(folder: Path, problem: str) -> FailedPreconditionError:
    return FailedPreconditionError(f"checkpoint {folder.name} {problem}", reason="CHECKPOINT_MISMATCH")


def corrupt(folder: Path, file: str, problem: str, **hashes: Any) -> DataLossError:
    """The error of a file that is not what its manifest says."""
    return DataLossError(
        f"checkpoint {folder.name}: {file} {problem}: use another checkpoint",
        reason="CHECKPOINT_CORRUPT",
        metadata={"file": file, **hashes},
    )
