"""A server's ports over adapters that a test can look into, and clients of it with tokens of their own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import datum_pb2
from crucible_adapters.blob.local import LocalBlobStore
from crucible_adapters.dataset.local import LocalDatasets
from crucible_adapters.fakes.deployment import FakeDeployment
from crucible_adapters.fakes.environment import FakeEnvironment
from crucible_adapters.fakes.evaluator import FakeEvaluator
from crucible_adapters.fakes.llm import FakeLLM
from crucible_adapters.fakes.python_bridge import FakePythonBridge
from crucible_adapters.metrics.sqlite import SqliteMetricsStore
from crucible_adapters.registry.sqlite import SqliteModelRegistry
from crucible_kit.adapter import AdapterContext
from crucible_kit.channel import Channel, ObjectChannel, RemoteChannel, connect
from crucible_kit.errors import FailedPreconditionError, KitchenError
from crucible_kit.ports import PORTS
from crucible_kit.serving import serve_ports
from crucible_kit.tensors import pack_tokens, to_tensor
from crucible_kitchen.api.access import Tokens
from crucible_kitchen.api.endpoint import Endpoint
from crucible_kitchen.options import ServerOptions
from crucible_kitchen.ports.host import Attached
from crucible_kitchen.relay.relay import Relay
from tests.relay.fake_adapters import FakeHub, FakeSampling, FakeTokenizer, FakeTraining
from tests.server.fakes import serve

READ, ANNE, BERT = "read-token-0123456789", "anne-token-0123456789", "bert-token-0123456789"
ADA, BOB = "admin-ada-0123456789", "admin-bob-0123456789"
SECRET = bytes(range(32))
CROSS_ENTROPY = tp.LossFunction(name="cross_entropy")


class Clock:
    """Monotonic seconds that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeHost:
    """The adapters: none runs before its stub is asked for.

    Attributes:
        starts: how often each port's adapter was started.
        capabilities: of all of them.
    """

    def __init__(self, adapters: dict[str, Any], channels: dict[str, Channel]) -> None:
        self.adapters = adapters
        self._stubs = {port: PORTS[port].stub(channel) for port, channel in channels.items()}
        self._instances: dict[str, str] = {}
        self.starts = dict.fromkeys(adapters, 0)
        self.capabilities = frozenset({"training.local_model"})

    def require(self, port: str) -> None:
        if port not in self.adapters:
            raise FailedPreconditionError(f"{port} is not mapped", reason="PORT_NOT_MAPPED")

    async def stub(self, port: str) -> Any:
        if port not in self._instances:
            self.starts[port] += 1
            self._instances[port] = uuid.uuid4().hex
        return self._stubs[port]

    def attached(self, port: str) -> Attached | None:
        instance = self._instances.get(port)
        return None if instance is None else Attached(self._stubs[port], instance)

    async def known_capabilities(self, port: str) -> frozenset[str]:
        return self.capabilities

    def crash(self, port: str) -> None:
        """The adapter ends with what it had."""
        del self._instances[port]
        self.adapters[port].open.clear()
        self.adapters[port].by_request.clear()


@dataclass
class Kitchen:
    """A served relay."""

    host: FakeHost
    endpoint: Endpoint
    relay: Relay
    clock: Clock
    address: str
    _channels: dict[str, RemoteChannel] = field(default_factory=dict)

    @property
    def training(self) -> FakeTraining:
        return self.host.adapters["training"]

    @property
    def sampling(self) -> FakeSampling:
        return self.host.adapters["sampling"]

    @property
    def hub(self) -> FakeHub:
        return self.host.adapters["hub"]

    def client(self, token: str = ANNE) -> Client:
        if token not in self._channels:
            self._channels[token] = connect(self.address, token=token, wait_for_ready=False)
        return Client(self._channels[token])

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()


