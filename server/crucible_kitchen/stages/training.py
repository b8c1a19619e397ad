"""The stages of one optimizer step."""

from __future__ import annotations

import time

import numpy as np
from pydantic import Field

from crucible.kitchen.v1 import event_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.determinism import epoch_order
from crucible_kit.errors import field_error
from crucible_kit.faults import fault_point
from crucible_kit.schedules import ScheduleName, learning_rate
from crucible_kit.sequences import Batch
from crucible_kit.tensors import from_tensor
from crucible_kit.training import TrainingSession, merge
from crucible_kitchen.metric_definitions import check_names
from crucible_kitchen.stages.build_datums import BuildDatumsOptions, TrainingData
from crucible_kitchen.workflows.context import StageContext, SubmitContext
from crucible_kitchen.workflows.stage import MAX_COUNT, Kind, Output, PortUse, Stage, StageOptions

CROSS_ENTROPY = training_pb2.LossFunction(name="cross_entropy")
# Names of the loops that the stages below stand in.
EPOCHS, STEPS = "epochs", "steps"


class BeginEpochOptions(StageOptions):
    """In what order the rows come."""

    shuffle: bool = Field(
        default=True, description="Shuffle the rows anew in each epoch, by the run's seed and the epoch."
    )


class BeginEpoch(Stage):
    """Fixes the order of the epoch's rows."""

    name = "begin_epoch"
    description = "Fix the order of the epoch's rows, a function of seed and epoch, and how many steps the epoch has."
    options = BeginEpochOptions
    inputs = ("data", "steps_per_epoch", "total_steps")
    outputs = (Output(key="epoch_order", kind=Kind.HANDLE), Output(key="epoch_steps", kind=Kind.VALUE))
    setup = True

    async def run(self, context: StageContext) -> None:
        data: TrainingData = context["data"]
        epoch, rows = context.run.iterations[EPOCHS], len(data.train)
        shuffle = context.options(BeginEpochOptions).shuffle
        context["epoch_order"] = epoch_order(context.run.seed, epoch, rows) if shuffle else np.arange(rows)
        per_epoch = context["steps_per_epoch"]
        context["epoch_steps"] = min(per_epoch, context["total_steps"] - epoch * per_epoch)


class GetBatch(Stage):
    """Picks the step's rows."""

    name = "get_batch"
    description = "Pick the rows of this step from the epoch's order."
    options = BuildDatumsOptions
    inputs = ("data", "epoch_order")
    outputs = (Output(key="batch", kind=Kind.TRANSIENT),)

    async def run(self, context: StageContext) -> None:
        data: TrainingData = context["data"]
        size = context.options(BuildDatumsOptions).batch_size
        start = context.run.iterations[STEPS] * size
        chosen = context["epoch_order"][start : start + size]
        context["batch"] = Batch(sequences=tuple(data.train[index] for index in chosen))


class ForwardBackward(Stage):
    """Asks for the gradients."""

    name = "forward_backward"
    description = (
        "Enqueue the gradients of cross_entropy over the batch, each trained token weighted 1 / N of the batch."
    )
    inputs = ("session", "batch")
    outputs = (Output(key="pending_forward", kind=Kind.TRANSIENT),)
    ports = (PortUse(port="training"),)

    async def run(self, context: StageContext) -> None:
        session: TrainingSession = context["session"]
        context["pending_forward"] = await session.enqueue_forward_backward(context["batch"].datums(), CROSS_ENTROPY)
        fault_point("server.forward_backward.after")


class OptimizerOptions(StageOptions):
    """AdamW and its learning-rate schedule."""

    learning_rate: float = Field(default=2e-4, ge=0, allow_inf_nan=False, description="Peak learning rate.")
    lr_schedule: ScheduleName = Field(
        default="linear",
        description="How the learning rate goes on after warm-up: constant, or linear or cosine to min_lr_ratio.",
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Steps over which the learning rate rises to its peak."
    )
    min_lr_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Part of the peak that linear and cosine come down to after the last step.",
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of AdamW's first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="Decay of AdamW's second moment.")
    eps: float = Field(
        default=1e-8, gt=0, allow_inf_nan=False, description="Added to the root of AdamW's second moment."
    )
    weight_decay: float = Field(default=0.0, ge=0, allow_inf_nan=False, description="Decoupled weight decay.")
    grad_clip_norm: float = Field(
        default=1.0,
        ge=0,
        allow_inf_nan=False,
        description="Gradients are scaled down to this global norm; 0: not clipped.",
    )


