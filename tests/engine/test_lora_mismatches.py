"""LoRA checkpoints that do not fit the session, or are damaged or forged: refused, and the session goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from crucible_adapters.torch_engine.checkpoint import MANIFEST, load_checkpoint, save_checkpoint, write_manifest
from crucible_adapters.torch_engine.foreign_folder import check_foreign_content
from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING, LoraSpec
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_kit.errors import DataLossError, FailedPreconditionError
from tests.engine.lora import adapt, frozen_base, groups, randomise, targets
from tests.engine.test_lora_checkpoints import (
    ADAPTER,
    CROSS_ENTROPY,
    EVERYTHING,
    OPTIMIZER,
    OPTIONS,
    new_session,
    peft_folder,
    train,
)
from tests.engine.tiny import random_data, save_tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`",
    "ignore:`is_gradient_checkpointing` is deprecated",
    "ignore:Setting `save_embedding_layers`",
)


def tensors_of(session: TrainingSession) -> dict[str, torch.Tensor]:
    """Copies of weights and moments, by kind and name."""
    state = session.optimizer
    kinds = {"weight": session.parameters, "avg": state.exp_avg, "sq": state.exp_avg_sq, "master": state.master}
    return {f"{kind}.{name}": t.detach().clone() for kind, each in kinds.items() for name, t in each.items()}


def refused(session: TrainingSession, folder: Path, match: str, *, weights_only: bool) -> None:
    """The load is a CHECKPOINT_MISMATCH, and neither tensors, gradients nor counters of the session change."""
    session.forward_backward(random_data([7], seed=4), CROSS_ENTROPY, {})
    before = tensors_of(session)
    gradients = {name: p.grad.clone() for name, p in session.parameters.items() if p.grad is not None}
    counters = (session.optim_steps, session.weights_version, session.optimizer.step)
    with pytest.raises(FailedPreconditionError, match=match) as caught:
        load_checkpoint(session, folder, weights_only=weights_only)
    assert caught.value.reason == "CHECKPOINT_MISMATCH"
    after = tensors_of(session)
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    assert gradients
    assert all(torch.equal(gradient, session.parameters[name].grad) for name, gradient in gradients.items())  # type: ignore[arg-type]
    assert counters == (session.optim_steps, session.weights_version, session.optimizer.step)
    session.optim_step(OPTIONS)


MISMATCHES: dict[str, tuple[LoraSpec, str]] = {
    "rank": (groups(8, ATTENTION, MLP, UNEMBEDDING, alpha=12.0), "of shape"),
    "alpha": (groups(4, ATTENTION, MLP, UNEMBEDDING, alpha=4.0), "alpha 6 at rank 4, the session alpha 4 at rank 4"),
    "fewer layers": (groups(4, ATTENTION, MLP, alpha=6.0), "has, and the session has not"),
    "more layers": (groups(4, ATTENTION, MLP, UNEMBEDDING, alpha=6.0), "lacks"),
    "other layers": (targets(4, "layers.0.self_attn.q_proj", alpha=6.0), "layers"),
}


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("case", MISMATCHES)
def test_another_adapter_is_refused_and_the_session_goes_on(
    tiny_folder: Path, tmp_path: Path, case: str, weights_only: bool
) -> None:
    saver = new_session(tiny_folder, groups(4, MLP, alpha=6.0) if case == "more layers" else EVERYTHING)
    train(saver, range(1))
    save_checkpoint(saver, tmp_path / "a")
    spec, match = MISMATCHES[case]
    session = new_session(tiny_folder, spec)
    train(session, range(1))
    refused(session, tmp_path / "a", match, weights_only=weights_only)


@pytest.mark.parametrize("weights_only", [False, True])
def test_whole_models_and_adapters_are_not_mixed(tiny_folder: Path, tmp_path: Path, weights_only: bool) -> None:
    full = TrainingSession(load_model(tiny_folder, device="cpu", dtype="float32"))
    lora = new_session(tiny_folder)
    for session, name in ((full, "full"), (lora, "lora")):
        train(session, range(1))
        save_checkpoint(session, tmp_path / name)
    refused(lora, tmp_path / "full", "holds a whole model, the session trains a LoRA", weights_only=weights_only)
    refused(full, tmp_path / "lora", "holds a LoRA adapter, the session trains all", weights_only=weights_only)


@pytest.mark.parametrize("weights_only", [False, True])
def test_adapter_of_a_base_of_another_shape_is_refused(tiny_folder: Path, tmp_path: Path, weights_only: bool) -> None:
    wide = new_session(save_tiny_model(tmp_path / "wide", hidden=48))
    save_checkpoint(wide, tmp_path / "a", weights_only=weights_only)
    session = new_session(tiny_folder)
    refused(session, tmp_path / "a", "of shape" if weights_only else "shape", weights_only=weights_only)


def test_optimizer_of_another_dtype_is_refused_and_the_weights_are_not(tiny_folder: Path, tmp_path: Path) -> None:
    single = new_session(tiny_folder)
    train(single, range(1))
    save_checkpoint(single, tmp_path / "a")
    double = new_session(tiny_folder, dtype="float64")
    refused(double, tmp_path / "a", "holds float32, the session float64", weights_only=False)
    load_checkpoint(double, tmp_path / "a", weights_only=True)
    for name, parameter in double.parameters.items():
        assert torch.equal(parameter, single.parameters[name].double())


def cut(data: bytes) -> bytes:
    return data[:-1]


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("damage", [cut, flip])
@pytest.mark.parametrize("name", ["adapter_config.json", ADAPTER, OPTIMIZER, "tokenizer.json"])
def test_damaged_file_is_named_with_its_hashes(
    tiny_folder: Path, tmp_path: Path, name: str, damage: Callable[[bytes], bytes]
) -> None:
    session = new_session(tiny_folder)
    train(session, range(1))
    save_checkpoint(session, tmp_path / "a")
    path = tmp_path / "a" / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    before = tensors_of(session)
    with pytest.raises(DataLossError) as caught:
        load_checkpoint(session, tmp_path / "a")
    assert caught.value.reason == "CHECKPOINT_CORRUPT"
    assert caught.value.metadata == {
        "file": name,
        "expected": hashlib.sha256(whole).hexdigest(),
        "actual": hashlib.sha256(damage(whole)).hexdigest(),
    }
    assert all(torch.equal(tensor, tensors_of(session)[key]) for key, tensor in before.items())


def test_numbers_that_are_not_finite_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    broken = randomise(adapt(frozen_base(tiny_folder), EVERYTHING))
    with torch.no_grad():
        next(iter(broken.named_parameters().values()))[0, 0] = float("nan")
    save_checkpoint(TrainingSession(broken), tmp_path / "a", weights_only=True)
    refused(new_session(tiny_folder), tmp_path / "a", "not finite", weights_only=True)


def forge(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change a tensor file, with a manifest that agrees."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name, {"format": "pt"})
    (folder / MANIFEST).unlink()
    write_manifest(folder, base_model="", dtype="float32", optim_steps=1, weights_version=1)


FIRST = "exp_avg.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
FORGED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no step": (lambda t: t.pop("step"), "how many steps"),
    "steps of each": (lambda t: t.update(step=torch.ones(3, dtype=torch.int64)), "how many steps"),
    "half precision": (lambda t: t.update({FIRST: t[FIRST].half()}), "float16, the session as torch.float32"),
    "another shape": (lambda t: t.update({FIRST: t[FIRST][:1].clone()}), "of shape"),
    "another layer": (lambda t: t.update({f"{FIRST}.x": t[FIRST].clone()}), "no weight of this model"),
}


@pytest.mark.parametrize("case", FORGED)
def test_optimizer_that_cannot_be_the_sessions_is_refused(tiny_folder: Path, tmp_path: Path, case: str) -> None:
    """Anybody may upload a folder with a manifest."""
    session = new_session(tiny_folder)
    train(session, range(1))
    save_checkpoint(session, tmp_path / "a")
    change, match = FORGED[case]
    forge(tmp_path / "a", OPTIMIZER, change)
    refused(session, tmp_path / "a", match, weights_only=False)


def test_a_manifest_without_the_adapters_weights_is_told(tiny_folder: Path, tmp_path: Path) -> None:
    session = new_session(tiny_folder)
    save_checkpoint(session, tmp_path / "a")
    for name in (ADAPTER, MANIFEST):
        (tmp_path / "a" / name).unlink()
    write_manifest(tmp_path / "a", base_model="", dtype="float32", optim_steps=1, weights_version=1)
    with pytest.raises(DataLossError, match="is missing") as caught:
        load_checkpoint(session, tmp_path / "a")
    assert caught.value.metadata["file"] == ADAPTER


def test_embeddings_that_are_not_the_bases_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    """A peft folder whose frozen embeddings were trained or are another model's would compute something else here."""
    peft_folder(tiny_folder, tmp_path / "a", target_modules=["q_proj", "lm_head"])
    stored = load_file(tmp_path / "a" / ADAPTER)
    name = next(name for name in stored if ".lora_" not in name)
    stored[name][3, 4] += 1e-3
    save_file(stored, tmp_path / "a" / ADAPTER, {"format": "pt"})
    check_foreign_content(tmp_path / "a", max_lora_rank=8)
    session = new_session(tiny_folder, targets(3, "q_proj", "lm_head", alpha=5.0))
    refused(session, tmp_path / "a", "not the base model's", weights_only=True)
