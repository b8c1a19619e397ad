"""SamplingService of the Elixir adapter over a unix socket, its handshake, and its life as a host's child."""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import duration_pb2

from crucible.adapter.v1 import adapter_pb2, adapter_pb2_grpc
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.sampling.v1 import sampling_pb2_grpc
from crucible.port.training.v1 import training_pb2 as tp
from crucible.port.training.v1 import training_pb2_grpc
from crucible.type.v1 import datum_pb2, operation_pb2
from crucible_kit.adapter import CONTRACT_VERSIONS, port_support, to_struct
from crucible_kit.channel import RemoteChannel, connect
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError, KitchenError, NotFoundError
from crucible_kit.tensors import pack_tokens, to_tensor, unpack_floats, unpack_tokens
from crucible_kit.training import TrainingSession
from tests.contract.elixir import ElixirAdapter, needs_elixir
from tests.contract.toy_reference import ToyReference, first_weights

pytestmark = needs_elixir

MODEL, VOCABULARY = "toy-32", 32
WAIT = duration_pb2.Duration(seconds=30)


@pytest.fixture(scope="module")
def socket() -> Iterator[str]:
    # Short: a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory() as folder:
        yield f"unix:{folder}/a.sock"


@pytest.fixture(scope="module")
def adapter(socket: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ElixirAdapter]:
    """Started as a host starts it: where to listen comes in the environment, and its stdin is a pipe."""
    folder = tmp_path_factory.mktemp("elixir")
    running = ElixirAdapter(folder, listen=socket)
    yield running
    assert running.end() == 0
    # What it kept for itself went with it.
    assert not Path(socket.removeprefix("unix:")).exists()


@pytest.fixture
async def channel(adapter: ElixirAdapter, socket: str) -> AsyncIterator[RemoteChannel]:
    assert adapter.address == socket
    opened = connect(adapter.address)
    yield opened
    await opened.close()


@pytest.fixture
def stub(channel: RemoteChannel) -> Any:
    return sampling_pb2_grpc.SamplingServiceStub(channel)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def info(channel: RemoteChannel) -> Any:
    return adapter_pb2_grpc.AdapterServiceStub(channel)  # pyright: ignore[reportArgumentType]


@pytest.fixture
async def trained(channel: RemoteChannel) -> TrainingSession:
    stub = training_pb2_grpc.TrainingServiceStub(channel)  # pyright: ignore[reportArgumentType]
    return await TrainingSession.create(stub, base_model=MODEL)


class Sampler:
    """One open sampling session."""

    def __init__(self, stub: Any, session_id: str) -> None:
        self.stub, self.session_id, self.sequence = stub, session_id, 0

    @classmethod
    async def open(cls, stub: Any, **model: Any) -> Sampler:
        request = sp.CreateSamplingSessionRequest(request_id=str(uuid.uuid4()), **model)
        response = await stub.CreateSamplingSession(request)
        assert (response.vocab_size, response.max_sequence_tokens, response.lease.seconds) == (VOCABULARY, 2048, 1800)
        return cls(stub, response.session_id)

    def request(self, count: int = 1, **params: Any) -> sp.SampleRequest:
        self.sequence += 1
        return sp.SampleRequest(
            session_id=self.session_id,
            sequence=self.sequence,
            prompt_tokens_int32=pack_tokens([3, 7]),
            params=sp.SamplingParams(**{"max_tokens": 12, **params}),
            num_samples=count,
            prompt_logprobs=True,
        )

    async def result(self, operation: operation_pb2.Operation) -> sp.AwaitOperationResponse:
        request = sp.AwaitOperationRequest(session_id=self.session_id, operation_id=operation.id, wait=WAIT)
        response = await self.stub.AwaitOperation(request)
        assert response.operation.state == operation_pb2.OPERATION_STATE_SUCCEEDED, response.operation.failure
        return response

    async def sample(self, count: int = 1, **params: Any) -> sp.SampleResult:
        operation = (await self.stub.Sample(self.request(count, **params))).operation
        return (await self.result(operation)).sample

    async def score(self, tokens: list[int]) -> np.ndarray:
        self.sequence += 1
        request = sp.ComputeLogprobsRequest(
            session_id=self.session_id, sequence=self.sequence, tokens_int32=pack_tokens(tokens)
        )
        operation = (await self.stub.ComputeLogprobs(request)).operation
        return unpack_floats((await self.result(operation)).logprobs.logprobs_float32)


