"""LoRA settings from the wire and from PEFT's files. Oracle of the format: peft itself."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig as PeftConfig

from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.lora_config import adapter_config, describe_lora, parse_adapter_config, parse_lora
from crucible_adapters.torch_engine.lora_spec import LoraSpec
from crucible_kit.errors import InvalidArgumentError

BOTH = frozenset({"attention", "mlp"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"rank": 8}, LoraSpec(rank=8, alpha=8.0, groups=BOTH)),
        ({"rank": 8, "alpha": 16}, LoraSpec(rank=8, alpha=16.0, groups=BOTH)),
        ({"rank": 1, "train_mlp": False}, LoraSpec(rank=1, alpha=1.0, groups=frozenset({"attention"}))),
        (
            {"rank": 4, "train_unembedding": True},
            LoraSpec(rank=4, alpha=4.0, groups=BOTH | {"unembedding"}),
        ),
        (
            {"rank": 4, "target_modules": ["v_proj", "self_attn.q_proj"]},
            LoraSpec(rank=4, alpha=4.0, target_modules=("self_attn.q_proj", "v_proj")),
        ),
    ],
)
def test_wire_settings(given: dict[str, Any], expected: LoraSpec) -> None:
    assert parse_lora(tp.LoraConfig(**given), max_rank=8) == expected


@pytest.mark.parametrize(
    ("given", "field", "fix"),
    [
        ({}, "lora.rank", "at least 1"),
        ({"rank": 9}, "lora.rank", "at most 8"),
        ({"rank": 8, "alpha": 0.0}, "lora.alpha", "above 0"),
        ({"rank": 8, "alpha": -1.0}, "lora.alpha", "above 0"),
        ({"rank": 8, "alpha": math.inf}, "lora.alpha", "finite"),
        ({"rank": 8, "alpha": math.nan}, "lora.alpha", "finite"),
        ({"rank": 8, "train_mlp": False, "train_attention": False}, "lora", "adapts nothing"),
        ({"rank": 8, "train_mlp": False, "target_modules": ["q_proj"]}, "lora.train_mlp", "leave one of them out"),
        ({"rank": 8, "target_modules": ["q_proj", "q_proj"]}, "lora.target_modules[1]", "once"),
        ({"rank": 8, "target_modules": [""]}, "lora.target_modules[0]", "no module name"),
        ({"rank": 8, "target_modules": [".*"]}, "lora.target_modules[0]", "no module name"),
        ({"rank": 8, "target_modules": ["q_proj\n"]}, "lora.target_modules[0]", "no module name"),
    ],
)
def test_wire_settings_that_are_refused(given: dict[str, Any], field: str, fix: str) -> None:
    with pytest.raises(InvalidArgumentError, match=fix) as caught:
        parse_lora(tp.LoraConfig(**given), max_rank=8)
    assert [each.field for each in caught.value.fields] == [field]


def test_a_described_adapter_is_the_same_adapter() -> None:
    spec = LoraSpec(rank=4, alpha=6.0, target_modules=("k_proj", "q_proj"))
    assert parse_lora(describe_lora(spec, ["q_proj", "k_proj"]), max_rank=4) == spec


@pytest.mark.parametrize("alpha", [16.0, 6.5])
def test_peft_reads_what_we_write_as_its_own(tmp_path: Path, alpha: float) -> None:
    spec = LoraSpec(rank=8, alpha=alpha, groups=BOTH)
    config = adapter_config(spec, ["v_proj", "q_proj"], "owner/name")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, sort_keys=True))
    read = PeftConfig.from_pretrained(str(tmp_path))
    expected = PeftConfig(
        r=8,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path="owner/name",
        inference_mode=True,
    )
    assert read == expected
    assert parse_adapter_config(config, field="f") == LoraSpec(rank=8, alpha=alpha, target_modules=("q_proj", "v_proj"))


def peft_writes(folder: Path, **fields: Any) -> dict[str, Any]:
    """What peft stores for these options."""
    PeftConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **fields}).save_pretrained(str(folder))
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, LoraSpec(rank=4, alpha=8.0, target_modules=("q_proj",))),
        (
            {"task_type": "CAUSAL_LM", "lora_dropout": 0.1, "init_lora_weights": "gaussian", "inference_mode": True},
            LoraSpec(rank=4, alpha=8.0, target_modules=("q_proj",)),
        ),
        ({"use_rslora": True}, LoraSpec(rank=4, alpha=16.0, target_modules=("q_proj",))),
        ({"target_modules": "all-linear"}, LoraSpec(rank=4, alpha=8.0, groups=BOTH)),
        (
            {"target_modules": ["model.layers.0.mlp.up_proj", "q_proj"]},
            LoraSpec(rank=4, alpha=8.0, target_modules=("model.layers.0.mlp.up_proj", "q_proj")),
        ),
    ],
)
def test_peft_settings(tmp_path: Path, fields: dict[str, Any], expected: LoraSpec) -> None:
    assert parse_adapter_config(peft_writes(tmp_path, **fields), field="f") == expected


def test_rank_stabilised_scale_is_what_peft_computes_with() -> None:
    spec = parse_adapter_config(
        {"peft_type": "LORA", "r": 7, "lora_alpha": 3, "target_modules": ["q_proj"], "use_rslora": True}, field="f"
    )
    assert spec.scale == pytest.approx(3 / math.sqrt(7), rel=1e-15)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"bias": "lora_only"}, "bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layers_to_transform": 0}, "layers_to_transform"),
        ({"exclude_modules": ["k_proj"]}, "exclude_modules"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights.*changes the base model"),
        ({"init_lora_weights": "olora"}, "init_lora_weights"),
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"target_modules": r".*\.(q|v)_proj"}, "target_modules.*pattern"),
        ({"lora_alpha": 0}, "lora_alpha"),
    ],
)
def test_what_peft_can_do_and_we_cannot_is_refused(tmp_path: Path, fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^adapter: {text}") as caught:
        parse_adapter_config(peft_writes(tmp_path, **fields), field="adapter")
    assert caught.value.fields[0].field == "adapter"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"peft_type": None}, "peft_type"),
        ({"r": 0}, "r: is 0"),
        ({"r": True}, "r: is True"),
        ({"r": 10**400}, "r: is 1000"),
        ({"lora_alpha": 10**400}, "lora_alpha: is 1000"),
        ({"r": "8"}, "r: is '8'"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"lora_alpha": math.nan}, "lora_alpha"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": []}, "target_modules"),
        ({"target_modules": [1]}, "target_modules"),
        ({"target_modules": {"q_proj": 1}}, "target_modules"),
        ({"target_modules": ["a b"]}, "target_modules"),
        ({"init_lora_weights": []}, "init_lora_weights"),
        ({"a_method_of_next_year": {"on": 1}}, "a_method_of_next_year"),
    ],
)
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=text):
        parse_adapter_config({**peft_writes(tmp_path), **change}, field="adapter")


@pytest.mark.parametrize("value", [[], "text", None, 3])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="not an object"):
        parse_adapter_config(value, field="adapter")
