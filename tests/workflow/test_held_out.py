"""eval_fraction: rows that are held out of the training rows, by the run's seed, and never trained on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, UnavailableError
from crucible_kitchen.stages.data import split_rows
from tests.contract.tokenizer_folders import SHIPPED
from tests.workflow.kitchen import Kitchen, payloads, write_rows

DECODER = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))


def numbers(rows: list[tuple[int, ...]]) -> list[int]:
    """The rows' numbers, which stand in their questions."""
    found = [re.search(r"What is (\d+) \+ 1", DECODER.decode(list(row))) for row in rows]
    return [int(each[1]) for each in found if each]


@pytest.mark.parametrize("rows", [2, 3, 24, 1000])
@pytest.mark.parametrize("fraction", [0.001, 0.1, 0.49])
def test_a_split_is_a_partition(rows: int, fraction: float) -> None:
    train, held = split_rows(7, rows, fraction)
    assert sorted([*train, *held]) == list(range(rows))
    # As scikit-learn and datasets round a test size: up.
    assert len(held) == -(-round(fraction * 1000) * rows // 1000)
    assert np.all(np.diff(train) > 0), "the training rows keep their order"


def test_a_fraction_counts_as_it_is_written() -> None:
    assert [len(split_rows(0, 100, fraction)[1]) for fraction in (0.07, 0.14, 0.28, 0.29)] == [7, 14, 28, 29]


def test_a_split_is_a_function_of_the_seed_and_not_the_epoch_s_order() -> None:
    once, again, other = (sorted(split_rows(seed, 100, 0.2)[1]) for seed in (3, 3, 4))
    assert once == again != other
    first_epoch = np.random.default_rng((3, 0)).permutation(100)
    assert once not in (sorted(first_epoch[:20]), sorted(first_epoch[-20:]))


@pytest.mark.parametrize(("rows", "fraction"), [(1, 0.5), (2, 0.6), (5, 0.99)])
def test_nothing_left_to_train_on_is_refused(rows: int, fraction: float) -> None:
    with pytest.raises(FailedPreconditionError, match=f"of {rows} rows and leaves none to train on") as caught:
        split_rows(0, rows, fraction)
    assert (caught.value.reason, caught.value.metadata["field"]) == ("DATASET_TOO_SMALL", "config.eval_fraction")


async def test_held_out_rows_are_scored_and_never_trained_on(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run("", 5, **small, eval_fraction=0.25, num_epochs=3)
    assert run.state == event_pb2.RUN_STATE_COMPLETED
    trained, scored = numbers(kitchen.training.trained), numbers(kitchen.training.scored)
    assert len(scored) == len(set(scored)) == 6
    assert set(trained) == set(range(24)) - set(scored)
    assert len(trained) == 3 * 18
    [planned] = payloads(await kitchen.events(run), "planned")
    assert (planned.num_rows, planned.num_eval_rows, planned.total_steps) == (18, 6, 15)
    [evaluated] = payloads(await kitchen.events(run), "evaluation_completed")
    assert evaluated.metrics["eval/heldout/tokens"] > 0


async def test_a_resumed_run_holds_out_the_same_rows(kitchen: Kitchen, small: dict[str, Any]) -> None:
    crashed: list[int] = []

    def crash(step: int) -> None:
        if step in (1, 3) and step not in crashed:
            crashed.append(step)
            raise UnavailableError("the engine died", reason="TEST")

    kitchen.training.before_step = crash
    # Once from nothing and once from a checkpoint.
    run = await kitchen.run(**small, eval_fraction=0.25, save_every=2)
    assert (run.state, run.attempt) == (event_pb2.RUN_STATE_COMPLETED, 3)
    assert not set(numbers(kitchen.training.trained)) & set(numbers(kitchen.training.scored))


async def test_only_so_many_of_the_held_out_rows_are_used(kitchen: Kitchen, small: dict[str, Any]) -> None:
    whole = await kitchen.run(**small, eval_fraction=0.25)
    held = set(numbers(kitchen.training.scored))
    kitchen.training.scored.clear()
    kitchen.training.trained.clear()
    part = await kitchen.run(**small, eval_fraction=0.25, eval_max_rows=2)
    used = set(numbers(kitchen.training.scored))
    assert len(used) == 2 and used < held
    assert set(numbers(kitchen.training.trained)) == set(range(24)) - held, "the rest is held out all the same"
    told = [payloads(await kitchen.events(run), "planned")[0].num_eval_rows for run in (whole, part)]
    assert told == [6, 2]


async def test_max_rows_come_first(kitchen: Kitchen, small: dict[str, Any]) -> None:
    run = await kitchen.run(**small, max_rows=8, eval_fraction=0.25)
    assert run.state == event_pb2.RUN_STATE_COMPLETED
    seen = numbers(kitchen.training.trained) + numbers(kitchen.training.scored)
    assert sorted(seen) == list(range(8))


async def test_too_few_rows_fail_the_run_and_say_why(kitchen: Kitchen, small: dict[str, Any], tmp_path: Path) -> None:
    config = small | {"dataset": str(write_rows(tmp_path / "one.jsonl", 1)), "eval_fraction": 0.5}
    run = await kitchen.run(**config)
    assert run.state == event_pb2.RUN_STATE_FAILED
    assert run.failure is not None and run.failure.reason == "DATASET_TOO_SMALL"


async def test_a_bad_row_is_named_by_its_place_in_the_dataset(
    kitchen: Kitchen, small: dict[str, Any], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "bad.jsonl", 24)
    lines = path.read_text().splitlines()
    lines[17] = '{"question": "no answer"}'
    path.write_text("\n".join(lines) + "\n")
    run = await kitchen.run(**small | {"dataset": str(path), "eval_fraction": 0.25})
    assert run.failure is not None and run.failure.status.message.startswith("row 17 ")


@pytest.mark.parametrize("fraction", [-0.1, 1, 1.5, float("nan")])
async def test_other_fractions_are_refused(kitchen: Kitchen, small: dict[str, Any], fraction: float) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await kitchen.create(**small, eval_fraction=fraction)
    assert caught.value.metadata["field"] == "config.eval_fraction"


async def test_with_an_eval_dataset_it_is_refused(kitchen: Kitchen, small: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="leave one of them out") as caught:
        await kitchen.create(**small, eval_fraction=0.1, eval_dataset=small["dataset"])
    assert (caught.value.reason, caught.value.metadata["field"]) == ("CONFIG_INVALID", "config.eval_fraction")
    with pytest.raises(InvalidArgumentError, match=r"\(eval_dataset is the preset tiny's\)"):
        await kitchen.create("tiny", **small, eval_fraction=0.1)
