"""Saving, evaluating, registering and deploying what was trained."""

from __future__ import annotations

from pydantic import Field

from crucible.kitchen.v1 import event_pb2
from crucible.port.registry.v1 import registry_pb2
from crucible.port.sampling.v1 import sampling_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.type.v1 import message_pb2
from crucible_kit.errors import capability_missing
from crucible_kit.faults import fault_point
from crucible_kit.sequences import Batch
from crucible_kit.tensors import pack_tokens, unpack_tokens
from crucible_kit.training import TrainingSession
from crucible_kitchen.metric_definitions import check_names
from crucible_kitchen.ports.sampling import SamplingSession
from crucible_kitchen.stages.build_datums import TrainingData, render
from crucible_kitchen.stages.data import LoadDatasetOptions
from crucible_kitchen.stages.session import BaseModelOptions, ModelOptions, Tokenizer
from crucible_kitchen.stages.training import CROSS_ENTROPY
from crucible_kitchen.workflows.context import StageContext, SubmitContext
from crucible_kitchen.workflows.stage import MAX_COUNT, Kind, Output, PortUse, Stage, StageOptions


class CheckpointOptions(StageOptions):
    """When to save."""

    save_every: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Save a checkpoint after each so many steps; 0: only at the end."
    )
    keep_last: int = Field(
        default=0,
        ge=0,
        le=MAX_COUNT,
        description="Keep only so many of the newest checkpoints, beside the final one; 0: all.",
    )


class SaveCheckpoint(Stage):
    """Saves a checkpoint from which the run can go on."""

    name = "checkpoint"
    description = "Save weights and optimizer, copy them to the blob store, and commit the run's position with them."
    options = CheckpointOptions
    inputs = ("session",)
    ports = (PortUse(port="training"), PortUse(port="blob"))
    events = ("checkpoint_saved", "checkpoint_deleted")
    saves_position = True

    async def run(self, context: StageContext) -> None:
        await context.run.saver.save(context)


class SaveFinal(Stage):
    """Saves the trained weights in the format that other tools load."""

    name = "save_final"
    description = "Save the trained weights without the optimizer; the run fails when this fails."
    inputs = ("session",)
    outputs = (Output(key="weights_saved", kind=Kind.VALUE),)
    ports = (PortUse(port="training"), PortUse(port="blob"))
    events = ("checkpoint_saved", "checkpoint_deleted")
    saves_position = True

    async def run(self, context: StageContext) -> None:
        # Part of the position that is committed with the checkpoint, so it is written before.
        context["weights_saved"] = True
        await context.run.saver.save(context, final=True)


class EvaluateOptions(StageOptions):
    """What to measure, and when."""

    eval_every: int = Field(
        default=0, ge=0, le=MAX_COUNT, description="Evaluate after each so many steps; 0: only at the end."
    )
    eval_at_start: bool = Field(default=False, description="Evaluate before the first step too.")
    sample_prompts: int = Field(default=0, ge=0, le=64, description="Held-out prompts to complete at each evaluation.")
    sample_max_tokens: int = Field(default=128, ge=1, le=MAX_COUNT, description="Longest sampled completion in tokens.")
    sample_temperature: float = Field(default=0.0, ge=0, le=100, description="Temperature of those samples; 0: greedy.")


class Evaluate(Stage):
    """Scores the held-out rows and completes some of their prompts."""

    name = "evaluate"
    description = (
        "Score the held-out answers' tokens and sample completions; skipped, saying so, without held-out rows."
    )
    options = EvaluateOptions
    inputs = ("session", "tokenizer", "data")
    outputs = (Output(key="eval_metrics", kind=Kind.VALUE),)
    ports = (PortUse(port="training"), PortUse(port="sampling"), PortUse(port="tokenizer"))
    metrics = ("eval/<task>/mean_nll", "eval/<task>/unigram_nll", "eval/<task>/tokens")
    events = ("evaluation_completed", "stage_skipped")

    async def validate(self, context: SubmitContext) -> None:
        options = context.options(EvaluateOptions)
        if not context.options(LoadDatasetOptions).has_held_out:
            for key in ("eval_every", "eval_at_start", "sample_prompts"):
                if getattr(options, key):
                    raise context.conflict(
                        (key, "eval_dataset", "eval_fraction"),
                        f"{key} needs held-out rows: set eval_dataset or eval_fraction, or {key} to nothing",
                    )
        if options.sample_prompts and "sampling.follow" not in await context.ports.capabilities("sampling"):
            raise capability_missing("sampling", "sampling.follow", "set sample_prompts=0")

    async def run(self, context: StageContext) -> None:
        data: TrainingData = context["data"]
        if not data.held_out:
            context["eval_metrics"] = {}
            await context.emit(stage_skipped=event_pb2.StageSkipped(stage=self.name, reason="no rows are held out"))
            return
        batch = Batch(sequences=tuple(data.held_out))
        session: TrainingSession = context["session"]
        result = await session.forward(batch.datums(), CROSS_ENTROPY)
        metrics = {
            "eval/heldout/mean_nll": result.loss,
            "eval/heldout/unigram_nll": data.unigram_nll,
            "eval/heldout/tokens": float(batch.trained_tokens),
        }
        check_names(metrics)
        context["eval_metrics"] = metrics
        samples = await self._samples(context, data, context.options(EvaluateOptions))
        await context.emit(evaluation_completed=event_pb2.EvaluationCompleted(metrics=metrics, samples=samples))

    async def _samples(
        self, context: StageContext, data: TrainingData, options: EvaluateOptions
    ) -> list[event_pb2.EvaluationSample]:
        if not options.sample_prompts:
            return []
        # Of a single message there is nothing to complete.
        chosen = [each for each in data.held_out_conversations if len(each.messages) > 1][: options.sample_prompts]
        prompts = [message_pb2.Conversation(messages=each.messages[:-1]) for each in chosen]
        rendered = await render(context, prompts, message_pb2.TRAIN_ON_ALL_TOKENS, add_generation_prompt=True)
        session: TrainingSession = context["session"]
        tokenizer: Tokenizer = context["tokenizer"]
        conversations, outputs = [], []
        sampler = await SamplingSession.follow(await context.stub("sampling"), session.session_id)
        try:
            for index, (conversation, each) in enumerate(zip(chosen, rendered, strict=True)):
                prompt = unpack_tokens(each.tokens_int32)
                # A prompt as long as the model's context leaves no room for an answer.
                if len(prompt) >= session.info.max_sequence_tokens:
                    continue
                params = sampling_pb2.SamplingParams(
                    max_tokens=options.sample_max_tokens,
                    temperature=options.sample_temperature,
                    seed=context.seed_for("sample", index),
                    stop_tokens=tokenizer.stop_tokens,
                )
                outputs.append(
                    tokenizer_pb2.TokenSequence(tokens_int32=pack_tokens(await sampler.sample(prompt, params)))
                )
                conversations.append(conversation)
        finally:
            await sampler.close()
        if not outputs:
            return []
        decode = tokenizer_pb2.DecodeBatchRequest(tokenizer=tokenizer.name, sequences=outputs, skip_special_tokens=True)
        texts = (await (await context.stub("tokenizer")).DecodeBatch(decode)).texts
        return [
            event_pb2.EvaluationSample(
                prompt=conversation.messages[-2].content, target=conversation.messages[-1].content, output=text
            )
            for conversation, text in zip(conversations, texts, strict=True)
        ]


