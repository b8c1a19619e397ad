"""Configuration keys that only make sense together, and how they reach the ports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crucible.kitchen.v1 import event_pb2
from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import InvalidArgumentError
from tests.workflow.kitchen import Kitchen, payloads, write_rows

COMPLETED = event_pb2.RUN_STATE_COMPLETED


async def refused(kitchen: Kitchen, preset: str = "", **config: Any) -> tuple[str, str]:
    """Field and message of a run that must not be created."""
    with pytest.raises(InvalidArgumentError) as caught:
        await kitchen.create(preset, **config)
    assert await kitchen.store.list_runs() == []
    [violation] = caught.value.fields
    assert violation.field == caught.value.metadata["field"]
    return violation.field, caught.value.message


class Spy:
    """Notes the requests of one method of a port."""

    def __init__(self, kitchen: Kitchen, port: str, method: str) -> None:
        self.requests: list[Any] = []
        original = getattr(kitchen.servicers[port], method)

        async def spied(request: Any, context: Any) -> Any:
            self.requests.append(request)
            return await original(request, context)

        setattr(kitchen.servicers[port], method, spied)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({}, {"rank": 8, "alpha": 8, "train_attention": True, "train_mlp": True, "train_unembedding": False}),
        (
            {"lora_alpha": 16, "lora_train_mlp": False, "lora_train_unembedding": True},
            {"rank": 8, "alpha": 16, "train_attention": True, "train_mlp": False, "train_unembedding": True},
        ),
        (
            {"lora_target_modules": ["q_proj", "v_proj"]},
            {"rank": 8, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        ),
        ({"lora_rank": 0}, None),
    ],
)
async def test_the_adapter_that_is_asked_for(
    kitchen: Kitchen, small: dict[str, Any], config: dict[str, Any], asked: dict[str, Any] | None
) -> None:
    run = await kitchen.run(**small | config, max_steps=1)
    assert run.state == COMPLETED
    [request] = kitchen.training.created
    assert request.HasField("lora") == (asked is not None)
    assert request.lora == training_pb2.LoraConfig(**(asked or {}))
    assert request.base_model == str(Path(small["model"]).resolve())
    # other tools find it by the folder that the adapter writes down
    assert request.base_model_name == ""


@pytest.mark.parametrize(
    ("config", "field", "told"),
    [
        ({"lora_rank": 0, "lora_alpha": 16}, "lora_alpha", "no effect with lora_rank 0"),
        ({"lora_rank": 0, "lora_train_mlp": False}, "lora_train_mlp", "no effect with lora_rank 0"),
        ({"lora_rank": 0, "lora_target_modules": ["q_proj"]}, "lora_target_modules", "no effect with lora_rank 0"),
        ({"lora_target_modules": ["q_proj"], "lora_train_mlp": False}, "lora_train_mlp", "replaces the groups"),
        ({"lora_train_mlp": False, "lora_train_attention": False}, "lora_train_attention", "are all false"),
        ({"lora_alpha": -1}, "lora_alpha", "greater than or equal to 0"),
        ({"lora_rank": 5000}, "lora_rank", "4096"),
        ({"lora_target_modules": [""]}, "lora_target_modules.0", "at least 1"),
        ({"min_lr_ratio": 0.1, "lr_schedule": "constant"}, "min_lr_ratio", "no effect with lr_schedule constant"),
        ({"min_lr_ratio": 1.5}, "min_lr_ratio", "less than or equal to 1"),
        ({"sample_prompts": 1}, "sample_prompts", "set eval_dataset or eval_fraction"),
    ],
)
async def test_what_does_not_go_together_is_refused(
    kitchen: Kitchen, small: dict[str, Any], config: dict[str, Any], field: str, told: str
) -> None:
    blamed, message = await refused(kitchen, **small | config)
    assert blamed == f"config.{field}"
    assert told in message


@pytest.mark.parametrize(
    ("config", "field", "told"),
    [
        # The preset warms up over 20 steps, evaluates at the start, and trains every weight.
        ({"max_steps": 5}, "max_steps", "(warmup_steps is the preset tiny's)"),
        ({"max_steps": 5, "warmup_steps": 5}, "warmup_steps", "must be less than max_steps, 5"),
        ({"eval_dataset": ""}, "eval_dataset", "eval_at_start is the preset tiny's"),
        ({"lora_alpha": 4}, "lora_alpha", "(lora_rank is the preset tiny's)"),
    ],
)
async def test_a_preset_s_value_is_not_blamed_on_the_caller(
    kitchen: Kitchen, config: dict[str, Any], field: str, told: str
) -> None:
    blamed, message = await refused(kitchen, "tiny", **config)
    assert blamed == f"config.{field}"
    assert told in message


async def test_what_only_the_engine_knows_names_the_key_too(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small | {"lora_rank": 128})
    assert run.state == event_pb2.RUN_STATE_FAILED
    assert run.failure is not None
    assert run.failure.status.message == "config.lora_rank: lora.rank: is 128, this engine takes at most 64"


async def test_the_schedule_ends_at_its_least_rate(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small, learning_rate=8.0, min_lr_ratio=0.5, max_steps=5, warmup_steps=1)
    rates = [each.metrics["optim/lr"] for each in payloads(await kitchen.events(run), "step_completed")]
    assert rates == [8, 8, 7, 6, 5]


async def test_where_rows_come_from(kitchen: Kitchen, small: dict[str, Any], tmp_path: Path) -> None:
    """The dataset adapter hears of configuration, revision and fields; what it does not have it refuses."""
    opened = Spy(kitchen, "dataset", "OpenDataset")
    other = write_rows(tmp_path / "other.jsonl", 3)
    run = await kitchen.run(**small, max_rows=5, eval_dataset=str(other), eval_max_rows=2)
    assert run.state == COMPLETED
    train, held_out = opened.requests[-2:]
    assert [(each.WhichOneof("transform"), each.take) for each in train.transforms] == [("take", 5)]
    assert [(each.WhichOneof("transform"), each.take) for each in held_out.transforms] == [("take", 2)]
    [planned] = payloads(await kitchen.events(run), "planned")
    assert (planned.num_rows, planned.num_eval_rows) == (5, 2)


async def test_streaming_is_asked_of_adapters_that_have_it(kitchen: Kitchen, small: dict[str, Any]) -> None:
    opened = Spy(kitchen, "dataset", "OpenDataset")
    asked = []
    for capabilities in (frozenset(), frozenset({"dataset.streaming"})):
        kitchen.capabilities["dataset"] = capabilities
        for config in ({}, {"max_rows": 4}):
            # With both, this adapter is said to stream, and does not: the run fails when it asks.
            await kitchen.run(**small, **config, max_steps=1)
            asked.append(opened.requests[-1].streaming)
    assert asked == [False, False, False, True]


async def test_a_configuration_and_revision_go_with_their_dataset(
    kitchen: Kitchen, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, str, str, str]] = []

    async def find(request: Any, context: Any) -> Any:
        source = request.source
        found.append((source.uri, source.split, source.config, source.revision))
        return dataset_pb2.FindDatasetResponse(source=source)

    monkeypatch.setattr(kitchen.servicers["dataset"], "FindDataset", find)
    config = small | {"dataset": "o/n#train", "dataset_config": "main", "dataset_revision": "v2"}
    await kitchen.create(**config, eval_dataset="o/n#test")
    assert found == [("o/n", "train", "main", "v2"), ("o/n", "test", "main", "v2")]
    found.clear()
    await kitchen.create(**config, eval_dataset="o/other")
    assert found == [("o/n", "train", "main", "v2"), ("o/other", "", "", "")]


@pytest.mark.parametrize("key", ["dataset_config", "dataset_revision"])
async def test_what_a_source_does_not_have_names_the_key(kitchen: Kitchen, small: dict[str, Any], key: str) -> None:
    blamed, _ = await refused(kitchen, **small, **{key: "main"})
    assert blamed == f"config.{key}"


async def test_fields_are_mapped_by_the_dataset_adapter(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "odd.jsonl"
    rows = [{"problem": f"{n}?", "solution": f"The answer is {n}.", "prompt": "x", "completion": "y"} for n in range(8)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = await kitchen.run(**small | {"dataset": str(path)}, fields={"question": "problem", "answer": "solution"})
    assert run.state == COMPLETED, run.failure
    # Only what was named is read: not the prompt and completion that the rows have too.
    plain = await kitchen.run(**small | {"dataset": str(path)})
    first, second = [payloads(await kitchen.events(each), "planned")[0] for each in (run, plain)]
    assert first.trained_tokens_per_epoch != second.trained_tokens_per_epoch


async def test_a_field_that_rows_lack_is_named(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small, fields={"question": "problem", "answer": "answer"})
    assert run.failure is not None
    assert run.failure.reason == "DATASET_MALFORMED"
    assert "problem" in run.failure.status.message
