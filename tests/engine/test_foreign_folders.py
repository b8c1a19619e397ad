"""Folders made by peft and transformers, uploaded without a manifest. Oracles: peft and transformers themselves."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from crucible.port.training.v1 import training_pb2 as tp
from crucible_adapters.torch_engine.checkpoint import Checkpoint, verify
from crucible_adapters.torch_engine.checkpoint_store import CheckpointStore
from crucible_adapters.torch_engine.checkpoint_upload import CheckpointUpload
from crucible_kit.chunks import crc32
from crucible_kit.errors import AlreadyExistsError, DataLossError, FailedPreconditionError, InvalidArgumentError
from tests.engine.test_service_checkpoints import load, upload_messages
from tests.engine.tiny import random_data, save_tiny_model
from tests.engine.wire import Wire, serve

TOKENS = [5, 77, 12, 90, 33, 8]
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
INDEX = "model.safetensors.index.json"
Files = dict[str, bytes]


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def peft_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained adapter as peft saves it: rank-stabilised, both matrices random."""
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    config = LoraConfig(
        r=3, lora_alpha=5, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same shape in parts, with a tokenizer's file and a note."""
    root = tmp_path_factory.mktemp("sharded")
    net = AutoModelForCausalLM.from_pretrained(save_tiny_model(root / "whole", seed=9), dtype=torch.float32)
    net.save_pretrained(root / "parts", max_shard_size="40KB")
    (root / "parts" / "README.md").write_text("made elsewhere")
    (root / "parts" / "tokenizer.json").write_text("{}")
    return root / "parts"


async def upload(wire: Wire, name: str, files: Files) -> tp.CheckpointResult:
    return (await wire.training.UploadCheckpoint(upload_messages(name, files))).checkpoint


@torch.no_grad()
def logprobs_of(net: Any) -> np.ndarray:
    """log p of TOKENS[1:], by transformers."""
    ids = torch.tensor([TOKENS])
    return net.eval()(ids).logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0].numpy()


async def test_peft_folder_is_sampled_from_and_trains_on(
    transport: Any, tiny_folder: Path, peft_folder: Path, tmp_path: Path
) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    expected = logprobs_of(PeftModel.from_pretrained(base, str(peft_folder)))
    files = files_of(peft_folder)
    assert "README.md" in files
    async with serve(tmp_path / "work", transport=transport) as (_, wire):
        uploaded = await upload(wire, "from/peft", files)
        assert [file.path for file in uploaded.files] == sorted(files)
        assert (uploaded.optim_steps, uploaded.weights_version) == (0, 0)
        assert uploaded.base_model == str(tiny_folder)
        assert (uploaded.lora.rank, list(uploaded.lora.target_modules)) == (3, ["down_proj", "q_proj"])
        assert uploaded.lora.alpha == pytest.approx(5 * 3**0.5)
        assert not uploaded.HasField("expire_time")

        sampling = await wire.open_sampling(checkpoint_uri=uploaded.uri)
        np.testing.assert_allclose(await wire.score(sampling, 1, TOKENS), expected, atol=1e-5)

        session_id = await wire.open(tiny_folder, lora=uploaded.lora)
        with pytest.raises(FailedPreconditionError, match="weights_only"):
            await load(wire, session_id, 1, uploaded.uri)
        await load(wire, session_id, 2, uploaded.uri, weights_only=True)
        live = await wire.open_sampling(training_session_id=session_id)
        np.testing.assert_allclose(await wire.score(live, 1, TOKENS), expected, atol=1e-5)
        assert (await wire.train(session_id, 3, random_data([9]))).optim_steps == 1


async def test_transformers_folder_in_parts_is_sampled_from_and_trains_on(
    transport: Any, tiny_folder: Path, sharded_folder: Path, tmp_path: Path
) -> None:
    expected = logprobs_of(AutoModelForCausalLM.from_pretrained(sharded_folder, dtype=torch.float32))
    files = files_of(sharded_folder)
    assert sum(name.endswith(".safetensors") for name in files) > 1
    async with serve(tmp_path / "work", transport=transport) as (_, wire):
        uploaded = await upload(wire, "model", files)
        assert not uploaded.HasField("lora")
        assert uploaded.base_model == ""
        sampling = await wire.open_sampling(checkpoint_uri=uploaded.uri)
        np.testing.assert_allclose(await wire.score(sampling, 1, TOKENS), expected, atol=1e-5)
        session_id = await wire.open(tiny_folder)
        await load(wire, session_id, 1, uploaded.uri, weights_only=True)
        live = await wire.open_sampling(training_session_id=session_id)
        np.testing.assert_allclose(await wire.score(live, 1, TOKENS), expected, atol=1e-5)