class Client:
    """The ports as a client has them, and short forms of what tests ask most."""

    def __init__(self, channel: RemoteChannel) -> None:
        self.channel = channel
        for name, port in PORTS.items():
            setattr(self, name, port.stub(channel))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    async def open_training(self, *, lora: bool = True, request_id: str = "", base_model: str = "builtin:m") -> str:
        request = tp.CreateTrainingSessionRequest(
            request_id=request_id or str(uuid.uuid4()),
            base_model=base_model,
            lora=tp.LoraConfig(rank=2) if lora else None,
        )
        return (await self.training.CreateTrainingSession(request)).session.session_id

    async def open_sampling(self, *, request_id: str = "", **model: str) -> str:
        request = sp.CreateSamplingSessionRequest(
            request_id=request_id or str(uuid.uuid4()), **(model or {"base_model": "builtin:m"})
        )
        return (await self.sampling.CreateSamplingSession(request)).session_id

    async def forward_backward(self, session_id: str, sequence: int, num_tokens: int) -> str:
        request = tp.ForwardBackwardRequest(
            session_id=session_id, sequence=sequence, data=[datum(num_tokens)], loss_fn=CROSS_ENTROPY
        )
        return (await self.training.ForwardBackward(request)).operation.id

    async def save(self, session_id: str, sequence: int, name: str) -> str:
        """The address of a checkpoint, saved."""
        request = tp.SaveCheckpointRequest(session_id=session_id, sequence=sequence, name=name)
        operation = (await self.training.SaveCheckpoint(request)).operation.id
        return (await self.result(session_id, operation)).checkpoint.uri

    async def result(self, session_id: str, operation_id: str) -> tp.AwaitOperationResponse:
        return await self.training.AwaitOperation(
            tp.AwaitOperationRequest(session_id=session_id, operation_id=operation_id)
        )


def datum(num_tokens: int) -> datum_pb2.Datum:
    ids = np.zeros(num_tokens, np.int32)
    chunk = datum_pb2.ModelInputChunk(tokens_int32=pack_tokens(ids))
    return datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[chunk]), loss_fn_inputs={"target_tokens": to_tensor(ids)}
    )


async def refusal(call: Any) -> KitchenError:
    """The error of a call, or of a stream, that must fail; of one that is still to be made, if it is a function."""
    try:
        call = call() if callable(call) else call
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except KitchenError as error:
        return error
    raise AssertionError("it was not refused")


def facts(error: KitchenError) -> tuple[str, str]:
    """Code and reason."""
    return error.code.name, error.reason


@asynccontextmanager
async def relaying(
    folder: Path, binding: str = "object", *, secret: bytes = SECRET, with_tokens: bool = True, **options: Any
) -> AsyncIterator[Kitchen]:
    """Serves the ports; the options are ServerOptions'.

    Args:
        binding: how the adapters are reached: object, or unix for a gRPC server of their own.
    """
    async with AsyncExitStack() as stack:
        context = AdapterContext(data_dir=folder)
        classes: tuple[Any, ...] = (
            *(LocalBlobStore, LocalDatasets, SqliteMetricsStore, SqliteModelRegistry),
            *(FakeDeployment, FakeEnvironment, FakeEvaluator, FakeLLM, FakePythonBridge),
        )
        real = [each(each.description.options(), context) for each in classes]
        for each in real:
            stack.push_async_callback(each.close)
        adapters: dict[str, Any] = {
            "training": FakeTraining(),
            "sampling": FakeSampling(),
            "hub": FakeHub(),
            "tokenizer": FakeTokenizer(),
            **{each.description.port: each for each in real},
        }
        if binding == "object":
            services = {PORTS[port].service.full_name: adapter for port, adapter in adapters.items()}
            channel: Channel = ObjectChannel(services)
        else:
            served = await serve_ports(adapters, "127.0.0.1:0", name="fakes", capabilities=dict.fromkeys(adapters, ()))
            stack.push_async_callback(served.stop, 0.2)
            channel = connect(served.address, wait_for_ready=False)
            stack.push_async_callback(channel.close)
        host, clock = FakeHost(adapters, dict.fromkeys(adapters, channel)), Clock()
        if with_tokens:
            options["tokens"] = folder / "unread"
        relay = Relay(host, ServerOptions(data=folder, **options), secret, clock=clock)
        stack.push_async_callback(relay.close)
        known = two_run_tokens(folder) if with_tokens else None
        api = await stack.enter_async_context(serve(folder, relay=relay, tokens=known))
        kitchen = Kitchen(host, api.endpoint, relay, clock, api.address)
        stack.push_async_callback(kitchen.close)
        yield kitchen


def two_run_tokens(folder: Path) -> Tokens:
    """Two callers that may run, two admins, and one that may read."""
    path = folder / "relay.tokens"
    path.write_text(f"read: {READ}\nrun: {ANNE}\nrun: {BERT}\nadmin: {ADA}\nadmin: {BOB}\n")
    path.chmod(0o600)
    return Tokens.read(path)