async def step(session: TrainingSession) -> None:
    """Makes token 5 likely after any token of one row."""
    datum = datum_pb2.Datum(
        model_input=datum_pb2.ModelInput(chunks=[datum_pb2.ModelInputChunk(tokens_int32=pack_tokens([7, 7]))]),
        loss_fn_inputs={
            "target_tokens": to_tensor(np.array([5, 5], np.int32)),
            "weights": to_tensor(np.ones(2, np.float32)),
        },
    )
    await session.enqueue_forward_backward([datum], tp.LossFunction(name="cross_entropy"))
    await session.result(await session.enqueue_optim_step(tp.AdamParams(learning_rate=3.0)))


async def test_logprobs_are_those_of_numpy(stub: Any):
    reference = ToyReference(first_weights(MODEL, VOCABULARY))
    sampler = await Sampler.open(stub, base_model=MODEL)
    tokens = np.array([3, 7, 9, 31, 0, 8], np.int32)
    expected = reference.logprobs(tokens[:-1], tokens[1:])
    np.testing.assert_allclose(await sampler.score(tokens.tolist()), expected, rtol=1e-6)
    result = await sampler.sample(temperature=0.0)
    (sequence,) = result.sequences
    taken = np.array([7, *unpack_tokens(sequence.tokens_int32)], np.int32)
    expected = reference.logprobs(taken[:-1], taken[1:])
    np.testing.assert_allclose(unpack_floats(sequence.logprobs_float32), expected, rtol=1e-6)
    np.testing.assert_allclose(
        unpack_floats(result.prompt_logprobs_float32), reference.logprobs(np.array([3]), np.array([7])), rtol=1e-6
    )
    logits = reference.weights[0] + reference.weights[1 + taken[:-1] % 8]
    np.testing.assert_array_equal(logits.argmax(-1), taken[1:])
    assert sequence.stop_reason == sp.STOP_REASON_LENGTH


async def test_a_sample_depends_on_its_seed_and_index_alone(stub: Any):
    sampler = await Sampler.open(stub, base_model=MODEL)
    many = await sampler.sample(5, seed=11)
    few = await (await Sampler.open(stub, base_model=MODEL)).sample(2, seed=11)
    assert list(many.sequences)[:2] == list(few.sequences)
    assert len({each.tokens_int32 for each in many.sequences}) == 5
    assert (await sampler.sample(5, seed=12)).sequences != many.sequences
    stop = int(unpack_tokens(many.sequences[0].tokens_int32)[4])
    (stopped,) = (await sampler.sample(seed=11, stop_tokens=[stop])).sequences
    assert unpack_tokens(stopped.tokens_int32)[-1] == stop
    assert stopped.stop_reason == sp.STOP_REASON_STOP
    assert many.sequences[0].tokens_int32.startswith(stopped.tokens_int32)


async def test_a_stream_gives_what_sample_gives(stub: Any):
    sampler = await Sampler.open(stub, base_model=MODEL)
    params = sp.SamplingParams(max_tokens=300, seed=4, top_p=0.9, top_k=20)
    whole = (await sampler.sample(2, max_tokens=300, seed=4, top_p=0.9, top_k=20)).sequences
    request = sp.StreamSampleRequest(
        session_id=sampler.session_id, prompt_tokens_int32=pack_tokens([3, 7]), params=params, num_samples=2
    )
    tokens, logprobs, reasons = [b"", b""], [b"", b""], [[], []]
    async for each in stub.StreamSample(request):
        tokens[each.index] += each.tokens_int32
        logprobs[each.index] += each.logprobs_float32
        reasons[each.index].append(each.stop_reason)
    assert tokens == [each.tokens_int32 for each in whole]
    assert logprobs == [each.logprobs_float32 for each in whole]
    assert [each[-1] for each in reasons] == [sp.STOP_REASON_LENGTH] * 2
    assert not any(any(each[:-1]) for each in reasons)


async def test_following_a_training_session(stub: Any, trained: TrainingSession):
    sampler = await Sampler.open(stub, training_session_id=trained.session_id)
    before = await sampler.sample(temperature=0.0)
    assert before.weights_version == 0
    await step(trained)
    after = await sampler.sample(temperature=0.0)
    assert after.weights_version == 1
    assert unpack_tokens(after.sequences[0].tokens_int32)[0] == 5
    assert (await (await Sampler.open(stub, base_model=MODEL)).sample(temperature=0.0)).sequences == before.sequences
    await trained.close()
    with pytest.raises(NotFoundError) as caught:
        await sampler.sample()
    assert (caught.value.reason, caught.value.metadata["field"]) == ("SESSION_NOT_FOUND", "training_session_id")


