"""Checkpoints: same bytes for the same state, exact resume, corruption named."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from crucible_adapters.torch_engine.checkpoint import (
    MANIFEST,
    load_checkpoint,
    read_manifest,
    save_checkpoint,
    sweep_partial,
    verify,
)
from crucible_adapters.torch_engine.loss import get_loss
from crucible_adapters.torch_engine.models import load_model
from crucible_adapters.torch_engine.optimizer import AdamWOptions
from crucible_adapters.torch_engine.sampler import SamplingOptions, sample
from crucible_adapters.torch_engine.session import TrainingSession
from crucible_adapters.torch_engine.tensor_files import save_tensors
from crucible_kit.errors import AlreadyExistsError, DataLossError, FailedPreconditionError
from tests.engine.tiny import random_data, save_tiny_model, threads

OPTIONS = AdamWOptions(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=1.0)


def new_session(folder: Path, dtype: str = "float32") -> TrainingSession:
    return TrainingSession(load_model(folder, device="cpu", dtype=dtype))


def train(session: TrainingSession, steps: range) -> None:
    for step in steps:
        session.forward_backward(random_data([9, 5, 12], seed=step), get_loss("cross_entropy"), {})
        session.optim_step(OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(("dtype", "thread_count"), [("float32", 1), ("float64", 1), ("bfloat16", 1), ("float32", 2)])
def test_resume_gives_the_bytes_of_an_uninterrupted_run(
    tiny_folder: Path, tmp_path: Path, dtype: str, thread_count: int
) -> None:
    with threads(thread_count):
        check_resume(tiny_folder, tmp_path, dtype)


def check_resume(tiny_folder: Path, tmp_path: Path, dtype: str) -> None:
    whole = new_session(tiny_folder, dtype)
    train(whole, range(6))
    save_checkpoint(whole, tmp_path / "whole")

    first = new_session(tiny_folder, dtype)
    train(first, range(3))
    save_checkpoint(first, tmp_path / "half")
    resumed = new_session(tiny_folder, dtype)
    load_checkpoint(resumed, tmp_path / "half")
    train(resumed, range(3, 6))
    saved = save_checkpoint(resumed, tmp_path / "resumed")

    assert saved.optim_steps == 6
    for name in ("model.safetensors", "optimizer.safetensors", "config.json"):
        assert contents(tmp_path / "resumed")[name] == contents(tmp_path / "whole")[name], name


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_byte_identical(tiny_folder: Path, untied_folder: Path, tmp_path: Path, tied: bool) -> None:
    session = new_session(tiny_folder if tied else untied_folder)
    train(session, range(2))
    saved = save_checkpoint(session, tmp_path / "a")
    # from the checkpoint's own folder, so that nothing of the base model can leak in
    again = new_session(tmp_path / "a")
    load_checkpoint(again, tmp_path / "a")
    copy = save_checkpoint(again, tmp_path / "b")

    assert copy.files == saved.files
    assert [file.path for file in saved.files] == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.safetensors",
        "tokenizer.json",
    ]
    for file in saved.files:
        data = (tmp_path / "a" / file.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (file.size_bytes, file.sha256)


def test_transformers_loads_it_to_the_same_weights(session: TrainingSession, tmp_path: Path) -> None:
    train(session, range(2))
    save_checkpoint(session, tmp_path / "a", weights_only=True)

    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "a").state_dict()

    ours = session.model.net.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_safetensors_headers_have_one_metadata_key(session: TrainingSession, tmp_path: Path) -> None:
    train(session, range(1))
    save_checkpoint(session, tmp_path / "a")
    for name in ("model.safetensors", "optimizer.safetensors"):
        data = (tmp_path / "a" / name).read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert header["__metadata__"] == {"format": "pt"}


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "tokenizer.json"])
def test_corrupt_byte_is_found_and_named(
    session: TrainingSession, tmp_path: Path, name: str, weights_only: bool
) -> None:
    train(session, range(1))
    saved = save_checkpoint(session, tmp_path / "a")
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    before = {key: p.detach().clone() for key, p in session.model.named_parameters().items()}

    with pytest.raises(DataLossError, match=name) as caught:
        load_checkpoint(session, tmp_path / "a", weights_only=weights_only)

    expected = next(file.sha256 for file in saved.files if file.path == name)
    assert caught.value.reason == "CHECKPOINT_CORRUPT"
    assert caught.value.metadata == {
        "file": name,
        "expected": expected,
        "actual": hashlib.sha256(data).hexdigest(),
    }
    assert all(torch.equal(before[key], p) for key, p in session.model.named_parameters().items())


def test_missing_file_and_missing_manifest_are_named(session: TrainingSession, tmp_path: Path) -> None:
    save_checkpoint(session, tmp_path / "a")
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(DataLossError, match=r"tokenizer\.json is missing"):
        verify(tmp_path / "a")
    (tmp_path / "a" / MANIFEST).unlink()
    with pytest.raises(DataLossError, match=MANIFEST):
        verify(tmp_path / "a")


def test_weights_only_load_starts_a_fresh_optimizer(tiny_folder: Path, tmp_path: Path) -> None:
    session = new_session(tiny_folder)
    train(session, range(2))
    save_checkpoint(session, tmp_path / "a", weights_only=True)
    other = new_session(tiny_folder)
    with pytest.raises(FailedPreconditionError, match="no optimizer state") as caught:
        load_checkpoint(other, tmp_path / "a")
    assert caught.value.reason == "CHECKPOINT_MISMATCH"

    load_checkpoint(other, tmp_path / "a", weights_only=True)

    assert other.optimizer.step == 0 and not other.optimizer.exp_avg
    assert (other.optim_steps, other.weights_version) == (2, 1)


def test_checkpoint_of_another_model_is_refused(session: TrainingSession, tmp_path: Path) -> None:
    other = new_session(save_tiny_model(tmp_path / "wide", hidden=48))
    save_checkpoint(other, tmp_path / "a")
    with pytest.raises(FailedPreconditionError, match="another model") as caught:
        load_checkpoint(session, tmp_path / "a")
    assert caught.value.reason == "CHECKPOINT_MISMATCH"


def test_load_drops_pending_gradients(session: TrainingSession, tmp_path: Path) -> None:
    save_checkpoint(session, tmp_path / "a")
    session.forward_backward(random_data([4]), get_loss("cross_entropy"), {})
    load_checkpoint(session, tmp_path / "a")
    with pytest.raises(FailedPreconditionError, match="no gradients"):
        session.optim_step(OPTIONS)


def test_same_content_may_be_saved_again_and_other_content_not(session: TrainingSession, tmp_path: Path) -> None:
    first = save_checkpoint(session, tmp_path / "a")
    assert save_checkpoint(session, tmp_path / "a") == first
    train(session, range(1))
    with pytest.raises(AlreadyExistsError) as caught:
        save_checkpoint(session, tmp_path / "a")
    assert caught.value.reason == "CHECKPOINT_EXISTS"
    assert read_manifest(tmp_path / "a") == first
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_failed_save_leaves_nothing(session: TrainingSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crucible_adapters.torch_engine.tensor_files.save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(session, tmp_path / "root" / "a")
    assert list((tmp_path / "root").iterdir()) == []


def test_a_file_that_cannot_be_written_is_an_error_of_the_system(tmp_path: Path) -> None:
    """safetensors has an error of its own for it, which would be called internal."""
    with pytest.raises(OSError, match=r"a\.safetensors cannot be written: .*No such file"):
        save_tensors({"a": torch.zeros(2)}, tmp_path / "gone" / "a.safetensors")


def test_other_users_may_read_it(session: TrainingSession, tmp_path: Path) -> None:
    saved = save_checkpoint(session, tmp_path / "a")
    assert saved.folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in saved.folder.iterdir()} == {0o644}


def test_sweep_removes_half_written_folders_only(session: TrainingSession, tmp_path: Path) -> None:
    save_checkpoint(session, tmp_path / "run" / "a")
    (tmp_path / "run" / ".partial-x").mkdir()
    sweep_partial(tmp_path)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["a"]


def test_sampling_never_changes_training_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    for name in ("quiet", "sampled"):
        session = new_session(tiny_folder)
        for step in range(3):
            session.forward_backward(random_data([9, 5], seed=step), get_loss("cross_entropy"), {})
            if name == "sampled":
                sample(session.model, [3, 4], 2, SamplingOptions(max_tokens=5, seed=step), prompt_logprobs=True)
            session.optim_step(OPTIONS)
        save_checkpoint(session, tmp_path / name)
    assert contents(tmp_path / "quiet") == contents(tmp_path / "sampled")


def test_loaded_weights_do_not_hang_on_the_file(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    session = new_session(folder)
    expected = session.forward(random_data([9]), get_loss("cross_entropy"), {}).loss
    weights = folder / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(bytes(weights.stat().st_size))
    assert session.forward(random_data([9]), get_loss("cross_entropy"), {}).loss == expected
    assert all(p.data_ptr() % 64 == 0 for p in session.model.named_parameters().values())
