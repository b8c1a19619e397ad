"""LoRA checkpoints: other tools load ours, ours go on where other tools stopped, and what does not fit is refused.

Oracles: peft and transformers for logprobs (1e-4 in float32, 0.05 in bfloat16, whose steps are that coarse), and a loop
over peft's model with torch.optim.AdamW for training (1e-5).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from crucible_adapters.torch_engine.checkpoint import load_checkpoint, save_checkpoint
from crucible_adapters.torch_engine.foreign_folder import check_foreign_content
from crucible_adapters.torch_engine.lora_files import load_adapter, read_spec
from crucible_adapters.torch_engine.lora_spec import ATTENTION, MLP, UNEMBEDDING, LoraSpec
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import compute_logprobs
from crucible_adapters.torch_engine.session import TrainingSession
from tests.engine.lora import adapt, frozen_base, groups, logprobs_of, peft_parameters, targets
from tests.engine.tiny import random_data

pytestmark = pytest.mark.filterwarnings(
    "ignore:Model has `tie_word_embeddings=True`",
    "ignore:`is_gradient_checkpointing` is deprecated",
    "ignore:Setting `save_embedding_layers`",
)
TOKENS = [5, 77, 12, 90, 3, 41, 41, 100, 64, 2]
CROSS_ENTROPY = get_loss("cross_entropy")
OPTIONS = AdamWOptions(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0)
ADAPTER, OPTIMIZER = "adapter_model.safetensors", "optimizer.safetensors"
EVERYTHING = groups(4, ATTENTION, MLP, UNEMBEDDING, alpha=6.0)
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


def train(session: TrainingSession, steps: range) -> None:
    for step in steps:
        session.forward_backward(random_data([9, 5, 12], seed=step), CROSS_ENTROPY, {})
        session.optim_step(OPTIONS)


def new_session(folder: Path, spec: LoraSpec = EVERYTHING, *, dtype: str = "float32", seed: int = 0) -> TrainingSession:
    return TrainingSession(adapt(frozen_base(folder, dtype), spec, seed=seed))


def same_bytes(folder: Path, other: Path, *names: str) -> None:
    for name in names:
        assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize(
    ("spec", "tied"),
    [
        (groups(1, ATTENTION, alpha=3.0), True),
        (groups(8, MLP, alpha=16.0), True),
        (targets(3, "layers.1.self_attn.v_proj", "o_proj", alpha=1.5), True),
        (EVERYTHING, True),
        (EVERYTHING, False),
    ],
    ids=["attention", "mlp", "names", "all, tied", "all, untied"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peft_and_transformers_load_an_adapter_to_the_engines_logprobs(
    tiny_folder: Path, untied_folder: Path, tmp_path: Path, spec: LoraSpec, tied: bool, dtype: str
) -> None:
    folder = tiny_folder if tied else untied_folder
    session = new_session(folder, spec, dtype=dtype)
    untrained = compute_logprobs(session.model, TOKENS)
    train(session, range(3))
    ours = compute_logprobs(session.model, TOKENS)
    assert np.abs(ours - untrained).max() > 10 * TOLERANCE["float32"]
    saved = save_checkpoint(session, tmp_path / "a")
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / ADAPTER).values()} == {torch.float32}
    assert saved.dtype == dtype

    torch_dtype = getattr(torch, dtype)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch_dtype)
    with_peft = PeftModel.from_pretrained(base, str(tmp_path / "a"))
    # the base model comes from what the adapter's configuration names
    with_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "a", dtype=torch_dtype)
    loaded = {"peft": logprobs_of(with_peft, TOKENS), "transformers": logprobs_of(with_transformers, TOKENS)}
    # peft adds an update of a tied head to the embeddings as well
    if not tied or spec.groups is None or UNEMBEDDING not in spec.groups:
        loaded["merged"] = logprobs_of(with_peft.merge_and_unload(), TOKENS)
    for name, theirs in loaded.items():
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=TOLERANCE[dtype], err_msg=name)
    if dtype == "float32":
        again = load_adapter(frozen_base(folder), tmp_path / "a")
        np.testing.assert_array_equal(compute_logprobs(again, TOKENS), ours)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_transformers_loads_a_whole_model_to_the_engines_logprobs(
    tiny_folder: Path, untied_folder: Path, tmp_path: Path, tied: bool, dtype: str
) -> None:
    session = TrainingSession(load_model(tiny_folder if tied else untied_folder, device="cpu", dtype=dtype))
    train(session, range(3))
    save_checkpoint(session, tmp_path / "a")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    assert theirs.dtype == getattr(torch, dtype)
    ours = compute_logprobs(session.model, TOKENS)
    np.testing.assert_allclose(logprobs_of(theirs, TOKENS), ours, rtol=0, atol=TOLERANCE[dtype])


def test_base_model_is_named_as_the_session_was_told(tiny_folder: Path, tmp_path: Path) -> None:
    model = adapt(frozen_base(tiny_folder), EVERYTHING)
    told = save_checkpoint(TrainingSession(model, base_model_name="owner/name"), tmp_path / "told")
    untold = save_checkpoint(TrainingSession(model), tmp_path / "untold")
    assert read_spec(told.folder)[1] == "owner/name"
    assert read_spec(untold.folder)[1] == str(tiny_folder)
    # where this engine finds it is kept beside
    assert told.base_model == untold.base_model == str(tiny_folder)


def peft_folder(base_folder: Path, folder: Path, *, dtype: torch.dtype = torch.float32, **config: Any) -> None:
    """An adapter as peft saves it, every matrix random."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(base_folder, dtype=dtype)
    settings = LoraConfig(**{"r": 3, "lora_alpha": 5, "task_type": "CAUSAL_LM", **config})
    model = get_peft_model(base, settings, autocast_adapter_dtype=False)
    with torch.no_grad():
        for parameter in peft_parameters(model).values():
            parameter.normal_(std=0.2)
    model.save_pretrained(str(folder))


