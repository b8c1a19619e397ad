"""start_from: a run begins with a checkpoint of another run, or with a folder that was made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible_kit.errors import InvalidArgumentError, UnavailableError, UnimplementedError
from tests.workflow.fake_training import GROUPS
from tests.workflow.kitchen import Kitchen

COMPLETED = event_pb2.RUN_STATE_COMPLETED
BOTH = GROUPS["train_attention"] + GROUPS["train_mlp"]


def adapter(folder: Path, weights: bytes = b"made elsewhere", **config: Any) -> Path:
    """A LoRA folder as PEFT writes one, with what hubs put beside it."""
    folder.mkdir()
    described = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": BOTH, **config}
    (folder / "adapter_config.json").write_text(json.dumps(described))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text("about it")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


async def refused(kitchen: Kitchen, **config: Any) -> tuple[str, str, str]:
    """Reason, field and message of a run that must not be created."""
    with pytest.raises(InvalidArgumentError) as caught:
        await kitchen.create(**config)
    assert await kitchen.store.list_runs() == []
    return caught.value.reason, caught.value.metadata["field"], caught.value.message


async def test_an_adapter_made_elsewhere_is_where_the_run_begins(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "lora")
    run = await kitchen.run(**small, start_from=str(folder))
    assert run.state == COMPLETED, run.failure
    assert kitchen.training.uploaded == [["adapter_config.json", "adapter_model.safetensors"]]
    assert kitchen.training.loaded == [(b"made elsewhere", True)], "its weights, and a new optimizer"
    assert kitchen.training.checkpoints == {}, "the copies on the adapter's side are freed"
    plain = await kitchen.run(**small)
    assert run.latest_checkpoint is not None and plain.latest_checkpoint is not None
    assert run.latest_checkpoint.manifest_sha256 != plain.latest_checkpoint.manifest_sha256
    node = registry_pb2.LineageNode(kind=registry_pb2.NODE_KIND_MODEL_VERSION, id=run.model_version_id)
    lineage = await kitchen.servicers["registry"].GetLineage(registry_pb2.GetLineageRequest(node=node), None)
    tuned_from = [edge.to_node.id for edge in lineage.edges if edge.kind == registry_pb2.EDGE_KIND_FINE_TUNED_FROM]
    assert sorted(tuned_from) == sorted([small["model"], str(folder)])


@pytest.mark.parametrize("rank", [8, 0])
async def test_a_run_s_final_checkpoint_is_where_the_next_begins(
    kitchen: Kitchen, small: dict[str, Any], rank: int
) -> None:
    config = small | {"lora_rank": rank}
    first = await kitchen.run(**config)
    assert first.latest_checkpoint is not None
    folder = kitchen.data / "blobs" / first.latest_checkpoint.key_prefix
    second = await kitchen.run(**config, start_from=str(folder))
    assert second.state == COMPLETED, second.failure
    weights = folder / ("adapter_model.safetensors" if rank else "model.safetensors")
    assert kitchen.training.loaded == [(weights.read_bytes(), True)]
    assert kitchen.training.uploaded[0][-1] == "crucible_manifest.json", "with the manifest, last"


async def test_a_name_on_the_hub(kitchen: Kitchen, small: dict[str, Any]) -> None:
    (kitchen.data / "hub" / "me").mkdir(parents=True)
    adapter(kitchen.data / "hub" / "me" / "lora")
    assert (await kitchen.run(**small, start_from="me/lora")).state == COMPLETED
    assert kitchen.training.loaded == [(b"made elsewhere", True)]


async def test_a_model_in_parts(kitchen: Kitchen, small: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    parts = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.json", "other.safetensors", *parts):
        (folder / name).write_text("{}")
    run = await kitchen.run(**small | {"lora_rank": 0}, start_from=str(folder))
    # The fake can't load parts; what counts is what it was sent.
    assert kitchen.training.uploaded == [["config.json", "model.safetensors.index.json", *parts]]
    assert run.failure is not None and run.failure.reason == "CHECKPOINT_MISMATCH"
    assert run.failure.status.message.startswith("config.start_from: ")


async def test_a_resume_goes_on_from_its_own_checkpoint(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "lora")
    undisturbed = await kitchen.run(**small, start_from=str(folder))
    kitchen.training.loaded.clear()
    crashed: list[int] = []

    def crash(step: int) -> None:
        if step in (1, 3) and step not in crashed:
            crashed.append(step)
            if step == 3:
                (folder / "adapter_model.safetensors").unlink()  # no longer needed
            raise UnavailableError("the engine died", reason="TEST")

    kitchen.training.before_step = crash
    run = await kitchen.run(**small, start_from=str(folder), save_every=2)
    assert (run.state, run.attempt) == (COMPLETED, 3), run.failure
    # Twice from the start, then from step 2.
    assert [weights_only for _, weights_only in kitchen.training.loaded] == [True, True, False]
    assert run.latest_checkpoint is not None and undisturbed.latest_checkpoint is not None
    assert run.latest_checkpoint.manifest_sha256 == undisturbed.latest_checkpoint.manifest_sha256


@pytest.mark.parametrize(
    ("made", "config", "key", "told"),
    [
        ({"r": 16}, {"lora_rank": 8}, "lora_rank", "has rank 16: set lora_rank=16"),
        ({}, {"lora_rank": 0}, "lora_rank", "has rank 8: set lora_rank=8"),
        ({"lora_alpha": 16}, {"lora_rank": 8, "lora_alpha": 4}, "lora_alpha", "has 16: set lora_alpha=16"),
        (
            {"target_modules": ["q_proj", "v_proj"]},
            {"lora_rank": 8, "lora_target_modules": ["q_proj"]},
            "lora_target_modules",
            "set lora_target_modules to [q_proj, v_proj]",
        ),
    ],
)
async def test_another_adapter_than_the_configuration_s_is_refused_at_submit(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path, made: Any, config: Any, key: str, told: str
) -> None:
    folder = adapter(tmp_path / "lora", **made)
    reason, field, message = await refused(kitchen, **small | config, start_from=str(folder))
    assert (reason, field) == ("CONFIG_INVALID", f"config.{key}")
    assert told in message


async def test_where_a_default_does_not_fit_start_from_is_blamed(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    del small["lora_rank"]
    reason, field, message = await refused(kitchen, **small, start_from=str(adapter(tmp_path / "lora")))
    assert (reason, field) == ("CONFIG_INVALID", "config.start_from")
    assert "set lora_rank=8 (lora_rank is the recipe's)" in message


async def test_targets_that_only_the_model_tells_fail_the_run_before_it_trains(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    folder = adapter(tmp_path / "lora", target_modules=["q_proj", "v_proj"])
    run = await kitchen.run(**small, start_from=str(folder))
    assert run.state == event_pb2.RUN_STATE_FAILED
    assert run.failure is not None and run.failure.reason == "CONFIG_INVALID"
    assert "config.lora_target_modules: the run adapts down_proj" in run.failure.status.message
    assert (kitchen.training.loaded, kitchen.training.trained) == ([], [])
    mended = await kitchen.run(**small, start_from=str(folder), lora_target_modules=["v_proj", "q_proj"])
    assert mended.state == COMPLETED


async def test_a_whole_model_is_no_adapter(kitchen: Kitchen, small: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    reason, field, message = await refused(kitchen, **small, start_from=str(folder))
    assert (reason, field) == ("CONFIG_INVALID", "config.start_from")
    assert "give it as model, or set lora_rank=0" in message
    run = await kitchen.run(**small | {"lora_rank": 0}, start_from=str(folder))
    assert run.state == COMPLETED
    assert kitchen.training.loaded == [(b"weights", True)]


@pytest.mark.parametrize(
    ("files", "reason", "told"),
    [
        (None, "CHECKPOINT_NOT_FOUND", "no such folder"),
        ({}, "CHECKPOINT_MALFORMED", "has nothing"),
        ({"adapter_config.json": "{}", "adapter_model.bin": "x"}, "CHECKPOINT_MALFORMED", "adapter_model.bin"),
        (
            {"adapter_config.json": "[", "adapter_model.safetensors": "x"},
            "CHECKPOINT_MALFORMED",
            "adapter_config.json of",
        ),
        ({"adapter_config.json": "[]", "adapter_model.safetensors": "x"}, "CHECKPOINT_MALFORMED", "no JSON object"),
        (
            {"crucible_manifest.json": '{"files": {"model.safetensors": {}}}'},
            "CHECKPOINT_MALFORMED",
            "lists model.safetensors, which is not there",
        ),
        ({"crucible_manifest.json": '{"files": 1}'}, "CHECKPOINT_MALFORMED", "lists no files"),
        ({"crucible_manifest.json": '{"files": {"../model": {}}}'}, "CHECKPOINT_MALFORMED", "which is not there"),
    ],
)
async def test_what_is_no_checkpoint_is_refused_at_submit(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path, files: Any, reason: str, told: str
) -> None:
    folder = tmp_path / "broken"
    if files is not None:
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
    refusal = await refused(kitchen, **small, start_from=str(folder))
    assert refusal[:2] == (reason, "config.start_from")
    assert told in refusal[2]


@pytest.mark.parametrize("name", ["relative/folder/of/mine", "nobody/nothing", "/zero\0byte", "/proc/1/root"])
async def test_names_that_are_none_are_refused(kitchen: Kitchen, small: dict[str, Any], name: str) -> None:
    _, field, _ = await refused(kitchen, **small, start_from=name)
    assert field == "config.start_from"


async def test_an_adapter_that_takes_no_uploads_is_told_at_submit(kitchen: Kitchen, small: dict[str, Any]) -> None:
    kitchen.capabilities["training"] -= {"training.checkpoint_files"}
    with pytest.raises(UnimplementedError, match="leave start_from out"):
        await kitchen.create(**small, start_from="me/lora")
