"""What clients may hold, and that what they gave back counts no more."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import pytest

from crucible.port.dataset.v1 import dataset_pb2
from crucible.port.sampling.v1 import sampling_pb2 as sp
from crucible.port.training.v1 import training_pb2 as tp
from crucible.type.v1 import operation_pb2
from crucible_kit.errors import DeadlineExceededError, InvalidArgumentError, KitchenError
from tests.relay.harness import ANNE, BERT, Client, facts, refusal, relaying

TOO_MANY = ("RESOURCE_EXHAUSTED", "TOO_MANY_SESSIONS")
TOO_MANY_TOKENS = ("RESOURCE_EXHAUSTED", "TOO_MANY_TOKENS")


def assert_tells(error: KitchenError, option: str, limit: int) -> None:
    """Names the limit and the option that sets it, and when to try again."""
    assert error.metadata["option"] == option and option in error.message
    assert error.metadata["limit"] == str(limit) and str(limit) in error.message
    assert error.retry_delay and error.retry_delay > 0


async def close(client: Client, session_id: str) -> None:
    await client.training.CloseTrainingSession(tp.CloseTrainingSessionRequest(session_id=session_id))


async def test_training_sessions_of_one_caller(tmp_path: Path):
    async with relaying(tmp_path, max_client_training_sessions=2) as kitchen:
        anne, bert, request_id = kitchen.client(ANNE), kitchen.client(BERT), str(uuid.uuid4())
        first = await anne.open_training(request_id=request_id)
        await anne.open_training()
        error = await refusal(anne.open_training())
        assert facts(error) == TOO_MANY
        assert_tells(error, "max_client_training_sessions", 2)
        # Asked for again it takes no more room, and others have room of their own.
        assert await anne.open_training(request_id=request_id) == first
        await bert.open_training()
        await anne.open_sampling()
        await close(anne, first)
        await anne.open_training()
        assert facts(await refusal(anne.open_training(request_id=request_id))) == TOO_MANY


async def test_a_refused_session_never_reaches_the_adapter(tmp_path: Path):
    async with relaying(tmp_path, max_client_training_sessions=0, max_client_sampling_sessions=0) as kitchen:
        anne = kitchen.client(ANNE)
        assert facts(await refusal(anne.open_training())) == facts(await refusal(anne.open_sampling())) == TOO_MANY
        assert kitchen.host.starts["training"] == kitchen.host.starts["sampling"] == 0


async def test_sessions_that_are_being_opened_count(tmp_path: Path):
    async with relaying(tmp_path, max_client_training_sessions=2) as kitchen:
        anne = kitchen.client(ANNE)
        gate = kitchen.training.gates["CreateTrainingSession"] = asyncio.Event()
        opening = [asyncio.create_task(anne.open_training()) for _ in range(5)]
        done, pending = await asyncio.wait(opening, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        while len(done) < 3:
            more, pending = await asyncio.wait(pending, timeout=30, return_when=asyncio.FIRST_COMPLETED)
            assert more
            done |= more
        assert {facts(await refusal(each)) for each in done} == {TOO_MANY}
        gate.set()
        await asyncio.gather(*pending)
        # What failed to open holds no place.
        kitchen.training.errors["CreateTrainingSession"] = InvalidArgumentError("bad", reason="FIELD_INVALID")
        for session_id in list(kitchen.training.open):
            await close(anne, session_id)
        for _ in range(3):
            assert facts(await refusal(anne.open_training())) == ("INVALID_ARGUMENT", "FIELD_INVALID")


async def test_callers_who_hang_up_get_no_more_than_their_share(tmp_path: Path):
    async with relaying(tmp_path, max_client_training_sessions=1) as kitchen:
        anne = kitchen.client(ANNE)
        kitchen.training.gates["CreateTrainingSession"] = asyncio.Event()
        opening = asyncio.create_task(anne.open_training())
        await kitchen.training.reached("CreateTrainingSession")
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert facts(await refusal(anne.open_training())) == TOO_MANY


async def test_sessions_of_all_callers_together(tmp_path: Path):
    async with relaying(tmp_path, max_sessions_of_clients=2, max_full_sessions_of_clients=1) as kitchen:
        anne, bert = kitchen.client(ANNE), kitchen.client(BERT)
        whole = await anne.open_training(lora=False)
        error = await refusal(bert.open_training(lora=False))
        assert facts(error) == TOO_MANY
        assert_tells(error, "max_full_sessions_of_clients", 1)
        await bert.open_training()
        error = await refusal(bert.open_training())
        assert facts(error) == TOO_MANY
        assert_tells(error, "max_sessions_of_clients", 2)
        await close(anne, whole)
        await bert.open_training(lora=False)


async def test_a_crash_gives_all_room_back(tmp_path: Path):
    async with relaying(tmp_path, max_client_training_sessions=1, max_client_tokens_in_flight=4) as kitchen:
        anne = kitchen.client(ANNE)
        await anne.forward_backward(await anne.open_training(), 1, 4)
        kitchen.host.crash("training")
        await anne.forward_backward(await anne.open_training(), 1, 4)


async def test_datasets_of_one_caller(tmp_path: Path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"a": 1}\n')
    opening = dataset_pb2.OpenDatasetRequest(source=dataset_pb2.DatasetSource(uri=str(rows)))
    async with relaying(tmp_path, max_client_datasets=1) as kitchen:
        anne = kitchen.client(ANNE)
        mine = (await anne.dataset.OpenDataset(opening)).dataset.dataset_id
        error = await refusal(anne.dataset.OpenDataset(opening))
        assert facts(error) == ("RESOURCE_EXHAUSTED", "TOO_MANY_DATASETS")
        assert_tells(error, "max_client_datasets", 1)
        await kitchen.client(BERT).dataset.OpenDataset(opening)
        await anne.dataset.CloseDataset(dataset_pb2.CloseDatasetRequest(dataset_id=mine))
        await anne.dataset.OpenDataset(opening)


async def test_tokens_count_until_their_operation_is_seen_finished(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne, training = kitchen.client(ANNE), kitchen.training
        session_id, other = await anne.open_training(), await anne.open_training()
        first = await anne.forward_backward(session_id, 1, 6)
        # Over all sessions of the caller.
        error = await refusal(anne.forward_backward(other, 1, 5))
        assert facts(error) == TOO_MANY_TOKENS
        assert_tells(error, "max_client_tokens_in_flight", 10)
        assert error.metadata["in_flight"] == "6" and error.metadata["tokens"] == "5"
        assert not [each for each in training.requests("ForwardBackward") if each.session_id == other]
        # A repeat is the same call, and others have tokens of their own.
        assert await anne.forward_backward(session_id, 1, 6) == first
        bert = kitchen.client(BERT)
        await bert.forward_backward(await bert.open_training(), 1, 10)
        await anne.result(session_id, first)  # not finished
        assert facts(await refusal(anne.forward_backward(other, 1, 5))) == TOO_MANY_TOKENS
        training.finish(first)
        await anne.result(session_id, first)
        await anne.forward_backward(other, 1, 5)
        await anne.forward_backward(session_id, 2, 5)


async def test_a_finished_step_ends_all_before_it(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne, training = kitchen.client(ANNE), kitchen.training
        session_id = await anne.open_training()
        for sequence in (1, 2):
            await anne.forward_backward(session_id, sequence, 4)
        request = tp.OptimStepRequest(session_id=session_id, sequence=3, adam=tp.AdamParams(learning_rate=1))
        step = (await anne.training.OptimStep(request)).operation.id
        await anne.result(session_id, step)
        assert facts(await refusal(anne.forward_backward(session_id, 4, 8))) == TOO_MANY_TOKENS
        # One that was cancelled may have overtaken others: it ends nothing but itself.
        training.finish(step, operation_pb2.OPERATION_STATE_CANCELLED)
        await anne.result(session_id, step)
        assert facts(await refusal(anne.forward_backward(session_id, 4, 8))) == TOO_MANY_TOKENS
        training.finish(step, operation_pb2.OPERATION_STATE_FAILED)
        await anne.result(session_id, step)
        await anne.forward_backward(session_id, 4, 8)


@pytest.mark.parametrize("way", ["cancel", "close", "expire", "lease", "refused"])
async def test_tokens_come_back(tmp_path: Path, way: str):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne = kitchen.client(ANNE)
        session_id, other = await anne.open_training(), await anne.open_training()
        if way == "refused":
            kitchen.training.errors["ForwardBackward"] = InvalidArgumentError("bad", reason="FIELD_INVALID")
            assert facts(await refusal(anne.forward_backward(session_id, 1, 10))) == (
                "INVALID_ARGUMENT",
                "FIELD_INVALID",
            )
            kitchen.training.errors.clear()
        else:
            operation = await anne.forward_backward(session_id, 1, 10)
            assert facts(await refusal(anne.forward_backward(other, 1, 1))) == TOO_MANY_TOKENS
        if way == "cancel":
            request = tp.CancelOperationRequest(session_id=session_id, operation_id=operation)
            await anne.training.CancelOperation(request)
        if way == "close":
            await close(anne, session_id)
        if way == "expire":
            del kitchen.training.operations[operation]
            assert (await refusal(anne.result(session_id, operation))).reason == "OPERATION_NOT_FOUND"
        if way == "lease":
            kitchen.clock.now += 101
            await anne.training.GetTrainingSession(tp.GetTrainingSessionRequest(session_id=other))
            await kitchen.relay.close_expired()
        await anne.forward_backward(other, 1, 10)


async def test_a_call_that_the_adapter_may_have_accepted_still_counts(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne = kitchen.client(ANNE)
        session_id = await anne.open_training()
        kitchen.training.errors["ForwardBackward"] = DeadlineExceededError("late", reason="DEADLINE_EXCEEDED")
        await refusal(anne.forward_backward(session_id, 1, 6))
        kitchen.training.errors.clear()
        assert facts(await refusal(anne.forward_backward(session_id, 2, 5))) == TOO_MANY_TOKENS
        kitchen.training.gates["ForwardBackward"] = asyncio.Event()
        sending = asyncio.create_task(anne.forward_backward(session_id, 3, 4))
        await kitchen.training.reached("ForwardBackward")
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        kitchen.training.gates.clear()
        assert facts(await refusal(anne.forward_backward(session_id, 4, 1))) == TOO_MANY_TOKENS
        # Sent again, it is known and may be awaited.
        operation = await anne.forward_backward(session_id, 3, 4)
        kitchen.training.finish(operation)
        await anne.result(session_id, operation)
        await anne.forward_backward(session_id, 4, 10)


async def test_more_tokens_than_a_caller_may_ever_have_are_refused_for_good(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne = kitchen.client(ANNE)
        error = await refusal(anne.forward_backward(await anne.open_training(), 1, 11))
        assert facts(error) == ("INVALID_ARGUMENT", "FIELD_INVALID")
        assert error.metadata["field"] == "data" and error.retry_delay is None
        assert "max_client_tokens_in_flight" in error.message


async def test_samples_count_at_their_longest(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=100) as kitchen:
        anne = kitchen.client(ANNE)
        session_id = await anne.open_sampling()

        async def sample(sequence: int, samples: int, max_tokens: int) -> str:
            request = sp.SampleRequest(
                session_id=session_id,
                sequence=sequence,
                prompt_tokens_int32=bytes(4 * 8),
                params=sp.SamplingParams(max_tokens=max_tokens),
                num_samples=samples,
            )
            return (await anne.sampling.Sample(request)).operation.id

        # The model takes 32 tokens in all: 8 of the prompt, and 24 of each sample, whatever was asked for.
        first = await sample(1, 3, 1_000_000)
        error = await refusal(sample(2, 3, 5))
        assert facts(error) == TOO_MANY_TOKENS
        assert error.metadata["in_flight"] == str(8 + 3 * 24) and error.metadata["tokens"] == str(8 + 3 * 5)
        second = await sample(2, 2, 6)
        scoring = sp.ComputeLogprobsRequest(session_id=session_id, sequence=3, tokens_int32=bytes(4 * 2))
        assert facts(await refusal(anne.sampling.ComputeLogprobs(scoring))) == TOO_MANY_TOKENS
        # Samples may finish in any order: the second tells nothing of the first.
        kitchen.sampling.finish(second)
        await anne.sampling.AwaitOperation(sp.AwaitOperationRequest(session_id=session_id, operation_id=second))
        assert facts(await refusal(sample(4, 1, 24))) == TOO_MANY_TOKENS
        await anne.sampling.ComputeLogprobs(scoring)
        kitchen.sampling.finish(first)
        await anne.sampling.AwaitOperation(sp.AwaitOperationRequest(session_id=session_id, operation_id=first))
        await sample(4, 1, 24)


async def test_a_stream_of_samples_counts_while_it_lasts(tmp_path: Path):
    async with relaying(tmp_path, max_client_tokens_in_flight=10) as kitchen:
        anne = kitchen.client(ANNE)
        session_id = await anne.open_sampling()
        request = sp.StreamSampleRequest(
            session_id=session_id,
            prompt_tokens_int32=bytes(4 * 4),
            params=sp.SamplingParams(max_tokens=3),
            num_samples=2,
        )
        gate = kitchen.sampling.gates["StreamSample/more"] = asyncio.Event()
        stream = anne.sampling.StreamSample(request)
        assert (await anext(stream)).index == 0
        assert facts(await refusal(anne.sampling.StreamSample(request))) == TOO_MANY_TOKENS
        gate.set()
        assert [each.index async for each in stream] == [1]
        assert [each.index async for each in anne.sampling.StreamSample(request)] == [0, 1]
