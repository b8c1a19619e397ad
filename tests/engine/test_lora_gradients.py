"""Gradients in float64, LoRA and full, against three oracles.

How far two gradients are apart: the largest difference in a tensor over the largest number in the oracle's.

- torch's autograd over the same module, one row at a time and with whole logits: 1e-12;
- Qwen3 written out by hand (reference_qwen3.py): 1e-9, because norms are float32, whose rounding may flip;
- peft over another module: 1e-12.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PhiConfig, PhiForCausalLM

from crucible_adapters.torch_engine import loss as loss_module
from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import LoadedModel, load_model
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.lora import (
    adapt,
    autograd_gradients,
    frozen_base,
    groups,
    in_peft,
    peft_parameters,
    randomise,
    targets,
)
from tests.engine.reference_qwen3 import ReferenceQwen3, adapters_of
from tests.engine.tiny import MAX_POSITIONS, VOCAB, random_data

LENGTHS = [7, 1, 30, 13, 30, 4, 22]
SAME_MODULE, BY_HAND, PEFT = 1e-12, 1e-9, 1e-12
CROSS_ENTROPY = get_loss("cross_entropy")
SPECS = {
    "attention, rank 1": groups(1, ATTENTION, alpha=3.0),
    "MLP, rank 8": groups(8, MLP, alpha=4.0),
    "unembedding, rank 1": groups(1, UNEMBEDDING, alpha=0.5),
    "unembedding, rank 8": groups(8, UNEMBEDDING, alpha=20.0),
    "attention and MLP, rank 8": groups(8, ATTENTION, MLP, alpha=16.0),
    "all, rank 1": groups(1, ATTENTION, MLP, UNEMBEDDING, alpha=2.5),
    "all, rank 8": groups(8, ATTENTION, MLP, UNEMBEDDING),
    "two layers by name": targets(3, "layers.1.self_attn.v_proj", "layers.0.self_attn.q_proj", alpha=7.0),
}
WHOLE_BATCH = 10_000
BASES = ("tied", "untied", "head with bias")


pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`", "ignore:`is_gradient_checkpointing` is deprecated"
)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, untied_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two Qwen3 models, and a Phi with biases everywhere and other names of layers."""
    torch.manual_seed(7)
    config = PhiConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=1,
    )
    net = PhiForCausalLM(config)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.3)
    biased = tmp_path_factory.mktemp("models") / "biased"
    net.save_pretrained(biased)
    return {"tied": tiny_folder, "untied": untied_folder, "head with bias": biased}


@pytest.fixture(scope="module")
def bases(folders: dict[str, Path]) -> dict[str, LoadedModel]:
    """Frozen, shared by the tests as sessions share them."""
    return {name: frozen_base(folder, "float64") for name, folder in folders.items()}


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.abs().max() > 1e-3, name
        assert relative_difference(actual[name], gradient) <= tolerance, name


def gradients(session: TrainingSession) -> dict[str, torch.Tensor]:
    found = {name: p.grad for name, p in session.parameters.items() if p.grad is not None}
    assert found.keys() == session.parameters.keys()
    return found


def check(session: TrainingSession, oracle: object, parameters: Mapping[str, torch.Tensor], tolerance: float) -> None:
    """The session's gradients of a batch are the oracle's with respect to its `parameters`, by the same names."""
    session.zero_gradients()
    data = random_data(LENGTHS, prompt=2)
    result = session.forward_backward(data, CROSS_ENTROPY, {})
    loss, logprobs, expected = autograd_gradients(oracle, parameters, data)
    assert result.loss == pytest.approx(loss, rel=tolerance)
    for ours, theirs in zip(result.logprobs, logprobs, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=10 * tolerance)
    assert_same(gradients(session), expected, tolerance)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("base", BASES)
def test_adapter_gradients_equal_autograd_over_the_same_module(
    bases: dict[str, LoadedModel], base: str, spec: str
) -> None:
    model = randomise(adapt(bases[base], SPECS[spec]))
    session = TrainingSession(model)
    model.slots.activate(model.adapter)
    check(session, model.net, model.named_parameters(), SAME_MODULE)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("base", ["tied", "untied"])
def test_adapter_gradients_equal_qwen3_written_by_hand(
    folders: dict[str, Path], bases: dict[str, LoadedModel], base: str, spec: str
) -> None:
    model = randomise(adapt(bases[base], SPECS[spec]))
    oracle = ReferenceQwen3(folders[base])
    leaves, oracle.updates = adapters_of(model.named_parameters(), SPECS[spec].alpha / SPECS[spec].rank)
    check(TrainingSession(model), oracle, leaves, BY_HAND)


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_full_gradients_equal_qwen3_written_by_hand(folders: dict[str, Path], base: str) -> None:
    oracle = ReferenceQwen3(folders[base], trained=True)
    session = TrainingSession(load_model(folders[base], device="cpu", dtype="float64"))
    check(session, oracle, oracle.weights, BY_HAND)


