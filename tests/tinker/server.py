"""A server on loopback that speaks Tinker's wire format and computes with the torch engine in this process.

It also answers as a test has written down: `will(path, ...)` goes before what it would answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import torch
from google.protobuf import duration_pb2
from tinker.proto import tinker_public_pb2 as wire

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_adapters.torch_engine.engine import Engine, EngineOptions
from crucible_adapters.torch_engine.runtime import configure_torch
from crucible_adapters.torch_engine.service_sampling import SamplingService
from crucible_adapters.torch_engine.service_training import TrainingService
from crucible_kit.channel import ObjectChannel
from crucible_kit.errors import FailedPreconditionError, KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.tensors import pack_tokens
from crucible_kit.training import check_finished
from tests.loopback import Request
from tests.tinker.http import Answer, Asked, HttpServer, Scripted
from tests.tinker.messages import datum_of, output_of, samples_of

_ENDED = (
    operation_pb2.OPERATION_STATE_SUCCEEDED,
    operation_pb2.OPERATION_STATE_FAILED,
    operation_pb2.OPERATION_STATE_CANCELLED,
)
_WAIT = duration_pb2.Duration(seconds=20)
_POLL_SECONDS = 20.0


@dataclass
class Model:
    """One that is trained; `offset` are the engine's calls that are none of the client's."""

    session: tp.TrainingSession
    base_model: str
    rank: int
    lora: tp.LoraConfig
    offset: int = 0


class TinkerServer(Scripted):
    """The server.

    Args:
        models: folders of the base models by their names.
        work_dir: the engine's.
        threads: torch's; results depend on how many there are.

    Attributes:
        config: what the library is told when it begins.
        results: while it is not set, no result is given.
        paths: the engine's checkpoints by Tinker's paths.
        ttls: what checkpoints were told last, by path.
    """

    def __init__(self, models: Mapping[str, Path], work_dir: Path, *, threads: int = 1) -> None:
        super().__init__()
        self._threads_before = torch.get_num_threads()
        configure_torch(threads)
        self._folders = dict(models)
        self._engine = Engine(EngineOptions(work_dir=work_dir, device="cpu", threads=threads))
        services = {"training": TrainingService(self._engine), "sampling": SamplingService(self._engine)}
        channel = ObjectChannel({PORTS[port].service.full_name: each for port, each in services.items()})
        self.training, self.sampling = (PORTS[port].stub(channel) for port in services)
        self._futures: dict[str, asyncio.Task[Any]] = {}
        self._models: dict[str, Model] = {}
        self._samplers: dict[str, tuple[str, str]] = {}
        self.config: dict[str, Any] = {}
        self.paths: dict[str, str] = {}
        self._path_models: dict[str, Model] = {}
        self.ttls: dict[str, int | None] = {}
        self.ended: list[str] = []
        self._http = HttpServer(self._handle)
        self._calls = {
            "create_session": self._create_session,
            "create_model": self._create_model,
            "get_info": self._get_info,
            "forward_backward": self._forward_backward,
            "optim_step": self._optim_step,
            "save_weights": self._save_weights,
            "save_weights_for_sampler": self._save_weights_for_sampler,
            "load_weights": self._load_weights,
            "create_sampling_session": self._create_sampling_session,
            "asample": self._asample,
            "retrieve_future": self._retrieve_future,
        }
        self.results = asyncio.Event()
        self.results.set()

    @property
    def address(self) -> str:
        """http://127.0.0.1:PORT"""
        return self._http.address

    @property
    def open_models(self) -> list[str]:
        """Models whose session has not ended."""
        return sorted(self._models)

    async def start(self) -> None:
        await self._http.start()

    async def go_away(self) -> None:
        """Breaks the connections; new ones are refused."""
        await self._http.go_away()

    async def come_back(self) -> None:
        """Listens again, and has forgotten nothing."""
        await self._http.come_back()

    async def stop(self) -> None:
        await self._http.stop()
        for task in self._futures.values():
            task.cancel()
        await asyncio.gather(*self._futures.values(), return_exceptions=True)
        await self._engine.close()
        torch.set_num_threads(self._threads_before)
        assert not self._http.failures, self._http.failures

    async def _handle(self, request: Request) -> Answer:
        path = request.path.removeprefix("/api/v1")
        body: Any = None
        if request.headers.get("content-type") == "application/x-protobuf":
            body = wire.ForwardBackwardRequest.FromString(request.data)
        elif request.data:
            body = json.loads(request.data)
        scripted = await self._note(Asked(request.method, path, request.headers, body))
        if scripted is not None:
            return scripted
        match path.split("/")[1:]:
            case ["client", "config"]:
                return Answer(body=self.config)
            case ["client", "dynamic_config"]:
                return Answer()
            case ["session_heartbeat"]:
                return Answer(body={"type": "session_heartbeat"})
            case ["telemetry"]:
                return Answer(body={"status": "accepted"})
            case ["get_server_capabilities"]:
                return self._capabilities()
            case ["samplers", sampler]:
                return Answer(body={"sampler_id": sampler, "base_model": self._samplers[sampler][1]})
            case ["sessions", session, "finish"]:
                return await self._finish(session)
            case ["training_runs", model, "checkpoints", kind, name]:
                return await self._delete(f"tinker://{unquote(model)}/{kind}/{name}")
            case ["training_runs", model, "checkpoints", kind, name, "ttl"]:
                self.ttls[f"tinker://{unquote(model)}/{kind}/{name}"] = body["ttl_seconds"]
                return Answer(status=204, body=b"")
            case [name] if name in self._calls:
                return await self._calls[name](body)
        return Answer(status=404, body={"detail": f"no {path}"})

    async def _create_session(self, body: Any) -> Answer:
        return Answer(body={"session_id": f"session-{uuid.uuid4().hex[:8]}", "type": "create_session"})

    async def _finish(self, session: str) -> Answer:
        self.ended.append(session)
        for name in [each for each in self._models if each.startswith(f"{session}:")]:
            model = self._models.pop(name)
            close = tp.CloseTrainingSessionRequest(session_id=model.session.session_id)
            await self.training.CloseTrainingSession(close)
        return Answer()

    def _capabilities(self) -> Answer:
        models = [{"model_name": name, "trainable": True, "sampleable": True} for name in self._folders]
        return Answer(body={"supported_models": models})

    async def _create_model(self, body: Any) -> Answer:
        name, given = f"{body['session_id']}:train:{body['model_seq_id']}", body["lora_config"]
        if body["base_model"] not in self._folders:
            return Answer(status=400, body={"detail": f"model {body['base_model']} is not supported"})
        lora = tp.LoraConfig(
            rank=given["rank"],
            train_mlp=given["train_mlp"],
            train_attention=given["train_attn"],
            train_unembedding=given["train_unembed"],
        )

        async def create() -> dict[str, Any]:
            self._models[name] = await self._open(body["base_model"], lora, given["seed"])
            return {"model_id": name, "type": "create_model"}

        return self._promise(f"{name}:0", create(), model_id=name)

    async def _open(self, base_model: str, lora: tp.LoraConfig, seed: int) -> Model:
        create = tp.CreateTrainingSessionRequest(
            request_id=str(uuid.uuid4()), base_model=str(self._folders[base_model]), lora=lora, seed=seed
        )
        session = (await self.training.CreateTrainingSession(create)).session
        return Model(session, base_model, lora.rank, lora)

    async def _get_info(self, body: Any) -> Answer:
        name = body["model_id"]
        model = self._models[name]
        return Answer(
            body={
                "type": "get_info",
                "model_data": {"arch": "qwen3", "model_name": model.base_model, "tokenizer_id": None},
                "model_id": name,
                "is_lora": True,
                "lora_rank": model.rank,
                "model_name": model.base_model,
            },
        )

    async def _forward_backward(self, body: Any) -> Answer:
        model = self._models[body.model_id]
        numbered = {"session_id": model.session.session_id, "sequence": body.seq_id + model.offset}
        loss = tp.LossFunction(name=body.loss_fn, parameters=dict(body.loss_fn_config))
        kind, call = (
            (tp.ForwardRequest, self.training.Forward)
            if body.forward_only
            else (tp.ForwardBackwardRequest, self.training.ForwardBackward)
        )
        message = kind(**numbered, data=[datum_of(each) for each in body.data], loss_fn=loss)

        async def run() -> bytes:
            return output_of((await self._result(self.training, call, message)).forward)

        return self._promise(f"{body.model_id}:{body.seq_id}", run(), model_id=body.model_id)

    async def _optim_step(self, body: Any) -> Answer:
        model = self._models[body["model_id"]]
        adam = tp.AdamParams(**{key: value for key, value in body["adam_params"].items() if key != "type"})
        message = tp.OptimStepRequest(
            session_id=model.session.session_id, sequence=body["seq_id"] + model.offset, adam=adam
        )

        async def run() -> dict[str, Any]:
            step = (await self._result(self.training, self.training.OptimStep, message)).optim_step
            figures = {"update_norm": step.update_norm}
            if adam.grad_clip_norm:
                figures["unclipped_grad_l2:mean"] = step.grad_norm
            return {"metrics": figures, "type": "optim_step"}

        return self._promise(f"{body['model_id']}:{body['seq_id']}", run(), model_id=body["model_id"])

    async def _saved(self, body: Any, kind: str, name: str) -> str:
        model = self._models[body["model_id"]]
        message = tp.SaveCheckpointRequest(
            session_id=model.session.session_id,
            sequence=body["seq_id"] + model.offset,
            name=f"{body['model_id'].replace(':', '-')}/{kind}/{name}",
            weights_only=kind != "weights",
        )
        saved = (await self._result(self.training, self.training.SaveCheckpoint, message)).checkpoint
        path = f"tinker://{body['model_id']}/{kind}/{name}"
        self.paths[path], self._path_models[path] = saved.uri, model
        self.ttls[path] = body.get("ttl_seconds")
        return path

    async def _save_weights(self, body: Any) -> Answer:

        async def run() -> dict[str, Any]:
            return {"path": await self._saved(body, "weights", body["path"]), "type": "save_weights"}

        return self._promise(f"{body['model_id']}:{body['seq_id']}", run(), model_id=body["model_id"])

    async def _save_weights_for_sampler(self, body: Any) -> Answer:

        async def run() -> dict[str, Any]:
            if body.get("path"):
                path = await self._saved(body, "sampler_weights", body["path"])
                return {"path": path, "type": "save_weights_for_sampler"}
            path = await self._saved(body, "sampler_weights", f"passing-{body['seq_id']}")
            session = body["model_id"].partition(":")[0]
            sampler = f"{session}:sample:{body['sampling_session_seq_id']}"
            await self._open_sampler(sampler, path, self._models[body["model_id"]].base_model)
            return {"path": None, "sampling_session_id": sampler, "type": "save_weights_for_sampler"}

        return self._promise(f"{body['model_id']}:{body['seq_id']}", run(), model_id=body["model_id"])

    async def _load_weights(self, body: Any) -> Answer:
        name = f"{body['session_id']}:train:{body['model_seq_id']}"
        saved = self._path_models.get(body["path"])
        if saved is None or body["path"] not in self.paths:
            return Answer(status=404, body={"detail": f"no checkpoint {body['path']}"})

        async def run() -> dict[str, Any]:
            model = await self._open(saved.base_model, saved.lora, 0)
            load = tp.LoadCheckpointRequest(
                session_id=model.session.session_id,
                sequence=1,
                uri=self.paths[body["path"]],
                weights_only=not body["optimizer"],
            )
            await self._result(self.training, self.training.LoadCheckpoint, load)
            model.offset = 1
            self._models[name] = model
            return {"path": body["path"], "model_id": name, "type": "load_weights"}

        return self._promise(f"{name}:0", run(), model_id=name)

    async def _delete(self, path: str) -> Answer:
        uri = self.paths.pop(path, None)
        if uri is None:
            return Answer(status=404, body={"detail": f"no checkpoint {path}"})
        # One that is sampled from goes for new sessions alone.
        with contextlib.suppress(FailedPreconditionError):
            await self.training.DeleteCheckpoint(tp.DeleteCheckpointRequest(uri=uri))
        return Answer(status=204, body=b"")

    async def _create_sampling_session(self, body: Any) -> Answer:
        sampler = f"{body['session_id']}:sample:{body['sampling_session_seq_id']}"
        path, name = body.get("model_path") or "", body.get("base_model") or ""
        if path and path not in self.paths:
            return Answer(status=404, body={"detail": f"no checkpoint {path}"})
        if not path and name not in self._folders:
            return Answer(status=400, body={"detail": f"model {name} is not supported"})
        await self._open_sampler(sampler, path, name or self._path_models[path].base_model)
        return Answer(body={"sampling_session_id": sampler, "type": "create_sampling_session"})

    async def _open_sampler(self, sampler: str, path: str, base_model: str) -> None:
        model = {"checkpoint_uri": self.paths[path]} if path else {"base_model": str(self._folders[base_model])}
        create = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **model)
        self._samplers[sampler] = ((await self.sampling.CreateSamplingSession(create)).session_id, base_model)

    async def _asample(self, body: Any) -> Answer:
        session, _ = self._samplers[body["sampling_session_id"]]
        given = body["sampling_params"]
        params = sp.SamplingParams(
            max_tokens=given["max_tokens"],
            temperature=given["temperature"],
            top_p=given["top_p"],
            top_k=max(given["top_k"], 0),
            seed=given.get("seed") or 0,
            stop_tokens=given.get("stop") or [],
        )
        prompt = [token for chunk in body["prompt"]["chunks"] for token in chunk["tokens"]]
        message = sp.SampleRequest(
            session_id=session,
            sequence=body["seq_id"] + 1,
            prompt_tokens_int32=pack_tokens(prompt),
            params=params,
            num_samples=body["num_samples"],
            prompt_logprobs=body["prompt_logprobs"],
        )

        async def run() -> bytes:
            return samples_of((await self._result(self.sampling, self.sampling.Sample, message)).sample)

        number = f"{body['sampling_session_id']}:{body['seq_id']}"
        ids = [f"{number}:{index}" for index in range(body["num_samples"])]
        return self._promise(number, run(), sample_sequence_ids=ids)

    def _promise(self, request_id: str, run: Any, **more: Any) -> Answer:
        if request_id in self._futures:
            # The same number again: the first request's answer was lost.
            run.close()
        else:
            self._futures[request_id] = asyncio.create_task(run)
        return Answer(body={"request_id": request_id, **more})

    async def _retrieve_future(self, body: Any) -> Answer:
        await self.results.wait()
        request_id = body["request_id"]
        task = self._futures.get(request_id)
        if task is None:
            return Answer(status=410, body={"detail": "expired"})
        done, _ = await asyncio.wait([task], timeout=_POLL_SECONDS)
        if not done:
            return Answer(body={"type": "try_again", "request_id": request_id, "queue_state": "active"})
        error = task.exception()
        if isinstance(error, KitchenError):
            category = "server" if error.retryable else "user"
            return Answer(body={"error": error.message, "category": category})
        if error is not None:
            raise error
        result = task.result()
        if isinstance(result, bytes):
            return Answer(body=result, content_type="application/x-protobuf")
        return Answer(body=result)

    async def _result(self, stub: Any, call: Any, message: Any) -> Any:
        operation = (await call(message)).operation
        kind = tp.AwaitOperationRequest if stub is self.training else sp.AwaitOperationRequest
        while True:
            response = await stub.AwaitOperation(
                kind(session_id=message.session_id, operation_id=operation.id, wait=_WAIT)
            )
            if response.operation.state in _ENDED:
                check_finished(response.operation)
                return response
