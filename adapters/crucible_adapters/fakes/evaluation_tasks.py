"""Two tasks, and models that solve so much of them as their names and a seed say. Pure functions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from crucible.port.evaluator.v1 import evaluator_pb2
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.json_values import WORDS
from crucible_adapters.fakes.seeded import digest, pick
from crucible_kit.adapter import to_struct
from crucible_kit.errors import UnavailableError, to_failure

BROKEN, FLAKY = "broken", "flaky"
"""Models that never answer, and that answer to two questions of three."""


class NoOptions(BaseModel):
    """A task without options."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ArithmeticOptions(BaseModel):
    """Options of the task arithmetic."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    digits: int = Field(default=1, ge=1, le=9, description="Digits of the numbers.")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task.

    Attributes:
        options: their type.
        question: of a sample's number and the options: what is asked, and the right answer.
    """

    name: str
    description: str
    num_samples: int
    options: type[BaseModel]
    question: Callable[[int, Any], tuple[str, str]]


def _addition(number: int, options: ArithmeticOptions) -> tuple[str, str]:
    bits, most = int(digest("arithmetic", number)[:16], 16), 10**options.digits
    a, b = bits % most, bits // most % most
    return f"What is {a} + {b}?", str(a + b)


def _repetition(number: int, options: NoOptions) -> tuple[str, str]:
    word = pick(WORDS, "repeat", number)
    return f"Repeat the word {word}.", word


TASKS = {
    task.name: task
    for task in (
        Task(
            name="arithmetic",
            description="Adds two numbers.",
            num_samples=40,
            options=ArithmeticOptions,
            question=_addition,
        ),
        Task(name="repeat", description="Repeats a word.", num_samples=20, options=NoOptions, question=_repetition),
    )
}
SCORERS = ("exact", "length")


def describe(task: Task) -> evaluator_pb2.Task:
    """The task as ListTasks tells it."""
    described = evaluator_pb2.Task(
        name=task.name, description=task.description, num_samples=task.num_samples, scorers=SCORERS
    )
    if task.options.model_fields:
        described.options_schema.CopyFrom(to_struct(task.options.model_json_schema()))
    return described


def solve(
    task: Task, options: BaseModel, number: int, *, model: str, seed: object, max_tokens: int | None
) -> evaluator_pb2.EvaluationSample:
    """A sample of a task, answered and scored.

    Args:
        number: the sample's, from 0.
        model: decides, with the seed, how good the answers are.
        max_tokens: of the answer, in words; None: as long as it gets.
    """
    question, target = task.question(number, options)
    sample = evaluator_pb2.EvaluationSample(
        task=task.name,
        id=f"{task.name}-{number}",
        input=[message_pb2.Message(role="user", content=question)],
        target=[target],
        metadata=to_struct({"number": number}),
    )
    if model.endswith(BROKEN) or (model.endswith(FLAKY) and number % 3 == 0):
        error = UnavailableError(f"the model {model} does not answer", reason="MODEL_UNREACHABLE")
        sample.error.CopyFrom(to_failure(error, source="fake-evaluator"))
        return sample
    accuracy = _part("accuracy", seed, model)
    right = _part("answer", seed, model, task.name, number) < accuracy
    words = f"The answer is {target if right else 'unknown'}".split()
    sample.output = " ".join(words if max_tokens is None else words[:max_tokens])
    answer = sample.output.split()[-1]
    sample.scores["exact"].CopyFrom(
        evaluator_pb2.Score(value=float(answer == target), answer=answer, explanation=f"the right answer is {target}")
    )
    sample.scores["length"].CopyFrom(evaluator_pb2.Score(value=float(len(sample.output.split()))))
    return sample


def _part(*place: object) -> float:
    """A number from 0 up to 1 that follows from its place."""
    return int(digest(*place)[:12], 16) / 16**12


def aggregate(task: str, scorer: str, values: list[float]) -> evaluator_pb2.Aggregate:
    """The distribution of at least one value."""
    values_N = np.asarray(values, np.float64)
    result = evaluator_pb2.Aggregate(
        task=task,
        scorer=scorer,
        mean=float(values_N.mean()),
        min=float(values_N.min()),
        max=float(values_N.max()),
        median=float(np.median(values_N)),
        count=len(values),
    )
    if len(values) > 1:
        result.std = float(values_N.std(ddof=1))
        result.stderr = result.std / len(values) ** 0.5
    return result