async def test_the_same_folder_again_is_answered_without_the_bytes(wire: Wire, peft_folder: Path) -> None:
    files = files_of(peft_folder)
    first = await upload(wire, "a", files)

    async def header_only() -> AsyncIterator[tp.UploadCheckpointRequest]:
        yield await anext(upload_messages("a", dict(reversed(files.items()))))

    assert (await wire.training.UploadCheckpoint(header_only())).checkpoint == first
    with pytest.raises(AlreadyExistsError) as caught:
        await upload(wire, "a", {**files, "README.md": b"another"})
    assert caught.value.reason == "CHECKPOINT_EXISTS"


def receive(root: Path, files: Files) -> Checkpoint:
    """Upload to a store without a wire."""
    described = [
        tp.CheckpointFile(path=path, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        for path, data in files.items()
    ]
    header = tp.UploadCheckpointHeader(name="foreign", files=described)
    received = CheckpointUpload(CheckpointStore(root), header, max_lora_rank=3)
    try:
        for index, data in enumerate(files.values()):
            received.write(tp.UploadCheckpointChunk(file_index=index, offset=0, crc32=crc32(data), data=data))
        return received.commit()
    finally:
        received.close()


def test_what_is_kept_is_verified_like_any_checkpoint(peft_folder: Path, tmp_path: Path) -> None:
    kept = receive(tmp_path, files_of(peft_folder))
    assert verify(kept.folder) == kept
    assert {name: data for name, data in files_of(kept.folder).items() if name in files_of(peft_folder)} == files_of(
        peft_folder
    )
    (kept.folder / WEIGHTS).write_bytes(b"changed")
    with pytest.raises(DataLossError):
        verify(kept.folder)


def changed_config(**fields: Any) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files[CONFIG] = json.dumps({**json.loads(files[CONFIG]), **fields}).encode()

    return change


FIRST_A = "base_model.model.model.layers.0.mlp.down_proj.lora_A.weight"


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Files], None]:
    def apply(files: Files) -> None:
        loaded = safetensors.torch.load(files[WEIGHTS])
        change(loaded)
        files[WEIGHTS] = safetensors.torch.save(loaded)

    return apply


def renamed(old: str, new: str) -> Callable[[Files], None]:
    return lambda files: files.update({new: files.pop(old)})


