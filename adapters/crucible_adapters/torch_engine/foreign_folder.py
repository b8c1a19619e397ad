"""Checkpoints made elsewhere: PEFT's LoRA folders and transformers' model folders, checked before they are kept.

Weights come as safetensors only: a pickle can run any code when it is read.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from crucible.port.training.v1 import training_pb2
from crucible_adapters.torch_engine.checkpoint import OPTIMIZER, WEIGHTS, write_manifest
from crucible_adapters.torch_engine.lora_config import check_rank, parse_adapter_config
from crucible_adapters.torch_engine.lora_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from crucible_kit.errors import field_error

MODEL_CONFIG = "config.json"
WEIGHTS_INDEX = "model.safetensors.index.json"
MAX_OTHER_BYTES = 64 * 1024 * 1024
"""Of a file that holds no weights."""
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PICKLES = (".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
_LORA_TENSOR = re.compile(r"(base_model\.model\..+)\.lora_([AB])\.weight")
_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}


def check_foreign_files(files: Sequence[training_pb2.CheckpointFile]) -> None:
    """Refuse a list of files that is neither kind of folder, before a byte of them comes."""
    names = [file.path for file in files]
    # first: they are why other files seem to be missing
    for index, name in enumerate(names):
        if name.lower().endswith(_PICKLES):
            raise field_error(
                f"header.files[{index}].path",
                f"{name!r} is a pickle, which is never read: leave it out, or save weights as safetensors",
            )
    is_adapter = ADAPTER_CONFIG in names
    if is_adapter:
        is_whole = ADAPTER_WEIGHTS in names
    else:
        is_whole = MODEL_CONFIG in names and (WEIGHTS in names) != (WEIGHTS_INDEX in names)
    if not is_whole:
        raise field_error(
            "header.files",
            f"without a manifest, send a LoRA folder ({ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}) or a model folder "
            f"({MODEL_CONFIG} and {WEIGHTS}, or {MODEL_CONFIG}, {WEIGHTS_INDEX} and its parts)",
        )
    for index, file in enumerate(files):
        name, field = file.path, f"header.files[{index}].path"
        if name == OPTIMIZER:
            raise field_error(field, f"{name!r} is the name of this engine's own optimizer state: leave it out")
        if name.endswith(".safetensors"):
            if name != ADAPTER_WEIGHTS if is_adapter else name != WEIGHTS and not _SHARD.fullmatch(name):
                raise field_error(field, f"{name!r} is not part of such a folder: leave it out")
        elif file.size_bytes > MAX_OTHER_BYTES:
            raise field_error(
                f"header.files[{index}].size_bytes",
                f"is {file.size_bytes}: a file without weights has at most {MAX_OTHER_BYTES}",
            )


def check_foreign_content(folder: Path, *, max_lora_rank: int) -> None:
    """Check what can be known without the model, and write the manifest: no optimizer, no steps.

    Raises INVALID_ARGUMENT naming the file.
    """
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    base_model, dtypes = _check_adapter(folder, max_lora_rank) if is_adapter else ("", _check_model(folder))
    dtype = dtypes.most_common(1)[0][0]
    write_manifest(folder, base_model=base_model, dtype=dtype, optim_steps=0, weights_version=0)


def _check_adapter(folder: Path, max_lora_rank: int) -> tuple[str, Counter[str]]:
    """The base model's name and the types of the tensors."""
    config = _read_json(folder, ADAPTER_CONFIG)
    spec = parse_adapter_config(config, field=ADAPTER_CONFIG)
    check_rank(spec.rank, max_lora_rank, f"{ADAPTER_CONFIG}: r")
    sides: dict[str, set[str]] = {}

    def check(name: str, shape: list[int], dtype: str) -> None:
        if dtype not in _DTYPES:
            raise field_error(ADAPTER_WEIGHTS, f"{name} is {dtype}: send {', '.join(_DTYPES)}")
        match = _LORA_TENSOR.fullmatch(name)
        if match is None:
            # frozen embeddings, which PEFT stores beside an adapted unembedding, have other names
            if ".lora_" in name:
                raise field_error(ADAPTER_WEIGHTS, f"{name} is of a kind that this engine does not compute with")
            return
        layer, side = match.groups()
        sides.setdefault(layer, set()).add(side)
        if len(shape) != 2 or shape[0 if side == "A" else 1] != spec.rank:
            raise field_error(ADAPTER_WEIGHTS, f"{name} has the shape {shape}, the configuration says rank {spec.rank}")

    dtypes = _check_tensors(folder, ADAPTER_WEIGHTS, check)
    if not sides:
        raise field_error(ADAPTER_WEIGHTS, "has no tensors named base_model.model.<layer>.lora_A.weight")
    for layer, found in sides.items():
        if len(found) == 1:
            raise field_error(ADAPTER_WEIGHTS, f"{layer} has lora_{found.pop()} only: both A and B are needed")
    base_model = config.get("base_model_name_or_path")
    return base_model if isinstance(base_model, str) else "", dtypes


def _check_model(folder: Path) -> Counter[str]:
    """The types of the tensors."""
    if not isinstance(_read_json(folder, MODEL_CONFIG).get("model_type"), str):
        raise field_error(MODEL_CONFIG, "has no model_type: send the file that transformers wrote")
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    tensors: dict[str, str] = {}
    dtypes: Counter[str] = Counter()
    for part in parts:
        dtypes += _check_tensors(folder, part, lambda name, *_, part=part: tensors.update({name: part}))
    if WEIGHTS in parts:
        if len(parts) > 1:
            raise field_error(parts[0], f"lies beside {WEIGHTS}: send the whole or its parts")
        return dtypes
    index = _read_json(folder, WEIGHTS_INDEX).get("weight_map")
    if index != tensors:
        listed = set(index.values()) if isinstance(index, dict) else set()
        missing = sorted(str(name) for name in listed - set(parts))
        problem = f"names {missing[0]}, which was not sent" if missing else "lists other tensors than the parts have"
        raise field_error(WEIGHTS_INDEX, problem)
    return dtypes


def _check_tensors(folder: Path, name: str, check: Callable[[str, list[int], str], object]) -> Counter[str]:
    """The floating-point tensors' types; `check` gets each tensor's name, shape and type. Reads no numbers."""
    dtypes: Counter[str] = Counter()
    try:
        with safe_open(folder / name, framework="np") as file:
            for key in file.keys():  # noqa: SIM118
                tensor: Any = file.get_slice(key)
                dtype = tensor.get_dtype()
                check(key, list(tensor.get_shape()), dtype)
                if dtype in _DTYPES:
                    dtypes[_DTYPES[dtype]] += 1
    except SafetensorError as error:
        raise field_error(name, f"is not a safetensors file ({error})") from None
    if not dtypes:
        raise field_error(name, f"has no tensors of {', '.join(_DTYPES.values())}")
    return dtypes


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except (ValueError, RecursionError) as error:
        raise field_error(name, f"is not JSON ({error})") from None
    if not isinstance(value, dict):
        raise field_error(name, "is not an object")
    return value
