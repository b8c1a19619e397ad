"""Opening and closing what a run trains with: model, session, tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from crucible.port.hub.v1 import hub_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible_kit.errors import (
    DeadlineExceededError,
    InvalidArgumentError,
    KitchenError,
    capability_missing,
    field_error,
)
from crucible_kit.training import TrainingSession, public_name
from crucible_kitchen.ports.hub import MODEL_FILES, SNAPSHOT_SECONDS, TOKENIZER_FILES, snapshot_request
from crucible_kitchen.stages.data import OpenDataset
from crucible_kitchen.stages.lora import LoraOptions, as_config_error, check_lora
from crucible_kitchen.stages.start_from import check_start, find_start, load_start
from crucible_kitchen.workflows.context import Ports, StageContext, SubmitContext
from crucible_kitchen.workflows.stage import Kind, Output, PortUse, Stage, StageOptions

_FIND_SECONDS = 120.0
_LORA_MODULES = "training.lora_modules"


class BaseModelOptions(StageOptions):
    """Which model to start from."""

    model: str = Field(
        min_length=1,
        max_length=4096,
        description="Base model: builtin:NAME, a folder in transformers' format, or owner/name on the hub.",
    )


class ModelOptions(BaseModelOptions, LoraOptions):
    """Which model to train, how much of it, and from where."""

    dtype: Literal["auto", "float32", "bfloat16", "float64"] = Field(
        default="auto", description="Type of the model's weights; auto: its own on a GPU, float32 on a CPU."
    )
    start_from: str = Field(
        default="",
        max_length=4096,
        description="Checkpoint to begin with, weights only: the folder of one that a run has saved, or of a LoRA "
        "adapter or model made elsewhere, absolute or owner/name on the hub; empty: the model as it is.",
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

    @property
    def stop_tokens(self) -> list[int]:
        """Ids at which sampling stops; none for a tokenizer that has none."""
        if self.info.end_of_turn_token_ids:
            return list(self.info.end_of_turn_token_ids)
        return [self.info.eos_token_id] if self.info.HasField("eos_token_id") else []


async def find_model(ports: Ports, repo: str, *, key: str) -> None:
    """Checks that a model is there and may be read; its files stay where they are. Raises as `resolve_model`."""
    hub = await ports.stub("hub")
    with _model_errors(key):
        await hub.GetRepoInfo(hub_pb2.GetRepoInfoRequest(ref=hub_pb2.RepoRef(repo=repo)), timeout=_FIND_SECONDS)


async def resolve_model(
    ports: Ports, repo: str, *, key: str, files: tuple[str, ...] = MODEL_FILES
) -> hub_pb2.SnapshotRepoResponse:
    """Brings a model's files to this machine.

    Args:
        key: the configuration key that names the model.
        files: patterns of the files that are needed; what lies in folders of the repository never is.

    Raises:
        InvalidArgumentError: MODEL_NOT_FOUND or REPO_ACCESS_DENIED naming the configuration key.
    """
    hub = await ports.stub("hub")
    with _model_errors(key):
        return await hub.SnapshotRepo(snapshot_request(repo, files), timeout=SNAPSHOT_SECONDS)


@contextmanager
def _model_errors(key: str) -> Iterator[None]:
    try:
        yield
    except KitchenError as error:
        if error.reason in ("REPO_NOT_FOUND", "REVISION_NOT_FOUND", "FIELD_INVALID", "PATH_NOT_ALLOWED"):
            raise field_error(f"config.{key}", error.message, reason="MODEL_NOT_FOUND") from error
        if error.reason == "REPO_ACCESS_DENIED":
            raise field_error(f"config.{key}", error.message, reason=error.reason) from error
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
        check_lora(context)
        needed = "training.lora" if options.lora_rank else "training.full"
        fix = "set lora_rank=0 to train every weight" if options.lora_rank else "set lora_rank to train a LoRA adapter"
        if needed not in await context.ports.capabilities("training"):
            raise capability_missing("training", needed, fix)
        if options.needs_lora_modules and _LORA_MODULES not in await context.ports.capabilities("training"):
            raise capability_missing("training", _LORA_MODULES, "leave lora_alpha and lora_target_modules out")
        if "training.local_model" in await context.ports.capabilities("training"):
            await find_model(context.ports, options.model, key="model")
        if options.start_from:
            if "training.checkpoint_files" not in await context.ports.capabilities("training"):
                raise capability_missing("training", "training.checkpoint_files", "leave start_from out")
            check_start(context, await find_start(context.ports, options.start_from))

    async def run(self, context: StageContext) -> None:
        options, ports = context.options(ModelOptions), context.run.ports
        base_model, revision = options.model, ""
        if "training.local_model" in await ports.capabilities("training"):
            snapshot = await resolve_model(ports, options.model, key="model")
            base_model, revision = snapshot.local_path, snapshot.ref.revision
        try:
            session = await TrainingSession.create(
                await context.stub("training"),
                base_model=base_model,
                base_model_name=public_name(options.model),
                lora=options.to_proto(),
                seed=context.seed_for("weights"),
                dtype=options.dtype,
            )
        except InvalidArgumentError as error:
            raise as_config_error(error) from error
        context["session"] = session
        context["model_revision"] = revision
        if context.run.checkpoint is not None:
            await context.run.saver.restore(context, session)
        elif options.start_from:
            start = await find_start(ports, options.start_from)
            await load_start(session, start, name=f"{context.run.run_id}/attempt-{context.run.attempt}/start")

    async def rollback(self, context: StageContext, error: BaseException) -> None:
        await close_session(context)


async def close_session(context: StageContext) -> None:
    """Closes the session if one is open."""
    await _close(context, "session")


async def _close(context: StageContext, key: str) -> None:
    """Closes what a context key holds, if it is open; what an adapter held that is gone is closed already."""
    handle: TrainingSession | OpenDataset | None = context.run.values.pop(key, None)
    if handle is not None:
        try:
            await handle.close()
        except KitchenError as error:
            # A hung adapter is ended by the next attempt, and with it the session.
            gone = error.retryable or isinstance(error, DeadlineExceededError)
            if not gone and error.reason != "SESSION_NOT_FOUND":
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
            await find_model(context.ports, options.tokenizer, key="tokenizer")

    async def run(self, context: StageContext) -> None:
        options = context.options(TokenizerOptions)
        key = "tokenizer" if options.tokenizer else "model"
        repo = options.tokenizer or options.model
        snapshot = await resolve_model(context.run.ports, repo, key=key, files=TOKENIZER_FILES)
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
        for key in ("session", "dataset", "eval_dataset"):
            await _close(context, key)
