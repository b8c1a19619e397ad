"""Opening and closing what a run trains with: model, session, tokenizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from crucible.port.hub.v1 import hub_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import KitchenError, capability_missing, field_error
from crucible_kitchen.ports.training import TrainingSession
from crucible_kitchen.workflows.context import Ports, StageContext, SubmitContext
from crucible_kitchen.workflows.stage import Kind, Output, PortUse, Stage, StageOptions

_SNAPSHOT_SECONDS = 3600.0


class BaseModelOptions(StageOptions):
    """Which model to start from."""

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="Base model: builtin:NAME, a folder in transformers' format, or owner/name on the hub.",
    )


class ModelOptions(BaseModelOptions):
    """Which model to train, and how much of it."""

    lora_rank: int = Field(default=32, ge=0, le=4096, description="Rank of the LoRA adapter; 0 trains every weight.")
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="Type of the trained weights; auto: the model's own on a GPU, float32 on a CPU."
    )


class TokenizerOptions(BaseModelOptions):
    """Which tokenizer to use."""

    tokenizer: str = Field(
        default="", max_length=4096, description="Tokenizer, named like model; empty: the model's own."
    )


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A tokenizer as calls name it, and what it is."""

    name: str
    info: tokenizer_pb2.GetTokenizerInfoResponse


async def resolve_model(ports: Ports, repo: str, *, key: str) -> hub_pb2.SnapshotRepoResponse:
    """Brings a model's files to this machine. Raises INVALID_ARGUMENT MODEL_NOT_FOUND naming the configuration key."""
    hub = await ports.stub("hub")
    try:
        return await hub.SnapshotRepo(
            hub_pb2.SnapshotRepoRequest(ref=hub_pb2.RepoRef(repo=repo)), timeout=_SNAPSHOT_SECONDS
        )
    except KitchenError as error:
        if error.reason in ("REPO_NOT_FOUND", "REVISION_NOT_FOUND", "FIELD_INVALID", "PATH_NOT_ALLOWED"):
            raise field_error(f"config.{key}", error.message, reason="MODEL_NOT_FOUND") from error
        raise


class StartSession(Stage):
    """Opens the training session and puts the checkpoint's weights in when the run goes on from one."""

    name = "start_session"
    description = "Open a training session on the base model; on resume load the checkpoint's weights and optimizer."
    options = ModelOptions
    outputs = (Output(key="session", kind=Kind.HANDLE), Output(key="model_revision", kind=Kind.VALUE))
    ports = (PortUse(port="hub"), PortUse(port="training"), PortUse(port="blob"))
    setup = True

    async def validate(self, context: SubmitContext) -> None:
        options = context.options(ModelOptions)
        needed = "training.lora" if options.lora_rank else "training.full"
        fix = "set lora_rank=0 to train every weight" if options.lora_rank else "set lora_rank to train a LoRA adapter"
        if needed not in await context.ports.capabilities("training"):
            raise capability_missing("training", needed, fix)
        if "training.local_model" in await context.ports.capabilities("training"):
            await resolve_model(context.ports, options.model, key="model")

    async def run(self, context: StageContext) -> None:
        options, ports = context.options(ModelOptions), context.run.ports
        base_model, revision = options.model, ""
        if "training.local_model" in await ports.capabilities("training"):
            snapshot = await resolve_model(ports, options.model, key="model")
            base_model, revision = snapshot.local_path, snapshot.ref.revision
        lora = training_pb2.LoraConfig(rank=options.lora_rank) if options.lora_rank else None
        session = await TrainingSession.create(
            await context.stub("training"),
            base_model=base_model,
            lora=lora,
            seed=context.seed_for("weights"),
            dtype=options.dtype,
        )
        context["session"] = session
        context["model_revision"] = revision
        if context.run.checkpoint is not None:
            await context.run.saver.restore(context, session)

    async def rollback(self, context: StageContext, error: BaseException) -> None:
        await close_session(context)


async def close_session(context: StageContext) -> None:
    """Closes the session if one is open; a session whose adapter is gone is closed already."""
    session: TrainingSession | None = context.run.values.pop("session", None)
    if session is not None:
        try:
            await session.close()
        except KitchenError as error:
            if not error.retryable and error.reason != "SESSION_NOT_FOUND":
                raise


class InitTokenizer(Stage):
    """Loads the tokenizer."""

    name = "init_tokenizer"
    description = "Load the tokenizer and fix its ids for the run."
    options = TokenizerOptions
    outputs = (Output(key="tokenizer", kind=Kind.HANDLE), Output(key="tokenizer_fingerprint", kind=Kind.VALUE))
    ports = (PortUse(port="hub"), PortUse(port="tokenizer"))
    setup = True

    async def validate(self, context: SubmitContext) -> None:
        options = context.options(TokenizerOptions)
        if options.tokenizer:
            await resolve_model(context.ports, options.tokenizer, key="tokenizer")

    async def run(self, context: StageContext) -> None:
        options = context.options(TokenizerOptions)
        key = "tokenizer" if options.tokenizer else "model"
        snapshot = await resolve_model(context.run.ports, options.tokenizer or options.model, key=key)
        stub = await context.stub("tokenizer")
        info = await stub.GetTokenizerInfo(tokenizer_pb2.GetTokenizerInfoRequest(tokenizer=snapshot.local_path))
        context["tokenizer"] = Tokenizer(name=snapshot.local_path, info=info)
        context["tokenizer_fingerprint"] = info.fingerprint


class Cleanup(Stage):
    """Closes what is open."""

    name = "cleanup"
    description = "Close the run's sessions and datasets, whatever happened before."
    ports = (PortUse(port="training"), PortUse(port="dataset"))

    async def run(self, context: StageContext) -> None:
        await close_session(context)
        for key in ("dataset", "eval_dataset"):
            dataset = context.run.values.pop(key, None)
            if dataset is not None:
                await dataset.close()
