"""Python bridges: objects that stay in their session, and streams."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_kit.conformance.expect import check, check_equal, check_refused, collect, one_by_one
from crucible_kit.conformance.python_bridge import (
    SUITE,
    Bridges,
    advance,
    attribute,
    call,
    echo,
    known,
    make,
    open_session,
)


@SUITE.requirement(
    "PYB-REF-01",
    "A reference MUST name the same object as long as it lives: its methods change it, its attributes tell.",
    quote="Objects that can't travel stay in their session and are named by references.",
)
async def _objects(context: Bridges) -> None:
    session_id = await open_session(context)
    one, other = await make(context, session_id, 5), await make(context, session_id, 50)
    check(one.ref_id != other.ref_id, "another id for another object", other.ref_id)
    check_equal([await advance(context, session_id, one) for _ in range(3)], [6, 7, 8], "what the method returns")
    values = [await attribute(context, session_id, each) for each in (one, other)]
    check_equal(values, [8, 50], "the attributes of two objects")
    listed = pb.Value(list=pb.ListValue(values=[pb.Value(ref=one)]))
    back = await call(context, session_id, context.settings.echo, listed, result_mode=pb.RESULT_MODE_REFERENCE)
    check_equal(back.WhichOneof("kind"), "ref", "a list that holds an object, as a reference")


@SUITE.requirement(
    "PYB-REF-02",
    "A released reference MUST be NOT_FOUND REF_NOT_FOUND; releasing it again is OK.",
    quote="NOT_FOUND REF_NOT_FOUND: never given out, released, or lost.",
)
async def _releases(context: Bridges) -> None:
    session_id = await open_session(context)
    ref, kept = await make(context, session_id), await make(context, session_id, 1)
    for _ in range(2):
        await context.stub.ReleaseRef(pb.ReleaseRefRequest(session_id=session_id, ref=ref))
    unknown = pb.ObjectRef(ref_id="no-ref-is-called-so")
    for which, each in (("a released reference", ref), ("an unknown reference", unknown)):
        calls = {
            "CallMethod": advance(context, session_id, each),
            "GetAttribute": attribute(context, session_id, each),
            "an argument": echo(context, session_id, pb.Value(ref=each)),
        }
        for what, refused in one_by_one(calls):
            await check_refused(refused, "NOT_FOUND", "REF_NOT_FOUND", what=f"{what} of {which}")
    check_equal(await advance(context, session_id, kept), 2, "another object after that")


@SUITE.requirement(
    "PYB-REF-03",
    "A reference of another session MUST be PERMISSION_DENIED REF_OF_OTHER_SESSION, to release it too.",
    quote="PERMISSION_DENIED REF_OF_OTHER_SESSION.",
)
async def _of_others(context: Bridges) -> None:
    mine, theirs = await open_session(context), await open_session(context)
    ref = await make(context, theirs)
    calls: dict[str, Any] = {
        "CallMethod": advance(context, mine, ref),
        "GetAttribute": attribute(context, mine, ref),
        "an argument": echo(context, mine, pb.Value(ref=ref)),
        "ReleaseRef": context.stub.ReleaseRef(pb.ReleaseRefRequest(session_id=mine, ref=ref)),
    }
    for what, refused in one_by_one(calls):
        await check_refused(
            refused, "PERMISSION_DENIED", "REF_OF_OTHER_SESSION", what=f"{what} of another session's reference"
        )
    check_equal(await advance(context, theirs, ref), 6, "the object in its own session")
    await context.stub.CloseSession(pb.CloseSessionRequest(session_id=theirs))
    refused = advance(context, mine, ref)
    await check_refused(
        refused, "NOT_FOUND|PERMISSION_DENIED", "REF_NOT_FOUND", "REF_OF_OTHER_SESSION", what="one of a closed session"
    )


@SUITE.requirement(
    "PYB-STREAM-01",
    "StreamFunction MUST stream what the function yields, in order, and end after it.",
    quote="StreamFunction calls a function whose result can be iterated over, and streams what it yields.",
    capability="python_bridge.stream",
)
async def _streams(context: Bridges) -> None:
    session_id = await open_session(context)
    for count in (0, 1, 500):
        messages = await collect(context.stub.StreamFunction(await _count(context, session_id, count)))
        check_equal([each.item.integer for each in messages], list(range(1, count + 1)), f"the items of {count}")
    request = await _count(context, session_id, 2)
    request.result_mode = pb.RESULT_MODE_REFERENCE
    kinds = [each.item.WhichOneof("kind") for each in await collect(context.stub.StreamFunction(request))]
    check_equal(kinds, ["ref", "ref"], "the kinds of items that were asked for as references")


async def _count(context: Bridges, session_id: str, count: int) -> pb.StreamFunctionRequest:
    library, function = await known(context, context.settings.counts)
    return pb.StreamFunctionRequest(
        session_id=session_id, library=library, function=function, args=[pb.Value(integer=count)]
    )


@SUITE.requirement(
    "PYB-STREAM-02",
    "A stream that its caller leaves MUST stop and leave the session to others.",
    quote="A stream that the caller cancels stops the iteration.",
    capability="python_bridge.stream",
)
async def _leaves(context: Bridges) -> None:
    session_id = await open_session(context)
    for _ in range(4):
        async with aclosing(context.stub.StreamFunction(await _count(context, session_id, 10**9))) as stream:
            check_equal((await anext(stream)).item.integer, 1, "the first item")
    check_equal((await echo(context, session_id, pb.Value(integer=3))).integer, 3, "the next call of the session")
