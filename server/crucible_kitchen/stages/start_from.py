"""The checkpoint or adapter that a run begins with: found through the hub port, brought to the training adapter."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from crucible.port.hub.v1 import hub_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.errors import InvalidArgumentError, KitchenError, field_error
from crucible_kit.training import TrainingSession
from crucible_kitchen.stages.lora import LoraOptions
from crucible_kitchen.workflows.context import Ports, SubmitContext

MANIFEST = "crucible_manifest.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER = (ADAPTER_CONFIG, "adapter_model.safetensors")
MODEL = ("config.json", "model.safetensors")
_SHARDED = ("config.json", "model.safetensors.index.json")
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_PAGE = 500
_MAX_SHOWN = 10
# A manifest or an adapter's configuration is a few KiB.
_MAX_JSON_BYTES = 4 * 1024 * 1024
_NOT_FOUND = ("REPO_NOT_FOUND", "REVISION_NOT_FOUND", "FIELD_INVALID")


@dataclass(frozen=True, kw_only=True)
class Start:
    """A checkpoint on the hub.

    Attributes:
        ref: the repository with its revision resolved.
        files: what to bring, in the order in which it is sent.
        adapter: what adapter_config.json holds; None for a whole model.
    """

    hub: Any
    ref: hub_pb2.RepoRef
    files: tuple[hub_pb2.RepoFile, ...]
    adapter: dict[str, Any] | None


async def find_start(ports: Ports, name: str) -> Start:
    """The checkpoint that a configuration's start_from names.

    Raises:
        InvalidArgumentError: CHECKPOINT_NOT_FOUND, PATH_NOT_ALLOWED or CHECKPOINT_MALFORMED, naming config.start_from.
    """
    hub = await ports.stub("hub")
    try:
        info = await hub.GetRepoInfo(hub_pb2.GetRepoInfoRequest(ref=hub_pb2.RepoRef(repo=name)))
        found = {file.path: file async for file in _list_files(hub, info.ref)}
        if MANIFEST in found:
            paths = await _manifest_paths(hub, info.ref)
            missing = [path for path in paths if path not in found]
            if missing:
                raise _malformed(f"{name!r} is not whole: {MANIFEST} lists {missing[0]}, which is not there")
        else:
            paths = _foreign_paths(name, found)
        adapter = await _read_json(hub, info.ref, ADAPTER_CONFIG) if ADAPTER_CONFIG in paths else None
    except KitchenError as error:
        if error.reason in _NOT_FOUND:
            raise field_error("config.start_from", error.message, reason="CHECKPOINT_NOT_FOUND") from error
        if error.reason in ("PATH_NOT_ALLOWED", "REPO_ACCESS_DENIED"):
            raise field_error("config.start_from", error.message, reason=error.reason) from error
        raise
    return Start(hub=hub, ref=info.ref, files=tuple(found[path] for path in paths), adapter=adapter)


def check_start(context: SubmitContext, start: Start) -> None:
    """Compares what is known of a checkpoint without loading it with the configuration.

    Raises:
        InvalidArgumentError: CONFIG_INVALID naming the key to change.
    """
    options = context.options(LoraOptions)
    if start.adapter is None:
        if options.lora_rank:
            raise context.conflict(
                ("start_from", "lora_rank"),
                f"start_from is a whole model, lora_rank is {options.lora_rank}: give it as model, or set lora_rank=0",
            )
        return
    rank, alpha, targets = (start.adapter.get(key) for key in ("r", "lora_alpha", "target_modules"))
    # What is no plain LoRA is the training adapter's to read or refuse.
    if isinstance(rank, int) and rank != options.lora_rank:
        raise context.conflict(
            ("lora_rank", "start_from"),
            f"lora_rank is {options.lora_rank}, the adapter in start_from has rank {rank}: set lora_rank={rank}",
        )
    if isinstance(alpha, int | float) and alpha != options.alpha and not start.adapter.get("use_rslora"):
        raise context.conflict(
            ("lora_alpha", "start_from"),
            f"alpha is {options.alpha:.17g}, the adapter in start_from has {alpha:.17g}: set lora_alpha={alpha:.17g}",
        )
    ours = sorted(options.lora_target_modules)
    if isinstance(targets, list) and ours and sorted(map(str, targets)) != ours:
        raise context.conflict(("lora_target_modules", "start_from"), _other_targets(ours, sorted(map(str, targets))))


async def load_start(session: TrainingSession, start: Start, *, name: str) -> None:
    """Brings a checkpoint to the training adapter under a name of its own and begins with its weights.

    Raises:
        InvalidArgumentError: CONFIG_INVALID naming the key to change; CHECKPOINT_MALFORMED or CHECKPOINT_MISMATCH
            naming config.start_from.
    """
    files = [
        training_pb2.CheckpointFile(
            path=file.path, size_bytes=file.size_bytes, sha256=file.sha256 or await _hash(start, file.path)
        )
        for file in start.files
    ]

    async def requests() -> AsyncIterator[training_pb2.UploadCheckpointRequest]:
        header = training_pb2.UploadCheckpointHeader(name=name, files=files)
        yield training_pb2.UploadCheckpointRequest(header=header)
        for index, file in enumerate(files):
            async for part in start.hub.DownloadFile(hub_pb2.DownloadFileRequest(ref=start.ref, path=file.path)):
                if part.data:
                    chunk = training_pb2.UploadCheckpointChunk(
                        file_index=index, offset=part.offset, crc32=part.crc32, data=part.data
                    )
                    yield training_pb2.UploadCheckpointRequest(chunk=chunk)

    try:
        uploaded = await session.upload_checkpoint(requests())
    except InvalidArgumentError as error:
        raise _malformed(error.message) from error
    try:
        _check_adapter(session.info.lora, uploaded.lora)
        await session.load_checkpoint(uploaded.uri, weights_only=True)
    except KitchenError as error:
        if error.reason != "CHECKPOINT_MISMATCH":
            raise
        raise field_error("config.start_from", error.message, reason=error.reason) from error
    finally:
        await session.delete_checkpoint(uploaded.uri)


def _check_adapter(ours: training_pb2.LoraConfig, theirs: training_pb2.LoraConfig) -> None:
    """Compares the session's adapter with the checkpoint's, where both are told."""
    if not (ours.rank and theirs.rank):
        return
    for key, mine, other in (("lora_rank", ours.rank, theirs.rank), ("lora_alpha", ours.alpha, theirs.alpha)):
        if mine != other:
            problem = f"is {mine:.17g}, the adapter in start_from has {other:.17g}: set {key}={other:.17g}"
            raise field_error(f"config.{key}", problem, reason="CONFIG_INVALID")
    mine, other = sorted(ours.target_modules), sorted(theirs.target_modules)
    if other and mine != other:
        raise field_error("config.lora_target_modules", _other_targets(mine, other), reason="CONFIG_INVALID")


def _other_targets(ours: list[str], theirs: list[str]) -> str:
    mine, other = ", ".join(ours), ", ".join(theirs)
    return f"the run adapts {mine}, the adapter in start_from {other}: set lora_target_modules to [{other}]"


async def _list_files(hub: Any, ref: hub_pb2.RepoRef) -> AsyncIterator[hub_pb2.RepoFile]:
    token = ""
    while True:
        request = hub_pb2.ListRepoFilesRequest(ref=ref, page_size=_PAGE, page_token=token)
        page = await hub.ListRepoFiles(request)
        for file in page.files:
            yield file
        token = page.next_page_token
        if not token:
            return


async def _manifest_paths(hub: Any, ref: hub_pb2.RepoRef) -> list[str]:
    files = (await _read_json(hub, ref, MANIFEST)).get("files")
    if not isinstance(files, dict) or not files:
        raise _malformed(f"{MANIFEST} of {ref.repo!r} lists no files")
    return [*sorted(files), MANIFEST]


def _foreign_paths(name: str, found: dict[str, hub_pb2.RepoFile]) -> list[str]:
    """The files of a folder that was made elsewhere."""
    for kind in (ADAPTER, MODEL):
        if all(path in found for path in kind):
            return list(kind)
    if all(path in found for path in _SHARDED):
        return [*_SHARDED, *sorted(path for path in found if _SHARD.fullmatch(path))]
    has = ", ".join(sorted(found)[:_MAX_SHOWN]) + (", ..." if len(found) > _MAX_SHOWN else "")
    needs = " or ".join(f"{config} and {weights}" for config, weights in (ADAPTER, MODEL))
    raise _malformed(f"{name!r} is no checkpoint: it needs {needs}, and has {has or 'nothing'}")


async def _read_json(hub: Any, ref: hub_pb2.RepoRef, path: str) -> dict[str, Any]:
    content = b""
    async for part in hub.DownloadFile(hub_pb2.DownloadFileRequest(ref=ref, path=path)):
        content += part.data
        if len(content) > _MAX_JSON_BYTES:
            raise _malformed(f"{path} of {ref.repo!r} has more than {_MAX_JSON_BYTES} bytes")
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _malformed(f"{path} of {ref.repo!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise _malformed(f"{path} of {ref.repo!r} holds no JSON object")
    return value


async def _hash(start: Start, path: str) -> str:
    digest = hashlib.sha256()
    async for part in start.hub.DownloadFile(hub_pb2.DownloadFileRequest(ref=start.ref, path=path)):
        digest.update(part.data)
    return digest.hexdigest()


def _malformed(problem: str) -> InvalidArgumentError:
    return field_error("config.start_from", problem, reason="CHECKPOINT_MALFORMED")