ADAPTER_REFUSED: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "pickled weights": (renamed(WEIGHTS, "adapter_model.bin"), "path of adapter_model.bin", "never read"),
    "pickle beside": (lambda f: f.update({"training_args.bin": b""}), "path of training_args.bin", "leave it out"),
    "torch file beside": (lambda f: f.update({"optimizer.pt": b""}), "path of optimizer.pt", "leave it out"),
    "our optimizer's name": (
        lambda f: f.update({"optimizer.safetensors": b""}),
        "path of optimizer.safetensors",
        "this engine's own",
    ),
    "other tensors": (lambda f: f.update({"more.safetensors": b""}), "path of more.safetensors", "not part"),
    "a model too": (lambda f: f.update({"model.safetensors": b""}), "path of model.safetensors", "not part"),
    "nested": (lambda f: f.update({"deep/README.md": b""}), "path of deep/README.md", "plain names"),
    "no weights": (lambda f: f.pop(WEIGHTS), "header.files", "without a manifest"),
    "no configuration": (lambda f: f.pop(CONFIG), "header.files", "without a manifest"),
    "huge note": (lambda f: f.update({"README.md": bytes(64 * 1024**2 + 1)}), "header.files[0].size_bytes", "at most"),
    "not JSON": (lambda f: f.update({CONFIG: b"{"}), CONFIG, "not JSON"),
    "deep JSON": (lambda f: f.update({CONFIG: b"[" * 100_000}), CONFIG, "not JSON"),
    "no object": (lambda f: f.update({CONFIG: b"[]"}), CONFIG, "object"),
    "DoRA": (changed_config(use_dora=True), CONFIG, "use_dora"),
    "rank beyond the limit": (changed_config(r=4), f"{CONFIG}: r", "at most 3"),
    "rank of other tensors": (changed_config(r=2), WEIGHTS, "the configuration says rank 2"),
    "no safetensors": (lambda f: f.update({WEIGHTS: b"pickle"}), WEIGHTS, "not a safetensors file"),
    "empty weights": (lambda f: f.update({WEIGHTS: b""}), WEIGHTS, "not a safetensors file"),
    "half a pair": (tensors(lambda t: t.pop(FIRST_A)), WEIGHTS, "lora_B only"),
    "no tensors": (tensors(lambda t: t.clear()), WEIGHTS, "has no tensors"),
    "none of an adapter": (
        tensors(lambda t: (t.clear(), t.update({"x": torch.zeros(2)}))),
        WEIGHTS,
        "has no tensors named",
    ),
    "adapted embedding": (
        tensors(lambda t: t.update({"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(3, 8)})),
        WEIGHTS,
        "of a kind",
    ),
    "flat tensor": (tensors(lambda t: t.update({FIRST_A: torch.zeros(3)})), WEIGHTS, "has the shape [3]"),
    "whole numbers": (
        tensors(lambda t: t.update({FIRST_A: torch.zeros((3, 64), dtype=torch.int32)})),
        WEIGHTS,
        "is I32",
    ),
}


@pytest.mark.parametrize("case", ADAPTER_REFUSED)
def test_adapter_that_cannot_be_used_is_refused_and_leaves_nothing(
    peft_folder: Path, tmp_path: Path, case: str
) -> None:
    change, field, fix = ADAPTER_REFUSED[case]
    check_refusal(peft_folder, tmp_path, change, field, fix)


def check_refusal(folder: Path, tmp_path: Path, change: Callable[[Files], object], field: str, fix: str) -> None:
    files = files_of(folder)
    change(files)
    with pytest.raises(InvalidArgumentError) as caught:
        receive(tmp_path / "root", files)
    if field.startswith("path of "):
        field = f"header.files[{list(files).index(field.removeprefix('path of '))}].path"
    assert [each.field for each in caught.value.fields] == [field]
    assert fix in caught.value.message
    assert list((tmp_path / "root").iterdir()) == []


def cut_part(files: Files) -> None:
    del files[next(name for name in files if name.startswith("model-"))]


def changed_index(files: Files) -> None:
    index = json.loads(files[INDEX])
    names = sorted(index["weight_map"])
    index["weight_map"][names[0]] = index["weight_map"][names[-1]]
    files[INDEX] = json.dumps(index).encode()


MODEL_REFUSED: dict[str, tuple[Callable[[Files], object], str, str]] = {
    "no configuration": (lambda f: f.pop("config.json"), "header.files", "without a manifest"),
    "no index": (lambda f: f.pop(INDEX), "header.files", "without a manifest"),
    "index of nothing": (lambda f: f.update({INDEX: b"{}"}), INDEX, "other tensors"),
    "index of names": (lambda f: f.update({INDEX: b'{"weight_map": [1]}'}), INDEX, "other tensors"),
    "index that is wrong": (changed_index, INDEX, "other tensors"),
    "part missing": (cut_part, INDEX, "which was not sent"),
    "whole beside parts": (lambda f: f.update({"model.safetensors": b""}), "header.files", "without a manifest"),
    "no model type": (lambda f: f.update({"config.json": b"{}"}), "config.json", "model_type"),
    "pickled part": (
        lambda f: f.update({"pytorch_model-00001-of-00002.bin": b""}),
        "path of pytorch_model-00001-of-00002.bin",
        "never read",
    ),
    "adapter's configuration": (
        lambda f: f.update({CONFIG: b"{}"}),
        "header.files",
        "without a manifest",
    ),
}


@pytest.mark.parametrize("case", MODEL_REFUSED)
def test_model_that_cannot_be_used_is_refused_and_leaves_nothing(
    sharded_folder: Path, tmp_path: Path, case: str
) -> None:
    change, field, fix = MODEL_REFUSED[case]
    check_refusal(sharded_folder, tmp_path, change, field, fix)


def test_parts_beside_a_whole_are_refused(tiny_folder: Path, sharded_folder: Path, tmp_path: Path) -> None:
    part = next(name for name in files_of(sharded_folder) if name.startswith("model-"))
    shutil.copy(sharded_folder / part, tmp_path / "part")
    check_refusal(
        tiny_folder,
        tmp_path,
        lambda files: files.update({part: (tmp_path / "part").read_bytes()}),
        part,
        "the whole or its parts",
    )