def test_full_gradients_of_a_head_with_bias_equal_autograd_over_the_same_module(folders: dict[str, Path]) -> None:
    model = load_model(folders["head with bias"], device="cpu", dtype="float64")
    assert "lm_head.bias" in model.named_parameters()
    check(TrainingSession(model), model.net, model.named_parameters(), SAME_MODULE)


@pytest.mark.parametrize("spec", ["attention and MLP, rank 8", "all, rank 8", "unembedding, rank 1"])
@pytest.mark.parametrize("base", BASES)
def test_adapter_gradients_equal_peft(bases: dict[str, LoadedModel], base: str, spec: str) -> None:
    model = randomise(adapt(bases[base], SPECS[spec]))
    oracle = in_peft(model)
    check(TrainingSession(model), oracle, peft_parameters(oracle), PEFT)


@pytest.mark.parametrize("calls", [1, 2, 7])
@pytest.mark.parametrize("micro_batch_tokens", [1, 60, WHOLE_BATCH])
@pytest.mark.parametrize("spec", ["all, rank 8", "unembedding, rank 1"])
@pytest.mark.parametrize("base", ["tied", "head with bias"])
def test_cutting_a_batch_changes_no_gradient_of_an_adapter(
    bases: dict[str, LoadedModel], base: str, spec: str, micro_batch_tokens: int, calls: int
) -> None:
    model = randomise(adapt(bases[base], SPECS[spec]))
    data = random_data(LENGTHS, seed=1)
    whole = TrainingSession(model, micro_batch_tokens=WHOLE_BATCH)
    whole.forward_backward(data, CROSS_ENTROPY, {})
    expected = gradients(whole)
    whole.zero_gradients()
    session = TrainingSession(model, micro_batch_tokens=micro_batch_tokens)

    for part in np.array_split(np.arange(len(data)), calls):
        session.forward_backward([data[i] for i in part], CROSS_ENTROPY, {})

    assert_same(gradients(session), expected, SAME_MODULE)


@pytest.mark.parametrize("base", BASES)
def test_chunks_of_an_adapted_head_change_no_gradient(
    bases: dict[str, LoadedModel], base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(loss_module, "MIN_CHUNK_TOKENS", 8)
    model = randomise(adapt(bases[base], SPECS["all, rank 8"]))
    model.slots.activate(model.adapter)
    check(TrainingSession(model), model.net, model.named_parameters(), SAME_MODULE)


@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_bfloat16_base_costs_an_adapter_no_more_than_in_peft(
    folders: dict[str, Path], bases: dict[str, LoadedModel], base: str
) -> None:
    """Relative L2 distance to the float64 gradients of the same adapter: at most a tenth over peft's, which is 0.05."""
    data = random_data(LENGTHS)
    exact = randomise(adapt(bases[base], SPECS["all, rank 8"]))
    half = adapt(frozen_base(folders[base], "bfloat16"), SPECS["all, rank 8"])
    with torch.no_grad():
        for name, parameter in half.named_parameters().items():
            parameter.copy_(exact.named_parameters()[name])
    oracle = in_peft(half)
    session, reference = TrainingSession(half), TrainingSession(exact)
    for each in (session, reference):
        each.forward_backward(data, CROSS_ENTROPY, {})
    _, _, theirs = autograd_gradients(oracle, peft_parameters(oracle), data)
    expected = gradients(reference)

    def distance(found: dict[str, torch.Tensor]) -> float:
        return max(float((found[name].double() - each).norm() / each.norm()) for name, each in expected.items())

    assert distance(gradients(session)) < 1.1 * distance(theirs) < 0.1


@pytest.mark.parametrize("micro_batch_tokens", [1, WHOLE_BATCH])
def test_sessions_on_one_base_have_the_gradients_they_have_alone(
    bases: dict[str, LoadedModel], tiny_folder: Path, micro_batch_tokens: int
) -> None:
    """Calls of two adapters take turns on one module; autograd over a base of each one's own is the oracle."""
    specs = [SPECS["all, rank 8"], groups(1, MLP, alpha=3.0)]
    data = random_data(LENGTHS, seed=2)
    shared = [randomise(adapt(bases["tied"], spec, seed=n), seed=n) for n, spec in enumerate(specs)]
    sessions = [TrainingSession(model, micro_batch_tokens=micro_batch_tokens) for model in shared]
    for part in range(0, len(data), 2):
        for session in sessions:
            session.forward_backward(data[part : part + 2], CROSS_ENTROPY, {})
    for n, (spec, session) in enumerate(zip(specs, sessions, strict=True)):
        own = randomise(adapt(frozen_base(tiny_folder, "float64"), spec, seed=n), seed=n)
        own.slots.activate(own.adapter)
        _, _, expected = autograd_gradients(own.net, own.named_parameters(), data)
        assert_same(gradients(session), expected, SAME_MODULE)