async def test_a_session_is_pinned_to_its_checkpoint(stub: Any, trained: TrainingSession):
    await step(trained)
    saved = await trained.save_checkpoint("pinned/step-1", weights_only=True)
    sampler = await Sampler.open(stub, checkpoint_uri=saved.uri)
    await step(trained)
    result = await sampler.sample(temperature=0.0)
    assert (result.weights_version, unpack_tokens(result.sequences[0].tokens_int32)[0]) == (0, 5)
    with pytest.raises(FailedPreconditionError) as used:
        await trained.delete_checkpoint(saved.uri)
    assert used.value.reason == "CHECKPOINT_IN_USE"
    await stub.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=sampler.session_id))
    await trained.delete_checkpoint(saved.uri)
    with pytest.raises(NotFoundError) as gone:
        await Sampler.open(stub, checkpoint_uri=saved.uri)
    assert gone.value.reason == "CHECKPOINT_NOT_FOUND"


async def test_numbers_only_remove_duplicates(stub: Any):
    sampler = await Sampler.open(stub, base_model=MODEL)
    sampler.sequence = 90
    late = sampler.request(seed=1)
    sampler.sequence = 6
    early = sampler.request(seed=2)
    first = (await stub.Sample(late)).operation
    await sampler.result((await stub.Sample(early)).operation)
    assert (await stub.Sample(late)).operation.id == first.id
    late.params.seed = 3
    with pytest.raises(InvalidArgumentError) as caught:
        await stub.Sample(late)
    assert caught.value.reason == "SEQUENCE_REUSED"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"prompt_tokens_int32": pack_tokens([VOCABULARY])}, "prompt_tokens_int32[0]"),
        ({"prompt_tokens_int32": pack_tokens([1] * 2048)}, "prompt_tokens_int32"),
        ({"params": sp.SamplingParams(max_tokens=1, stop_tokens=[1, 99])}, "params.stop_tokens[1]"),
        ({"num_samples": 1024, "params": sp.SamplingParams(max_tokens=2**31 - 1), "repeat": 3}, ""),
    ],
)
async def test_bad_samples_name_the_field(stub: Any, change: dict[str, Any], field: str):
    sampler = await Sampler.open(stub, base_model=MODEL)
    request = sampler.request()
    repeat = change.pop("repeat", 1)
    for name, value in change.items():
        request.ClearField(name)
        request.MergeFrom(sp.SampleRequest(**{name: value}))
    with pytest.raises(KitchenError) as caught:
        for _ in range(repeat):
            await stub.Sample(request)
            request.sequence += 1
    if field:
        assert [each.field for each in caught.value.fields] == [field]
    else:
        # Each alone has two million tokens, which a session may have; the third is too much.
        assert (caught.value.reason, caught.value.retry_delay) == ("TOO_MANY_TOKENS", 1.0)
        await stub.CloseSamplingSession(sp.CloseSamplingSessionRequest(session_id=sampler.session_id))


async def test_handshake(info: Any, adapter: ElixirAdapter):
    answer = await info.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=CONTRACT_VERSIONS))
    assert (answer.name, answer.language, list(answer.contract_versions)) == ("crucible-elixir", "elixir", [1])
    assert list(answer.ports) == [
        port_support("sampling", ("sampling.follow", "sampling.stream")),
        port_support("training", ("training.checkpoint_files", "training.full")),
    ]
    assert len(answer.instance_id) == 32
    with pytest.raises(FailedPreconditionError) as caught:
        await info.GetAdapterInfo(adapter_pb2.GetAdapterInfoRequest(host_contract_versions=[7]))
    assert caught.value.reason == "CONTRACT_VERSION_UNSUPPORTED"
    assert (await info.Probe(adapter_pb2.ProbeRequest())).state == adapter_pb2.ProbeResponse.STATE_READY


async def test_configure_takes_no_settings_and_no_older_generation(info: Any):
    service = "crucible.port.training.v1.TrainingService"

    async def configure(**fields: Any) -> None:
        await info.Configure(adapter_pb2.ConfigureRequest(**{"service": service, "generation": 2, **fields}))

    await configure()
    await configure(generation=3)
    with pytest.raises(FailedPreconditionError) as stale:
        await configure()
    assert stale.value.reason == "STALE_GENERATION"
    for wrong, field in (
        ({"settings": to_struct({"depth": 3})}, "settings.depth"),
        ({"secrets": {"key": "x"}}, "secrets"),
        ({"service": "crucible.port.blob.v1.BlobStoreService"}, "service"),
    ):
        with pytest.raises(InvalidArgumentError) as caught:
            await configure(generation=4, **wrong)
        assert caught.value.metadata["field"] == field


def test_where_it_cannot_listen_it_says_so(tmp_path: Path):
    for arguments, said in (
        (["--listen", "0.0.0.0:0"], "an address of this machine"),
        ([], "--listen"),
        (["--port", "1"], "--listen ADDRESS and --work-dir FOLDER"),
    ):
        with pytest.raises(RuntimeError, match="status 2") as caught:
            ElixirAdapter(tmp_path, *arguments)
        assert said in str(caught.value)
