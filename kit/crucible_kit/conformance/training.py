"""Training adapters: sessions."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import Any

from crucible.port.training.v1 import training_pb2 as pb
from crucible.type.v1 import datum_pb2, tensor_pb2
from crucible_kit.conformance.expect import check, check_equal, check_refused, one_by_one
from crucible_kit.conformance.requirement import Samples, Stage
from crucible_kit.conformance.training_session import (
    LOSS,
    SUITE,
    Session,
    Training,
    base_model,
    check_same,
    create,
    create_request,
    open_session,
)


@SUITE.samples
async def _samples(context: Training) -> Samples:
    session = await open_session(context)
    operation = await session.send_pass(session.data(1))
    await session.ended(operation)
    numbered = {"session_id": session.id, "sequence": session.next}
    data, adam = session.data(1), session.adam()
    await_request = pb.AwaitOperationRequest(session_id=session.id, operation_id=operation.id)
    return {
        "CreateTrainingSession": create_request(context),
        "GetTrainingSession": pb.GetTrainingSessionRequest(session_id=session.id),
        "Forward": pb.ForwardRequest(**numbered, data=data, loss_fn=LOSS),
        "ForwardBackward": pb.ForwardBackwardRequest(**numbered, data=data, loss_fn=LOSS),
        "OptimStep": pb.OptimStepRequest(**numbered, adam=adam),
        "SaveCheckpoint": pb.SaveCheckpointRequest(**numbered, name=context.name()),
        "LoadCheckpoint": pb.LoadCheckpointRequest(**numbered, uri="no-such-checkpoint"),
        "AwaitOperation": await_request,
        "CancelOperation": pb.CancelOperationRequest(session_id=session.id, operation_id=operation.id),
        "ReadCheckpointFile": pb.ReadCheckpointFileRequest(uri="no-such-checkpoint", path="config.json"),
        "DeleteCheckpoint": pb.DeleteCheckpointRequest(uri="no-such-checkpoint"),
        "CloseTrainingSession": pb.CloseTrainingSessionRequest(session_id=f"no-{session.id}"),
    }


@SUITE.pings
async def _ping(context: Training) -> None:
    request = pb.CloseTrainingSessionRequest(session_id="no-session-is-called-so")
    await context.stub.CloseTrainingSession(request)


@SUITE.undoes("CreateTrainingSession")
async def _close_created(context: Training, messages: Sequence[Any], answer: Any) -> None:
    # The same request again: the first may have been answered to nobody.
    await create(context, messages[0])


@SUITE.requirement(
    "TRN-SESSION-01",
    "A new session MUST say what it holds: an id, the model, sizes, no steps, the number 1 as the next, and its lease.",
    quote="The sequence number expected next.",
)
async def _new_session(context: Training) -> None:
    session = (await open_session(context)).created
    check(bool(session.session_id), "a session id", "an empty one")
    check_equal(session.base_model, base_model(context), "base_model")
    check(session.trainable_parameters > 0, "trainable_parameters above 0", session.trainable_parameters)
    check(session.vocab_size > 0, "vocab_size above 0", session.vocab_size)
    check(session.max_sequence_tokens > 0, "max_sequence_tokens above 0", session.max_sequence_tokens)
    check(session.dtype in ("float32", "bfloat16", "float64"), "dtype float32, bfloat16 or float64", session.dtype)
    check_equal((session.optim_steps, session.weights_version), (0, 0), "(optim_steps, weights_version)")
    check_equal(session.next_sequence, 1, "next_sequence")
    check(session.lease.seconds > 0, "a lease of some seconds", session.lease.seconds)


@SUITE.requirement(
    "TRN-SESSION-02",
    "The same request_id with the same payload MUST get the same session, also when both calls come at a time.",
    quote="the same id with the same payload gets the first session again",
)
async def _same_request(context: Training) -> None:
    request = create_request(context)
    both = await asyncio.gather(create(context, request), create(context, request))
    again = await create(context, request)
    check_equal({each.session_id for each in (*both, again)}, {again.session_id}, "the ids of one request_id")
    other = await open_session(context)
    check(other.id != again.session_id, "another session for another request_id", other.id)


@SUITE.requirement(
    "TRN-SESSION-03",
    "The same request_id with another payload MUST be INVALID_ARGUMENT REQUEST_ID_REUSED.",
    quote="with another payload INVALID_ARGUMENT REQUEST_ID_REUSED.",
)
async def _reused_request(context: Training) -> None:
    request = create_request(context)
    await create(context, request)
    request.seed = 12345
    call = context.stub.CreateTrainingSession(request)
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with another seed")


@SUITE.requirement(
    "TRN-SESSION-04",
    "A model that is not there MUST be NOT_FOUND MODEL_NOT_FOUND.",
    quote="NOT_FOUND MODEL_NOT_FOUND; RESOURCE_EXHAUSTED TOO_MANY_SESSIONS with RetryInfo.",
)
async def _unknown_model(context: Training) -> None:
    local = "training.local_model" in context.capabilities
    name = f"/no-such-folder-{uuid.uuid4().hex}" if local else f"no-such-owner/no-such-model-{uuid.uuid4().hex}"
    call = context.stub.CreateTrainingSession(create_request(context, base_model=name))
    await check_refused(call, "NOT_FOUND", "MODEL_NOT_FOUND", what=f"the model {name!r}")


@SUITE.requirement(
    "TRN-SESSION-05",
    "Calls of a session that was closed, or never was, MUST be NOT_FOUND SESSION_NOT_FOUND; closing it is OK.",
    quote="NOT_FOUND SESSION_NOT_FOUND when the session is unknown or its lease ended",
)
async def _closed_session(context: Training) -> None:
    session = await open_session(context)
    operation = await session.send_pass(session.data(1))
    for _ in range(2):
        await context.stub.CloseTrainingSession(pb.CloseTrainingSessionRequest(session_id=session.id))
    unknown = Session(context, pb.TrainingSession(session_id=f"no-{session.id}", vocab_size=2, max_sequence_tokens=4))
    for which, each in (("a closed session", session), ("an unknown session", unknown)):
        cancel = pb.CancelOperationRequest(session_id=each.id, operation_id=operation.id)
        calls = {
            "GetTrainingSession": each.info(),
            "Forward": each.send("Forward", data=each.data(1), loss_fn=LOSS),
            "ForwardBackward": each.send_pass(each.data(1)),
            "OptimStep": each.send_step(),
            "SaveCheckpoint": each.send("SaveCheckpoint", name=context.name()),
            "LoadCheckpoint": each.send("LoadCheckpoint", uri="no-such-checkpoint"),
            "AwaitOperation": each.poll(operation.id),
            "CancelOperation": context.stub.CancelOperation(cancel),
        }
        for name, call in one_by_one(calls):
            await check_refused(call, "NOT_FOUND", "SESSION_NOT_FOUND", what=f"{name} of {which}")


@SUITE.requirement(
    "TRN-SESSION-06",
    "GetTrainingSession MUST tell the steps taken, the version of the weights and the number expected next.",
    quote="GetTrainingSession reads a session and renews its lease.",
)
async def _session_now(context: Training) -> None:
    session = await open_session(context)
    for _ in range(2):
        result = await session.train(session.data(1))
    info = await session.info()
    check_equal((info.optim_steps, info.next_sequence), (2, 5), "(optim_steps, next_sequence) after two steps")
    check_equal(info.weights_version, result.weights_version, "weights_version")
    check_equal((result.optim_steps, result.weights_version), (2, 2), "(optim_steps, weights_version) of the result")


@SUITE.requirement(
    "TRN-SESSION-07",
    "What happens in one session MUST change nothing in another.",
    quote="what one does changes no bit of another.",
)
async def _sessions_apart(context: Training) -> None:
    alone = await open_session(context)
    lessons = [alone.data(2, seed=seed) for seed in range(2)]
    expected = [(await alone.train(data)).update_norm for data in lessons]
    one, other = await open_session(context), await open_session(context)
    for data, norm in zip(lessons, expected, strict=True):
        await other.train(other.data(2, seed=77))
        await other.send_pass(other.data(1, seed=78))
        check_same(context, (await one.train(data)).update_norm, norm, "update_norm beside another session")
        await other.step()


@SUITE.requirement(
    "TRN-CAP-01",
    "A session that trains every weight MUST be UNIMPLEMENTED CAPABILITY_MISSING where training.full is not declared.",
    quote="Absent: full fine-tuning of every weight; needs `training.full`.",
    without="training.full",
)
async def _no_full(context: Training) -> None:
    call = context.stub.CreateTrainingSession(create_request(context, lora=None))
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="a session without lora")


@SUITE.requirement(
    "TRN-CAP-02",
    "An image MUST be UNIMPLEMENTED CAPABILITY_MISSING where training.image_input is not declared.",
    quote="UNIMPLEMENTED CAPABILITY_MISSING for what the adapter does not declare.",
    without="training.image_input",
)
async def _no_images(context: Training) -> None:
    session = await open_session(context)
    data = session.data(1)
    image = tensor_pb2.BlobRef(uri="file:///image.png")
    data[0].model_input.chunks.append(datum_pb2.ModelInputChunk(image=image))
    call = session.send("Forward", data=data, loss_fn=LOSS)
    await check_refused(call, "UNIMPLEMENTED", "CAPABILITY_MISSING", what="an image")


@SUITE.requirement(
    "TRN-RESTART-01",
    "After a restart the sessions MUST be gone: SESSION_NOT_FOUND, never another session under an old id.",
    quote="NOT_FOUND SESSION_NOT_FOUND when the session is unknown or its lease ended",
    stage=Stage.RESTART,
)
async def _sessions_end_with_the_process(context: Training) -> None:
    session = await open_session(context)
    await session.send_pass(session.data(1))
    await context.restart()
    fresh = await open_session(context)
    check(fresh.id != session.id, "another id than that of a session before the restart", fresh.id)
    call = session.send_step()
    await check_refused(call, "NOT_FOUND", "SESSION_NOT_FOUND", what="a call of a session before the restart")