class OptimStep(Stage):
    """Takes the optimizer step."""

    name = "optim_step"
    description = "Enqueue the AdamW step behind the gradients and wait for both."
    options = OptimizerOptions
    inputs = ("session", "pending_forward", "total_steps")
    outputs = (Output(key="forward_result", kind=Kind.TRANSIENT), Output(key="step_result", kind=Kind.TRANSIENT))
    ports = (PortUse(port="training"),)
    completes_step = True

    async def validate(self, context: SubmitContext) -> None:
        options, max_steps = context.options(OptimizerOptions), context.config.get("max_steps", 0)
        if max_steps and options.warmup_steps >= max_steps:
            raise context.conflict(
                ("warmup_steps", "max_steps"),
                f"warmup_steps, {options.warmup_steps}, must be less than max_steps, {max_steps}",
            )
        if options.lr_schedule == "constant" and options.min_lr_ratio:
            raise context.conflict(
                ("min_lr_ratio", "lr_schedule"),
                "min_lr_ratio has no effect with lr_schedule constant: choose linear or cosine, or leave it out",
            )

    async def run(self, context: StageContext) -> None:
        options, session = context.options(OptimizerOptions), context["session"]
        total = context["total_steps"]
        if options.warmup_steps >= total:
            raise field_error(
                "config.warmup_steps",
                f"is {options.warmup_steps}, must be less than the planned steps, {total}",
                reason="CONFIG_INVALID",
            )
        rate = learning_rate(
            context.run.step,
            total_steps=total,
            peak=options.learning_rate,
            schedule=options.lr_schedule,
            warmup_steps=options.warmup_steps,
            final_fraction=options.min_lr_ratio,
        )
        adam = training_pb2.AdamParams(
            learning_rate=rate,
            beta1=options.beta1,
            beta2=options.beta2,
            eps=options.eps,
            weight_decay=options.weight_decay,
            grad_clip_norm=options.grad_clip_norm,
        )
        step = await session.enqueue_optim_step(adam)
        forward = [(await session.result(each)).forward for each in context["pending_forward"]]
        context["forward_result"] = merge(forward)
        context["step_result"] = (await session.result(step)).optim_step


class LogMetrics(Stage):
    """Writes the step's event."""

    name = "log_metrics"
    description = "Record the step's metrics and stage times; all of its operations have finished."
    inputs = ("batch", "forward_result", "step_result", "steps_per_epoch", "total_steps")
    metrics = (
        "train/loss",
        "train/mean_nll",
        "train/tokens",
        "train/input_tokens",
        "train/tokens_per_second",
        "train/epoch",
        "optim/lr",
        "optim/grad_norm",
        "optim/update_norm",
        "time/<stage>",
        "time/step",
        "progress/step",
        "progress/fraction",
    )
    events = ("step_completed",)

    async def run(self, context: StageContext) -> None:
        run, batch, step = context.run, context["batch"], context["step_result"]
        seconds = time.monotonic() - run.step_began_at
        fraction = run.step / context["total_steps"]
        metrics = {
            "train/loss": context["forward_result"].loss,
            "train/mean_nll": _mean_nll(batch, context["forward_result"]),
            "train/tokens": batch.trained_tokens,
            "train/input_tokens": batch.input_tokens,
            "train/tokens_per_second": batch.input_tokens / seconds,
            "train/epoch": run.step / context["steps_per_epoch"],
            "optim/lr": step.learning_rate,
            "optim/grad_norm": step.grad_norm,
            "optim/update_norm": step.update_norm,
            "time/step": seconds,
            "progress/step": run.step,
            "progress/fraction": fraction,
            **{f"time/{stage}": value for stage, value in run.stage_seconds.items()},
        }
        check_names(metrics)
        run.stage_seconds.clear()
        done = event_pb2.StepCompleted(metrics=metrics, fraction=fraction)
        # The engine computes the next step while the disk takes the event of this one.
        await context.emit(changes={"step": run.step}, wait=False, step_completed=done)


def _mean_nll(batch: Batch, result: training_pb2.ForwardResult) -> float:
    total = 0.0
    for sequence, output in zip(batch.sequences, result.outputs, strict=True):
        logprobs = from_tensor(output.logprobs, field="logprobs")
        total -= float(logprobs[sequence.mask[1:] == 1].sum(dtype=np.float64))
    return total / batch.trained_tokens