def peft_steps(model: Any, steps: range) -> None:
    """The same steps as `train`: rows padded on the right, torch's autograd, clipping and AdamW."""
    parameters = list(peft_parameters(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for step in steps:
        total = torch.zeros(())
        for datum in random_data([9, 5, 12], seed=step):
            logits = model(input_ids=torch.from_numpy(datum.tokens)[None]).logits[0]
            nll = torch.nn.functional.cross_entropy(logits, torch.from_numpy(datum.targets), reduction="none")
            total = total + (nll * torch.from_numpy(datum.inputs["weights"])).sum()
        total.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


PEFT_CASES: dict[str, dict[str, Any]] = {
    "peft's default layers": {"target_modules": None},
    "rank-stabilised": {"target_modules": ["k_proj", "up_proj"], "use_rslora": True},
    "all linear layers": {"target_modules": "all-linear", "lora_dropout": 0.3},
    "head too": {"target_modules": ["q_proj", "lm_head"]},
    "bfloat16 tensors": {"target_modules": ["o_proj", "down_proj"], "dtype": torch.bfloat16},
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", PEFT_CASES)
def test_a_folder_of_peft_trains_on_as_in_peft(
    tiny_folder: Path, untied_folder: Path, tmp_path: Path, case: str, tied: bool
) -> None:
    folder = tiny_folder if tied else untied_folder
    peft_folder(folder, tmp_path / "a", **PEFT_CASES[case])
    check_foreign_content(tmp_path / "a", max_lora_rank=8)
    stored = load_file(tmp_path / "a" / ADAPTER)
    # frozen embeddings, which peft stores beside an adapted head
    assert any(".lora_" not in name for name in stored) == (case == "head too")
    spec, _ = read_spec(tmp_path / "a")
    session = new_session(folder, spec, seed=9)
    load_checkpoint(session, tmp_path / "a", weights_only=True)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "a"), is_trainable=True).eval()
    np.testing.assert_allclose(compute_logprobs(session.model, TOKENS), logprobs_of(theirs, TOKENS), rtol=0, atol=1e-4)
    before = {name: p.detach().clone() for name, p in session.parameters.items()}

    train(session, range(3))
    peft_steps(theirs, range(3))

    expected = peft_parameters(theirs)
    assert expected.keys() == session.parameters.keys()
    for name, parameter in session.parameters.items():
        assert (parameter - before[name]).abs().max() > 1e-2, name
        torch.testing.assert_close(
            parameter, expected[name], rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )

    # and back: peft loads what the engine saves of it
    save_checkpoint(session, tmp_path / "b")
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    returned = PeftModel.from_pretrained(base, str(tmp_path / "b"))
    np.testing.assert_allclose(logprobs_of(returned, TOKENS), logprobs_of(theirs, TOKENS), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_resume_gives_the_bytes_of_an_uninterrupted_run(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    whole = new_session(tiny_folder, dtype=dtype)
    train(whole, range(6))
    save_checkpoint(whole, tmp_path / "whole")
    first = new_session(tiny_folder, dtype=dtype)
    train(first, range(3))
    save_checkpoint(first, tmp_path / "half")
    # another seed: nothing of the fresh adapter may be left
    resumed = new_session(tiny_folder, dtype=dtype, seed=99)
    load_checkpoint(resumed, tmp_path / "half")
    train(resumed, range(3, 6))
    saved = save_checkpoint(resumed, tmp_path / "resumed")

    assert saved.optim_steps == 6
    same_bytes(tmp_path / "resumed", tmp_path / "whole", ADAPTER, OPTIMIZER, "adapter_config.json", "tokenizer.json")
    stored = load_file(tmp_path / "whole" / ADAPTER)
    assert {tensor.dtype for tensor in stored.values()} == {torch.float64 if dtype == "float64" else torch.float32}


def test_load_without_optimizer_starts_fresh_moments(tiny_folder: Path, tmp_path: Path) -> None:
    first = new_session(tiny_folder)
    train(first, range(3))
    save_checkpoint(first, tmp_path / "half")
    loaded = new_session(tiny_folder, seed=99)
    train(loaded, range(10, 12))
    load_checkpoint(loaded, tmp_path / "half", weights_only=True)
    assert (loaded.optim_steps, loaded.weights_version) == (3, 3)
    assert not loaded.optimizer.exp_avg and loaded.optimizer.step == 0
    # one who never had moments: fresh weights of the same numbers
    fresh = new_session(tiny_folder, seed=5)
    with torch.no_grad():
        for name, parameter in fresh.parameters.items():
            parameter.copy_(first.parameters[name])
    for session in (loaded, fresh):
        train(session, range(3, 5))
    assert all(torch.equal(p, fresh.parameters[name]) for name, p in loaded.parameters.items())
    train(first, range(3, 5))
    assert not all(torch.equal(p, loaded.parameters[name]) for name, p in first.parameters.items())


STEPS_ELSEWHERE = """
import sys
from dataclasses import replace
from pathlib import Path
from crucible_adapters.torch_engine import checkpoint, lora_spec, loss, models, optimizer, runtime, session
from tests.engine.tiny import random_data

runtime.configure_torch(1)
base = models.load_model(Path(sys.argv[1]), device="cpu", dtype="float32")
base.net.requires_grad_(False)
spec = lora_spec.LoraSpec(rank=4, alpha=6.0, groups=frozenset({"unembedding", "mlp", "attention"}))
trained = session.TrainingSession(replace(base, adapter=base.slots.create(spec, base.dtype)))
for step in range(2):
    trained.forward_backward(random_data([9, 5, 12], seed=step), loss.get_loss("cross_entropy"), {})
    trained.optim_step(optimizer.AdamWOptions(learning_rate=1e-2, weight_decay=0.1, grad_clip_norm=1.0))
checkpoint.save_checkpoint(trained, Path(sys.argv[2]))
"""


def test_same_state_is_the_same_bytes_in_another_process(tiny_folder: Path, tmp_path: Path) -> None:
    """Every file's: sets of names, and metadata, have another order there."""
    session = new_session(tiny_folder)
    train(session, range(2))
    save_checkpoint(session, tmp_path / "here")
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    arguments = [sys.executable, "-c", STEPS_ELSEWHERE, str(tiny_folder), str(tmp_path / "there")]
    subprocess.run(arguments, check=True, env=environment)

    names = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert names == ["adapter_config.json", ADAPTER, "crucible_manifest.json", OPTIMIZER, "tokenizer.json"]
    same_bytes(tmp_path / "here", tmp_path / "there", *names)
