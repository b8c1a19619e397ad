"""Numbers that are not finite, and configurations that mean harm, end in a refusal and not in a crash."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from crucible_adapters.torch_engine.checkpoint import load_checkpoint, save_checkpoint
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import SamplingOptions, sample
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError
from tests.engine.tiny import random_data

LOSS = get_loss("cross_entropy")


@pytest.mark.parametrize("temperature", [5e-324, 1e-308, 1e-30])
def test_the_smallest_temperature_takes_the_most_likely_token(tiny_folder: Path, temperature: float) -> None:
    model = load_model(tiny_folder, dtype="float32")
    cold = sample(model, [5, 77], 2, SamplingOptions(max_tokens=5, temperature=temperature))
    greedy = sample(model, [5, 77], 2, SamplingOptions(max_tokens=5, temperature=0.0))
    assert [each.tokens.tolist() for each in cold.completions] == [each.tokens.tolist() for each in greedy.completions]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_told(tiny_folder: Path, temperature: float) -> None:
    model = load_model(tiny_folder, dtype="float32")
    with torch.no_grad():
        model.net.get_output_embeddings().weight[7] = torch.nan
    with pytest.raises(FailedPreconditionError) as caught:
        sample(model, [5, 77], 1, SamplingOptions(max_tokens=5, temperature=temperature))
    assert caught.value.reason == "NUMERIC_ERROR"


def test_a_step_without_finite_numbers_is_told_and_never_saved(tiny_folder: Path, tmp_path: Path) -> None:
    session = TrainingSession(load_model(tiny_folder, dtype="float32"))
    save_checkpoint(session, tmp_path / "good", weights_only=True)
    data = random_data([9, 12])
    session.forward_backward(data, LOSS, {})
    with pytest.raises(FailedPreconditionError, match="not finite") as caught:
        session.optim_step(AdamWOptions(learning_rate=1e308))
    assert caught.value.reason == "NUMERIC_ERROR"
    for refused in (
        lambda: session.forward(data, LOSS, {}),
        lambda: session.forward_backward(data, LOSS, {}),
        lambda: session.optim_step(AdamWOptions(learning_rate=1e-3)),
        lambda: save_checkpoint(session, tmp_path / "bad"),
    ):
        with pytest.raises(FailedPreconditionError) as again:
            refused()
        assert again.value.reason == "NUMERIC_ERROR"
    assert not (tmp_path / "bad").exists()
    load_checkpoint(session, tmp_path / "good", weights_only=True)
    session.forward_backward(data, LOSS, {})
    assert session.optim_step(AdamWOptions(learning_rate=1e-3)).update_norm > 0


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 1_000_000},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "a"},
        {"max_position_embeddings": 2**60},
        {"max_position_embeddings": -1},
        {"attn_implementation": "owner/evil"},
        {"_attn_implementation": "owner/evil"},
        {"_attn_implementation_internal": "kernels-community/x"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
    ],
)
def test_a_strange_configuration_is_refused(tiny_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    folder = changed_copy(tiny_folder, tmp_path, change)
    with pytest.raises(InvalidArgumentError) as caught:
        load_model(folder, dtype="float32")
    assert caught.value.metadata["field"] == "base_model"


def changed_copy(folder: Path, tmp_path: Path, change: dict[str, Any]) -> Path:
    target = shutil.copytree(folder, tmp_path / "changed")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | change))
    return target
