"""What fields may hold: by their constraints, by their meaning in this project, and what nobody should send."""

from __future__ import annotations

import struct
import uuid
from functools import cache
from typing import Any

from google.protobuf.descriptor import FieldDescriptor

from crucible.type.v1 import constraints_pb2
from tests.fuzz.wire import Big, Ref, double, float32

INT32 = (-(2**31), 2**31 - 1)
INT64 = (-(2**63), 2**63 - 1)
UINT32 = (0, 2**32 - 1)
UINT64 = (0, 2**64 - 1)

UUIDS = tuple(str(uuid.uuid5(uuid.NAMESPACE_OID, f"fuzz-{number}")) for number in range(4))
SHA256S = ("0" * 64, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
FIELD_NAMES = ("prompt", "completion", "question", "answer", "messages", "text", "nope")


def tokens(*ids: int) -> bytes:
    """Token ids as little-endian int32."""
    return struct.pack(f"<{len(ids)}i", *ids)


TOKENS: tuple[bytes | Big, ...] = (
    tokens(9, 30, 40),
    tokens(1),
    tokens(5, 6),
    tokens(*range(3, 35)),
)
ODD_TOKENS: tuple[bytes | Big, ...] = (
    b"",
    b"\x01\x02\x03",
    tokens(-1, 5),
    tokens(2**31 - 1),
    tokens(-(2**31)),
    tokens(10**6),
    Big(tokens(7), 512),
    Big(tokens(7), 2048),
    Big(tokens(7), 2049),
    Big(tokens(7), 40_000),
    Big(b"\xff", 1_000_001),
)

# Names, paths and texts that have broken programs before.
ODD_STRINGS: tuple[bytes | Big | Ref, ...] = (
    b"",
    b" ",
    b"\x00",
    b"a\x00b",
    b"\n",
    b"-rf",
    b"..",
    b"../../etc/passwd",
    b"a/../../b",
    b"a//b",
    b"/",
    b".",
    b"~",
    b"/etc/passwd",
    b"/dev/zero",
    b"/dev/null",
    b"/dev",
    b"/proc/self",
    b"/proc/self/mem",
    b"/proc/self/environ",
    b"/proc/kmsg",
    b"file:///etc/passwd",
    b"http://127.0.0.1:9/x",
    b"builtin:",
    b"builtin:../x",
    b"builtin:tiny-qwen3#x",
    b"#",
    b"%s%n%00",
    b"{{ 7 * 7 }}",
    b"'; DROP TABLE runs; --",
    b"__class__",
    b"NaN",
    b"-1",
    b"9" * 5000,
    b"1e999",
    "\u202e\ufeff\u0000\ud7ff\U0010ffff".encode(),
    "é".encode() * 128,
    Big("é".encode(), 4096),
    b"a" * 63,
    b"a" * 64,
    Big(b"a", 255),
    Big(b"a", 256),
    Big(b"a", 4096),
    Big(b"a", 4097),
    Big(b"a/", 2000),
    # Paths that the system takes, and no longer when a file's name is added.
    Big(b"/a", 2040),
    Big(b"/a", 2047),
    Big(b"/a", 2048),
    Big(b"(", 3000),
    Big(b"*", 3000),
    Big(b"[", 3000),
    Ref("fifo"),
    Ref("loop"),
    Ref("odd_folder"),
    Ref("folder"),
    Ref("run"),
    Ref("training_session"),
    Ref("sampling_session"),
    Ref("dataset"),
    Ref("checkpoint"),
)
NOT_UTF8: tuple[bytes, ...] = (b"\xff", b"\xc0\x80", b"a\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"ok\x80")

_MODELS = (Ref("model"),)
_TEXTS = (b"hello", "wörld \U0001f600".encode(), b"1 + 1 = ", b"<|im_start|>user", b"a b c")

# By full name of the field, else by its name: what a friendly client would send.
MEANINGS: dict[str, tuple[int | bytes | Big | Ref, ...]] = {
    "crucible.kitchen.v1.CreateRunRequest.run_id": (b"", Ref("fresh_run_id"), Ref("run")),
    "crucible.kitchen.v1.CreateRunRequest.hold": (1,),
    "crucible.kitchen.v1.GetWorkflowRequest.name": (b"supervised",),
    "crucible.kitchen.v1.GetRecipeRequest.name": (b"sl_basic",),
    "crucible.kitchen.v1.ListRunsRequest.page_token": (b"", Ref("ListRuns_page_token")),
    "crucible.port.training.v1.LossFunction.name": (b"cross_entropy",),
    "crucible.port.training.v1.LoraConfig.rank": (1, 2, 8),
    "crucible.port.training.v1.LoraConfig.alpha": (double(1.0), double(16.0)),
    "crucible.port.training.v1.LoraConfig.target_modules": (b"q_proj", b"v_proj", b"down_proj"),
    "crucible.port.training.v1.AdamParams.learning_rate": (double(0.0), double(1e-3)),
    "crucible.port.training.v1.AdamParams.beta1": (double(0.9),),
    "crucible.port.training.v1.AdamParams.beta2": (double(0.95),),
    "crucible.port.training.v1.AdamParams.eps": (double(1e-8),),
    "crucible.port.training.v1.AdamParams.weight_decay": (double(0.01),),
    "crucible.port.training.v1.AdamParams.grad_clip_norm": (double(1.0),),
    "crucible.port.training.v1.SaveCheckpointRequest.name": (b"fuzz/a", b"fuzz/b", b"c"),
    "crucible.port.training.v1.LoadCheckpointRequest.uri": (Ref("checkpoint"),),
    "crucible.port.training.v1.ReadCheckpointFileRequest.uri": (Ref("checkpoint"),),
    "crucible.port.training.v1.ReadCheckpointFileRequest.path": (
        b"crucible_manifest.json",
        b"adapter_config.json",
        b"adapter_model.safetensors",
    ),
    "crucible.port.training.v1.DeleteCheckpointRequest.uri": (Ref("spare_checkpoint"),),
    "crucible.port.sampling.v1.SamplingParams.max_tokens": (1, 2, 5),
    "crucible.port.sampling.v1.SamplingParams.temperature": (double(0.0), double(1.0), double(0.7)),
    "crucible.port.sampling.v1.SamplingParams.top_p": (double(0.9), double(1.0)),
    "crucible.port.sampling.v1.SamplingParams.top_k": (0, 1, 50),
    "crucible.port.sampling.v1.SamplingParams.stop_tokens": (2, 3),
    "crucible.port.dataset.v1.DatasetSource.uri": (b"builtin:word-problems", Ref("rows_file")),
    "crucible.port.dataset.v1.DatasetSource.config": (b"",),
    "crucible.port.dataset.v1.DatasetSource.split": (b"", b"train"),
    "crucible.port.dataset.v1.DatasetSource.revision": (b"",),
    "crucible.port.dataset.v1.DatasetTransform.skip": (0, 1, 2),
    "crucible.port.dataset.v1.DatasetTransform.take": (1, 4),
    "crucible.port.dataset.v1.RowIndices.indices": (0, 1, 2),
    "crucible.port.dataset.v1.RowRange.start": (0, 1),
    "crucible.port.dataset.v1.RowRange.limit": (0, 1, 3),
    "crucible.port.hub.v1.RepoRef.repo": (b"builtin:tiny-qwen3", Ref("folder"), Ref("uploads")),
    "crucible.port.hub.v1.RepoRef.revision": (b"",),
    "crucible.port.hub.v1.DownloadFileRequest.path": (b"config.json", b"tokenizer.json"),
    "crucible.port.hub.v1.SnapshotRepoRequest.allow_patterns": (b"*.json", b"config.*"),
    "crucible.port.hub.v1.ListRepoFilesRequest.page_token": (b"", Ref("ListRepoFiles_page_token")),
    "crucible.port.blob.v1.ListBlobsRequest.prefix": (b"", b"fuzz/", b"f"),
    "crucible.port.blob.v1.ListBlobsRequest.page_token": (b"", Ref("ListBlobs_page_token")),
    "crucible.port.metrics.v1.QueryMetricsRequest.page_token": (b"", Ref("QueryMetrics_page_token")),
    "crucible.port.registry.v1.ListVersionsRequest.page_token": (b"", Ref("ListVersions_page_token")),
    "crucible.port.metrics.v1.RecordMetricsRequest.run_id": (b"clients/fuzz", b"clients/b"),
    "crucible.port.metrics.v1.RecordMetricsRequest.batch_key": (1, 2, 3, 77),
    "crucible.port.metrics.v1.QueryMetricsRequest.run_id": (b"clients/fuzz", Ref("run")),
    "crucible.port.metrics.v1.GetLatestMetricsRequest.run_id": (b"clients/fuzz", Ref("run")),
    "crucible.port.metrics.v1.ListMetricNamesRequest.run_id": (b"clients/fuzz", Ref("run")),
    "crucible.port.metrics.v1.MetricPoint.name": (b"train/loss", b"a"),
    "crucible.port.metrics.v1.QueryMetricsRequest.name": (b"train/loss", b"a"),
    "crucible.port.registry.v1.ModelVersion.version_id": (b"",),
    "crucible.port.registry.v1.ModelVersion.run_id": (Ref("fresh_client_run"), b"clients/fuzz"),
    "crucible.port.registry.v1.GetVersionRequest.run_id": (b"clients/fuzz", Ref("run")),
    "crucible.port.registry.v1.LineageNode.id": (b"a", b"b", b"c", Ref("version")),
    "crucible.type.v1.Message.role": (b"user", b"assistant", b"system"),
    "crucible.type.v1.Message.content": _TEXTS,
    # Fakes number what they make: the first of each is there soon.
    "crucible.port.deployment.v1.DeployModelRequest.endpoint": (b"chat", b"search"),
    "crucible.port.deployment.v1.UpdateDeploymentRequest.etag": (b"",),
    "crucible.port.deployment.v1.TerminateDeploymentRequest.etag": (b"",),
    "crucible.port.deployment.v1.SetTrafficWeightRequest.etag": (b"",),
    "deployment_id": (b"deployment-1", b"deployment-2", b"deployment-3"),
    "crucible.port.environment.v1.ResetRequest.environment": (b"", b"guess_number"),
    "episode_id": (b"episode-1", b"episode-2"),
    "crucible.port.evaluator.v1.TaskSelection.name": (b"arithmetic", b"repeat"),
    "crucible.port.evaluator.v1.EvaluatedModel.name": (b"fake/one", b"fake/flaky"),
    "evaluation_id": (b"evaluation-1", b"evaluation-2"),
    "interaction_id": (b"a", b"b", b"c"),
    "signal_id": (b"s", b"t", b"u"),
    "curation_id": (b"curation-1", b"curation-2"),
    "crucible.port.llm.v1.Tool.name": (b"weather", b"time"),
    "crucible.port.llm.v1.ToolChoice.name": (b"", b"weather"),
    "session_id": (b"session-1", b"session-2"),
    "crucible.port.environment.v1.StepRequest.sequence": (1, 2, 3),
    "crucible.port.python_bridge.v1.OpenSessionRequest.libraries": (b"toy", b"math", b"limits"),
    "library": (b"toy", b"math", b"limits"),
    "function": (b"add", b"echo", b"counter", b"count_to", b"repeat", b"scale", b"unique", b"sqrt", b"gcd", b"sleep"),
    "method": (b"increment", b"fork"),
    "attribute": (b"value", b"label", b"broken"),
    "ref_id": (b"ref-1", b"ref-2", b"ref-3", b"ref-4"),
    "crucible.port.reward.v1.ScoreRequest.reward": (b"", b"exact_match", b"length"),
    "crucible.port.reward.v1.ScoreItem.reference_answer": (b"42", b"#### 1,234"),
    "crucible.port.vector.v1.Collection.name": (b"things", b"others"),
    "crucible.port.vector.v1.GetCollectionRequest.name": (b"things", b"others"),
    "crucible.port.vector.v1.DeleteCollectionRequest.name": (b"others",),
    "collection": (b"things", b"others"),
    "crucible.port.vector.v1.Collection.num_items": (0,),
    "crucible.port.vector.v1.Collection.dimension": (0, 2),
    "model_name": (b"helper",),
    "model": (b"",),
    "crucible.adapter.v1.ConfigureRequest.service": (b"crucible.port.training.v1.TrainingService",),
    "crucible.adapter.v1.GetAdapterInfoRequest.host_contract_versions": (1, 2),
    "grpc.health.v1.HealthCheckRequest.service": (b"", b"crucible.kitchen.v1.RunService"),
    "grpc.reflection.v1alpha.ServerReflectionRequest.file_containing_symbol": (
        b"crucible.kitchen.v1.RunService",
        b"google.rpc.ErrorInfo",
    ),
    "grpc.reflection.v1alpha.ServerReflectionRequest.file_by_filename": (b"crucible/kitchen/v1/run.proto",),
    "run_id": (Ref("run"), Ref("finished_run")),
    "recipe": (b"sl_basic",),
    "preset": (b"tiny", b""),
    "port": (b"training", b"blob", b"hub"),
    "dtype": (b"", b"auto", b"float32"),
    "base_model": _MODELS,
    "base_model_name": (b"", b"owner/name"),
    "checkpoint_base_model": (b"",),
    "checkpoint_uri": (Ref("checkpoint"),),
    "training_session_id": (Ref("training_session"),),
    "dataset_id": (Ref("dataset"),),
    "version_id": (Ref("version"),),
    "tokenizer": (Ref("tokenizer"),),
    "texts": _TEXTS,
    "key": (b"fuzz/a", b"fuzz/b/c", Ref("blob")),
    "uri": (b"file:///tmp/x",),
    "media_type": (b"", b"application/json"),
    "path": (b"config.json", b"a.txt"),
    "page_token": (b"",),
    "page_size": (0, 1, 2, 500),
    "max_batch": (0, 1, 128),
    "after_sequence": (0, 1),
    "num_samples": (1, 2),
    "tokens_int32": TOKENS,
    "prompt_tokens_int32": TOKENS,
    "sha256": tuple(each.encode() for each in SHA256S),
    "manifest_sha256": tuple(each.encode() for each in SHA256S),
    "config_sha256": (b"", *(each.encode() for each in SHA256S)),
}
ODD_MEANINGS: dict[str, tuple[int | bytes | Big | Ref, ...]] = {
    "tokens_int32": ODD_TOKENS,
    "prompt_tokens_int32": ODD_TOKENS,
    # One that nobody has reserved: it is held until its turn comes, which is never.
    "sequence": (0, 1, 2, 65, 1000, 2**63, 2**64 - 1, Ref("late_sequence")),
    "num_samples": (0, -1, 3, 1024, 1025),
    # Nothing long: one sample of the longest sequence keeps a device busy for many calls.
    "crucible.port.sampling.v1.SamplingParams.max_tokens": (0, -1, 40, -(2**31)),
}
ONLY_ODD_MEANINGS = frozenset({"num_samples", "max_tokens"})
"""Fields of which no other odd values are drawn."""


def of_meaning(field: FieldDescriptor, odd: bool = False) -> tuple[Any, ...]:
    """The values that a field's meaning suggests."""
    table = ODD_MEANINGS if odd else MEANINGS
    return table.get(field.full_name, table.get(field.name, ()))


def session_pool(field: FieldDescriptor) -> str:
    """The pool of a field that names a session or an operation: each port of the engine has its own. Empty: no such."""
    return next((port for port in ("sampling", "training") if f".{port}." in field.full_name), "")


@cache
def rule(field: FieldDescriptor) -> constraints_pb2.FieldConstraints:
    """The constraints on a field."""
    option: Any = constraints_pb2.field
    return field.GetOptions().Extensions[option]


_RANGES = {
    FieldDescriptor.TYPE_INT32: INT32,
    FieldDescriptor.TYPE_SINT32: INT32,
    FieldDescriptor.TYPE_SFIXED32: INT32,
    FieldDescriptor.TYPE_ENUM: INT32,
    FieldDescriptor.TYPE_INT64: INT64,
    FieldDescriptor.TYPE_SINT64: INT64,
    FieldDescriptor.TYPE_SFIXED64: INT64,
    FieldDescriptor.TYPE_UINT32: UINT32,
    FieldDescriptor.TYPE_FIXED32: UINT32,
    FieldDescriptor.TYPE_UINT64: UINT64,
    FieldDescriptor.TYPE_FIXED64: UINT64,
    FieldDescriptor.TYPE_BOOL: (0, 1),
}


def whole_numbers(field: FieldDescriptor, *, odd: bool) -> list[int]:
    """Numbers within, or at and beyond, what a whole number's constraints allow."""
    low, high = _RANGES[field.type]
    constraints = rule(field)
    least = max(low, int(constraints.min)) if constraints.HasField("min") else low
    most = min(high, int(constraints.max)) if constraints.HasField("max") else high
    if odd:
        near = (least - 1, most + 1, least, most, low, high, 0, -1, 2**31, 2**32, 2**53 + 1, 10**18)
        return list(dict.fromkeys(near))
    start = max(least, 0)
    return [
        each for each in dict.fromkeys((start, start + 1, start + 2, start + 7, least, most)) if least <= each <= most
    ]


def floats(field: FieldDescriptor, *, odd: bool) -> list[int]:
    """The bits of numbers within, or at and beyond, what a float's constraints allow."""
    bits = double if field.type == FieldDescriptor.TYPE_DOUBLE else float32
    constraints = rule(field)
    least = constraints.min if constraints.HasField("min") else -1e3
    most = constraints.max if constraints.HasField("max") else 1e3
    if odd:
        special = (float("nan"), float("inf"), -float("inf"), -0.0, 5e-324, -5e-324, 3e38, -3e38)
        return [bits(each) for each in (least - 1, most + 1, least, most, *special)]
    return [bits(each) for each in dict.fromkeys((max(least, 0.0), min(most, max(least, 0.0) + 0.5), most))]
