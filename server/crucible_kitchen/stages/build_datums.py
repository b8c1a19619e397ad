"""Turning rows into tokenised sequences and planning the steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from crucible.kitchen.v1 import event_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.type.v1 import message_pb2
from crucible_kit.conversations import to_conversation
from crucible_kit.errors import FailedPreconditionError
from crucible_kit.sequences import Sequence
from crucible_kitchen.stages.data import OpenDataset
from crucible_kitchen.stages.datums import unigram_nll
from crucible_kitchen.stages.session import Tokenizer
from crucible_kitchen.workflows.context import StageContext
from crucible_kitchen.workflows.stage import MAX_COUNT, Kind, Output, PortUse, Stage, StageOptions

_RENDER_BATCH = 256
_RENDER_SECONDS = 300.0

TRAIN_ON = {
    "last_assistant_message": message_pb2.TRAIN_ON_LAST_ASSISTANT_MESSAGE,
    "all_assistant_messages": message_pb2.TRAIN_ON_ALL_ASSISTANT_MESSAGES,
    "all_messages": message_pb2.TRAIN_ON_ALL_MESSAGES,
    "all_tokens": message_pb2.TRAIN_ON_ALL_TOKENS,
    "all_user_and_system_messages": message_pb2.TRAIN_ON_ALL_USER_AND_SYSTEM_MESSAGES,
    "customized": message_pb2.TRAIN_ON_CUSTOMIZED,
}


class BuildDatumsOptions(StageOptions):
    """How rows become sequences, and how many steps that makes."""

    max_length: int = Field(
        default=32768, ge=2, le=MAX_COUNT, description="Rows are cut to so many tokens, and to what the model takes."
    )
    train_on: Literal[
        "last_assistant_message",
        "all_assistant_messages",
        "all_messages",
        "all_tokens",
        "all_user_and_system_messages",
        "customized",
    ] = Field(default="all_assistant_messages", description="Which tokens of a conversation are trained on.")
    batch_size: int = Field(default=128, ge=1, le=65536, description="Rows of one optimizer step.")
    num_epochs: int = Field(default=1, ge=1, le=1_000_000, description="Passes over the rows.")
    max_steps: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="Optimizer steps in all, in as many epochs as that takes; 0: num_epochs decides.",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The run's sequences.

    Attributes:
        train: one for each training row with a token to train on, in the dataset's order.
        held_out: the same of the held-out rows.
        held_out_conversations: the held-out rows as conversations, in the same order.
        unigram_nll: nats per held-out token of a unigram model of the training targets; NaN without held-out rows.
    """

    train: list[Sequence]
    held_out: list[Sequence]
    held_out_conversations: list[message_pb2.Conversation]
    unigram_nll: float


class BuildDatums(Stage):
    """Renders and tokenises all rows, then plans the steps."""

    name = "build_datums"
    description = "Map rows to conversations, render and tokenise them, truncate, and plan all optimizer steps."
    options = BuildDatumsOptions
    inputs = ("dataset", "eval_dataset", "session", "tokenizer")
    outputs = (
        Output(key="data", kind=Kind.HANDLE),
        Output(key="num_epochs", kind=Kind.VALUE),
        Output(key="steps_per_epoch", kind=Kind.VALUE),
        Output(key="total_steps", kind=Kind.VALUE),
    )
    ports = (PortUse(port="dataset"), PortUse(port="tokenizer"))
    events = ("planned", "log_recorded")
    setup = True

    async def run(self, context: StageContext) -> None:
        options = context.options(BuildDatumsOptions)
        dataset: OpenDataset = context["dataset"]
        eval_dataset: OpenDataset | None = context["eval_dataset"]
        if not context["tokenizer"].info.has_chat_template:
            message = (
                "the tokenizer has no chat template: rows are rendered plainly, as 'User: ...' and 'Assistant: ...'"
            )
            await _log(context, event_pb2.LogRecorded.SEVERITY_INFO, message)
        train, _ = await self._build(context, dataset, options)
        held_out, conversations = [], []
        unigram = math.nan
        if eval_dataset is not None:
            held_out, conversations = await self._build(context, eval_dataset, options)
            unigram = unigram_nll(train, held_out, context["tokenizer"].info.vocab_size)
        context["data"] = TrainingData(
            train=train, held_out=held_out, held_out_conversations=conversations, unigram_nll=unigram
        )
        steps_per_epoch = math.ceil(len(train) / options.batch_size)
        total = options.max_steps or steps_per_epoch * options.num_epochs
        context["steps_per_epoch"], context["total_steps"] = steps_per_epoch, total
        context["num_epochs"] = math.ceil(total / steps_per_epoch)
        await context.emit(
            changes={"total_steps": total},
            planned=event_pb2.RunPlanned(
                total_steps=total,
                steps_per_epoch=steps_per_epoch,
                num_rows=len(train),
                trained_tokens_per_epoch=sum(each.trained_tokens for each in train),
                dataset_fingerprint=dataset.info.fingerprint,
                num_eval_rows=len(held_out),
            ),
        )

    async def _build(
        self, context: StageContext, dataset: OpenDataset, options: BuildDatumsOptions
    ) -> tuple[list[Sequence], list[message_pb2.Conversation]]:
        rows = await dataset.rows()
        conversations = [to_conversation(row, number) for number, row in rows]
        rendered = await render(context, conversations, TRAIN_ON[options.train_on])
        longest = min(options.max_length, context["session"].info.max_sequence_tokens + 1)
        sequences, kept, cut = [], [], 0
        for conversation, each in zip(conversations, rendered, strict=True):
            cut += len(each.train_mask_uint8) > longest
            sequence = Sequence.from_rendered(each, longest)
            if sequence.trained_tokens:
                sequences.append(sequence)
                kept.append(conversation)
        if not sequences:
            raise FailedPreconditionError(
                f"{dataset.key}: none of {len(rows)} rows has a token to train on within {longest} tokens: "
                "raise max_length or change train_on",
                reason="NOTHING_TO_TRAIN",
                metadata={"field": f"config.{dataset.key}", "rows": len(rows)},
            )
        if cut or len(kept) < len(rows):
            message = (
                f"{dataset.key}: of {len(rows)} rows {cut} were cut to {longest} tokens, "
                f"and {len(rows) - len(kept)} were left out, having no token to train on"
            )
            await _log(context, event_pb2.LogRecorded.SEVERITY_WARNING, message)
        return sequences, kept


async def _log(context: StageContext, severity: event_pb2.LogRecorded.Severity, message: str) -> None:
    await context.emit(log_recorded=event_pb2.LogRecorded(severity=severity, message=message))


async def render(
    context: StageContext,
    conversations: list[message_pb2.Conversation],
    train_on: message_pb2.TrainOn,
    *,
    add_generation_prompt: bool = False,
) -> list[tokenizer_pb2.RenderedConversation]:
    """The conversations as token ids and train masks, in order; plainly when the tokenizer has no chat template."""
    stub = await context.stub("tokenizer")
    tokenizer: Tokenizer = context["tokenizer"]
    rendered: list[tokenizer_pb2.RenderedConversation] = []
    for start in range(0, len(conversations), _RENDER_BATCH):
        request = tokenizer_pb2.ApplyChatTemplateRequest(
            tokenizer=tokenizer.name,
            conversations=conversations[start : start + _RENDER_BATCH],
            add_generation_prompt=add_generation_prompt,
            train_on=train_on,
            plain_without_template=not tokenizer.info.has_chat_template,
        )
        rendered.extend((await stub.ApplyChatTemplate(request, timeout=_RENDER_SECONDS)).rendered)
    return rendered
