"""LoRA settings in and out: the wire's LoraConfig and PEFT's adapter_config.json. Light: imports no torch, no peft."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from crucible.port.training.v1 import training_pb2
from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING, LoraSpec
from crucible_kit.errors import InvalidArgumentError, field_error

_MODULE = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_WIRE_GROUPS = {"train_attention": ATTENTION, "train_mlp": MLP, "train_unembedding": UNEMBEDDING}
_MAX_RANK = 4096
_ON_BY_DEFAULT = {ATTENTION, MLP}
# what a config may say without changing what the adapter computes
_HARMLESS = frozenset(
    {
        "auto_mapping",
        "base_model_name_or_path",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
    }
)
# the other initialisations also change the base model's weights, which the folder does not hold
_HARMLESS_INIT = (True, False, "gaussian", "orthogonal", "eva")
_READ = frozenset(
    {"bias", "init_lora_weights", "lora_alpha", "peft_type", "r", "target_modules", "task_type", "use_rslora"}
)


def parse_lora(config: training_pb2.LoraConfig, *, max_rank: int, field: str = "lora") -> LoraSpec:
    """A request's adapter with its defaults filled in. Raises INVALID_ARGUMENT with the field's path."""
    check_rank(config.rank, max_rank, f"{field}.rank")
    alpha = config.alpha if config.HasField("alpha") else float(config.rank)
    _check_alpha(alpha, f"{field}.alpha")
    given = [name for name in _WIRE_GROUPS if config.HasField(name)]
    if config.target_modules:
        if given:
            raise field_error(
                f"{field}.{given[0]}", "is set beside target_modules, which replaces the groups: leave one of them out"
            )
        names = _check_names(config.target_modules, f"{field}.target_modules")
        return LoraSpec(rank=config.rank, alpha=alpha, target_modules=names)
    groups = frozenset(
        group
        for name, group in _WIRE_GROUPS.items()
        if (getattr(config, name) if name in given else group in _ON_BY_DEFAULT)
    )
    if not groups:
        raise field_error(
            field, "adapts nothing: set train_attention, train_mlp or train_unembedding, or name target_modules"
        )
    return LoraSpec(rank=config.rank, alpha=alpha, groups=groups)


def describe_lora(spec: LoraSpec, target_modules: Sequence[str]) -> training_pb2.LoraConfig:
    """The adapter as the wire shows it: alpha set, the targets listed, the groups absent."""
    return training_pb2.LoraConfig(rank=spec.rank, alpha=spec.alpha, target_modules=sorted(target_modules))


def check_rank(rank: int, max_rank: int, field: str) -> None:
    """Refuse a rank below 1 or above the engine's limit."""
    if rank < 1:
        raise field_error(field, f"is {rank}: give at least 1")
    if rank > max_rank:
        raise field_error(
            field, f"is {rank}, this engine takes at most {max_rank}: lower it, or start the engine with max_lora_rank"
        )


def adapter_config(spec: LoraSpec, target_modules: Sequence[str], base_model_name: str) -> dict[str, Any]:
    """What adapter_config.json holds, to be written with sorted keys.

    The keys are those that every PEFT since 0.9 knows: an older one refuses keys it does not know, and a newer one
    fills in its defaults, which all mean "off".
    """
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": base_model_name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layers_pattern": None,
        "layers_to_transform": None,
        # vLLM and PEFT declare an integer; both compute with whatever number is there
        "lora_alpha": int(spec.alpha) if spec.alpha.is_integer() else spec.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": spec.rank,
        "rank_pattern": {},
        "revision": None,
        "target_modules": sorted(target_modules),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def parse_adapter_config(config: Mapping[str, Any], *, field: str) -> LoraSpec:
    """The adapter that a PEFT adapter_config.json describes.

    A rank-stabilised adapter (`use_rslora`, scale alpha / sqrt(rank)) is read as the plain one of the same scale.
    Raises INVALID_ARGUMENT, as `field`, for what is not plain LoRA, and for keys whose meaning is not known here.
    """
    try:
        return _parse_adapter_config(config)
    except InvalidArgumentError as error:
        raise field_error(field, error.message) from None


def _parse_adapter_config(config: Mapping[str, Any]) -> LoraSpec:
    if not isinstance(config, Mapping):
        raise InvalidArgumentError("is not an object: send the file that PEFT wrote", reason="FIELD_INVALID")
    if config.get("peft_type") != "LORA":
        raise field_error("peft_type", f"is {config.get('peft_type')!r}: this engine reads LORA only")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise field_error("task_type", f"is {config['task_type']!r}: this engine reads CAUSAL_LM only")
    if config.get("bias", "none") != "none":
        raise field_error("bias", f"is {config['bias']!r}: this engine reads adapters without biases")
    initialisation = config.get("init_lora_weights", True)
    if initialisation not in _HARMLESS_INIT:
        raise field_error(
            "init_lora_weights",
            f"is {initialisation!r}, which changes the base model: convert the adapter to plain LoRA when you save it",
        )
    for key, value in sorted(config.items()):
        # null, false and empty mean "off" for every option of PEFT; a zero may be a layer's number
        off = value is None or value is False or value in ("", [], {})
        if not off and key not in _READ and key not in _HARMLESS:
            raise field_error(key, "is set: this engine reads plain LoRA, one rank and scale for all matrices")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or not 1 <= rank <= _MAX_RANK:
        raise field_error("r", f"is {repr(rank)[:40]}: a rank is an integer from 1 to {_MAX_RANK}")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise field_error("lora_alpha", f"is {alpha!r}: give a number")
    _check_alpha(alpha, "lora_alpha")
    scaled = alpha * math.sqrt(rank) if config.get("use_rslora") else float(alpha)
    targets = config.get("target_modules")
    if targets == "all-linear":
        return LoraSpec(rank=rank, alpha=scaled, groups=frozenset({ATTENTION, MLP}))
    if isinstance(targets, str):
        raise field_error(
            "target_modules", f"is the pattern {targets!r}: list the names of the matrices, such as q_proj"
        )
    if not isinstance(targets, Sequence) or not targets or not all(isinstance(name, str) for name in targets):
        raise field_error("target_modules", f"is {targets!r}: list the names of the matrices, such as q_proj")
    return LoraSpec(rank=rank, alpha=scaled, target_modules=_check_names(targets, "target_modules"))


def _check_alpha(alpha: float, field: str) -> None:
    # compared as it is: JSON has integers that no float can hold
    if not 0 < alpha <= sys.float_info.max:
        raise field_error(field, f"is {str(alpha)[:40]}: give a finite number above 0")


def _check_names(names: Sequence[str], field: str) -> tuple[str, ...]:
    for index, name in enumerate(names):
        if not _MODULE.fullmatch(name):
            raise field_error(f"{field}[{index}]", f"{name!r} is no module name: give one such as q_proj")
        if name in names[:index]:
            raise field_error(f"{field}[{index}]", f"{name!r} is there twice: name each module once")
    return tuple(sorted(names))