class RegisterOptions(BaseModelOptions):
    """Under what name to register."""

    model_name: str = Field(
        default="", max_length=255, description="Model line in the registry; empty: the recipe's name."
    )


class RegisterModel(Stage):
    """Registers the trained model with its lineage."""

    name = "register_model"
    description = "Register the final weights with metrics and lineage: run, dataset and base model."
    options = RegisterOptions
    inputs = ("weights_saved", "eval_metrics", "dataset_fingerprint")
    outputs = (Output(key="model_version_id", kind=Kind.VALUE),)
    ports = (PortUse(port="registry"),)
    events = ("model_registered",)
    releases = True

    async def run(self, context: StageContext) -> None:
        run, options = context.run, context.options(RegisterOptions)
        name = options.model_name or run.recipe
        final = run.checkpoint
        if final is None or not final.final:
            raise RuntimeError("register_model ran without a final checkpoint")
        version = registry_pb2.ModelVersion(
            model_name=name,
            run_id=run.run_id,
            checkpoint_uri=final.uri,
            manifest_sha256=final.manifest_sha256,
            base_model=options.model,
            config_sha256=run.config_sha256,
            metrics=context["eval_metrics"],
        )
        this = registry_pb2.LineageNode(kind=registry_pb2.NODE_KIND_MODEL_VERSION, id="self")
        origins = [
            (registry_pb2.EDGE_KIND_PRODUCED_BY, registry_pb2.NODE_KIND_RUN, run.run_id),
            (registry_pb2.EDGE_KIND_TRAINED_ON, registry_pb2.NODE_KIND_DATASET, context["dataset_fingerprint"]),
            (registry_pb2.EDGE_KIND_FINE_TUNED_FROM, registry_pb2.NODE_KIND_MODEL_VERSION, options.model),
        ]
        start = context.options(ModelOptions).start_from
        if start:
            origins.append((registry_pb2.EDGE_KIND_FINE_TUNED_FROM, registry_pb2.NODE_KIND_ARTIFACT, start))
        lineage = [
            registry_pb2.LineageEdge(kind=kind, from_node=this, to_node=registry_pb2.LineageNode(kind=node, id=node_id))
            for kind, node, node_id in origins
        ]
        stub = await context.stub("registry")
        request = registry_pb2.RegisterVersionRequest(version=version, lineage=lineage)
        version_id = (await stub.RegisterVersion(request)).version.version_id
        fault_point("server.register.after")
        context["model_version_id"] = version_id
        await context.emit(
            changes={"model_version_id": version_id},
            model_registered=event_pb2.ModelRegistered(version_id=version_id, model_name=name),
        )


class DeployOptions(StageOptions):
    """Whether to deploy."""

    deploy: bool = Field(
        default=False, description="Deploy the registered model; needs an adapter for the port deployment."
    )


class Deploy(Stage):
    """Deploys the registered model. No release has an adapter for that port yet, so asking for it is refused at
    submit.
    """

    name = "deploy"
    description = "Deploy the registered model; refused at submit while no adapter serves the port deployment."
    options = DeployOptions
    inputs = ("model_version_id",)

    async def validate(self, context: SubmitContext) -> None:
        if context.options(DeployOptions).deploy:
            raise capability_missing(
                "deployment", "deployment.deploy", "no adapter serves this port yet; set deploy=false"
            )

    async def run(self, context: StageContext) -> None:
        raise capability_missing("deployment", "deployment.deploy", "no adapter serves this port yet; set deploy=false")
