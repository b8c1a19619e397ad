"""Running a suite: what is chosen, skipped, judged and cleaned up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from crucible.adapter.v1 import adapter_pb2
from crucible.port.blob.v1 import blob_pb2 as pb
from crucible_kit.boundary import BoundaryInterceptor
from crucible_kit.channel import ObjectChannel, connect
from crucible_kit.conformance import (
    SUITES,
    Result,
    Verdict,
    all_requirements,
    requirements_of,
    run_suite,
    settings_of,
)
from crucible_kit.conformance.expect import CheckFailed
from crucible_kit.conformance.requirement import Requirement, Stage, Suite
from crucible_kit.conformance.timing import timing_advice
from crucible_kit.errors import InvalidArgumentError, NotFoundError, UnavailableError
from crucible_kit.ports import PORTS
from tests.conformance.bindings import to_object
from tests.conformance.mutants import statuses
from tests.conformance.mutants.statuses import ChangedStatus
from tests.conformance.mutants.transport import Configurable, Info, served
from tests.conformance.toy.blob import Blob, ToyBlobs
from tests.stalls import longer

SMALL = settings_of("blob", {"largest_message_bytes": 1024 * 1024})


class Hangs(ToyBlobs):
    async def StatBlob(self, request: Any, context: Any) -> pb.StatBlobResponse:
        await asyncio.sleep(600)
        return pb.StatBlobResponse()


def by_id(results: Any) -> dict[str, Result]:
    """Results by the ids of their requirements."""
    return {each.requirement.id: each for each in results}


async def test_only_ids_and_beginnings_of_ids() -> None:
    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", SMALL, only=["BLB-READ", "HSK-INFO-01"])
        ran = [each.requirement.id for each in report.results]
        assert ran == ["HSK-INFO-01", *(each.id for each in requirements_of("blob") if each.id.startswith("BLB-READ"))]
        with pytest.raises(InvalidArgumentError, match="BLB-RED"):
            await run_suite(channel, "blob", SMALL, only=["BLB-RED"])


async def test_results_come_one_by_one() -> None:
    told: list[Result] = []
    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", SMALL, target="here", only=["HSK", "BLB-KEY"], on_result=told.append)
    assert told == report.results
    assert (report.target, report.port) == ("here", "blob")
    assert report.adapter.startswith("under-test ")


async def test_what_the_adapter_does_not_declare_is_skipped() -> None:
    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        results = by_id((await run_suite(channel, "blob", SMALL)).results)
    skipped = [each for each in results.values() if each.verdict is Verdict.SKIPPED]
    needed = {each.requirement.id for each in results.values() if each.requirement.capability}
    assert needed <= {each.requirement.id for each in skipped}
    assert all(each.why for each in skipped)
    assert "--exec COMMAND" in results["BLB-RESTART-01"].why


async def test_a_call_that_hangs_fails_its_requirement_only() -> None:
    results: dict[str, Result] = {}
    for seconds in longer(0.2):
        quick = settings_of("blob", {"call_seconds": seconds})
        async with to_object({"blob": Hangs()}, {"blob": ()}) as channel:
            report = await run_suite(channel, "blob", quick, only=["BLB-KEY", "BLB-LIST", "HSK"])
        results = by_id(report.results)
        if results["BLB-LIST-01"].verdict is Verdict.PASSED:
            break
    assert results["BLB-LIST-01"].verdict is Verdict.PASSED
    assert any("DEADLINE_EXCEEDED" in each.got for each in results.values())


async def test_a_check_that_does_not_end_fails() -> None:
    impatient = settings_of("blob", {"check_seconds": 0.2})
    async with to_object({"blob": Hangs()}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", impatient, only=["BLB-WRITE-02"])
    [result] = report.results
    assert result.verdict is Verdict.FAILED
    assert result.problem == "expected an end within 0.2 s; got none: some call hangs"


async def test_an_answer_that_cannot_be_read_fails() -> None:
    def broken(*_: Any) -> None:
        raise ValueError("no such thing")

    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        report = await run_with(channel, broken)
    [result] = report.results
    assert result.verdict is Verdict.FAILED
    assert "ValueError: no such thing" in result.got


async def run_with(channel: Any, check: Callable[..., Any], text: str = "It MUST be so.") -> Any:
    """A run of one requirement more, alone."""

    async def checked(context: Any) -> None:
        result = check(context)
        if result is not None:
            await result

    suite = SUITES["blob"]
    suite.requirements.append(Requirement(id="BLB-TEST-01", port="blob", text=text, check=checked))
    try:
        return await run_suite(channel, "blob", SMALL, only=["BLB-TEST-01"])
    finally:
        suite.requirements.pop()


async def test_cancelling_a_run_ends_it() -> None:
    async with to_object({"blob": Hangs()}, {"blob": ()}) as channel:
        run = asyncio.ensure_future(run_suite(channel, "blob", SMALL, only=["BLB-WRITE-02"]))
        await asyncio.sleep(0.1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run


async def test_a_call_that_is_cancelled_from_elsewhere_does_not_end_the_run() -> None:
    async def cancelled(context: Any) -> None:
        raise asyncio.CancelledError

    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        [result] = (await run_with(channel, cancelled)).results
    assert result.verdict is Verdict.FAILED


async def test_what_should_be_so_is_advice() -> None:
    def fails(context: Any) -> None:
        raise CheckFailed("another", "this")

    async with to_object({"blob": ToyBlobs()}, {"blob": ()}) as channel:
        report = await run_with(channel, fails, "It SHOULD be so.")
    assert report.ids(Verdict.ADVICE) == ["BLB-TEST-01"]
    assert report.ok


async def test_a_run_leaves_nothing_behind() -> None:
    blobs = ToyBlobs()
    blobs.blobs["mine"] = mine = Blob(b"mine", "text/plain")
    async with to_object({"blob": blobs}, {"blob": ()}) as channel:
        report = await run_suite(channel, "blob", SMALL)
    assert report.ok
    assert blobs.blobs == {"mine": mine}


async def test_an_adapter_whose_grpc_cannot_send_details_passes() -> None:
    interceptors = [ChangedStatus(statuses.no_details), BoundaryInterceptor()]
    async with served(ToyBlobs(), interceptors=interceptors) as channel:
        report = await run_suite(channel, "blob", SMALL)
    assert report.ids(Verdict.FAILED) == []
    assert by_id(report.results)["XPT-FIELD-09"].verdict is Verdict.SKIPPED
    assert by_id(report.results)["XPT-ERROR-02"].verdict is Verdict.PASSED


async def test_an_adapter_that_takes_settings_passes() -> None:
    async with served(ToyBlobs(), interceptors=[BoundaryInterceptor()], info=Configurable()) as channel:
        report = await run_suite(channel, "blob", SMALL, only=["HSK"])
    assert {"HSK-CONFIG-01", "HSK-CONFIG-02"} <= set(report.ids(Verdict.PASSED))


async def test_a_capability_that_nobody_knows_and_other_protos_are_advice() -> None:
    class Misspelt(Info):
        def change(self, info: adapter_pb2.GetAdapterInfoResponse) -> None:
            info.ports[0].capabilities.append("blob.reed")
            info.ports[0].descriptor_sha256 = "0" * 64

    async with served(ToyBlobs(), interceptors=[BoundaryInterceptor()], info=Misspelt()) as channel:
        report = await run_suite(channel, "blob", SMALL, only=["HSK"])
    assert report.ids(Verdict.ADVICE) == ["HSK-CAP-02", "HSK-DESCRIPTOR-02"]
    assert report.capabilities == ["blob.reed"]
    assert report.ok


async def test_an_adapter_without_a_handshake_is_tested_all_the_same() -> None:
    channel = ObjectChannel({PORTS["blob"].service.full_name: ToyBlobs()})
    report = await run_suite(channel, "blob", SMALL)
    failed = report.ids(Verdict.FAILED)
    assert "HSK-INFO-01" in failed
    assert not [each for each in failed if each.startswith("BLB")]
    assert report.adapter == "an adapter without a handshake"


async def test_where_nobody_is_nothing_is_tested(tmp_path: Any) -> None:
    channel = connect(f"unix:{tmp_path / 'nobody'}", retry=False)
    try:
        with pytest.raises(UnavailableError, match=r"no adapter answers at over there within 0\.5 s"):
            await run_suite(channel, "blob", settings_of("blob", {"call_seconds": 0.5}), target="over there")
    finally:
        await channel.close()


def test_a_port_without_a_suite_is_named() -> None:
    with pytest.raises(NotFoundError, match=r"'blub'.*blob"):
        requirements_of("blub")


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="prefx"):
        settings_of("blob", {"prefx": "a"})
    with pytest.raises(InvalidArgumentError, match="call_seconds"):
        settings_of("blob", {"call_seconds": 0})


def test_every_port_has_a_suite_whose_requirements_come_in_stages() -> None:
    assert set(SUITES) == set(PORTS)
    for port in SUITES:
        stages = [each.stage for each in requirements_of(port)]
        assert stages == sorted(stages)
        assert stages[-1] is Stage.RESTART


def test_ids_are_given_once() -> None:
    ids = [each.id for each in all_requirements()]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("id", "text"), [("BLB-1", "It MUST be."), ("blb-a-01", "It MUST be."), ("BLB-A-01", "It is.")]
)
def test_what_is_no_requirement_is_not_registered(id: str, text: str) -> None:
    with pytest.raises(ValueError, match=id):
        Suite(port="blob").requirement(id, text)


def test_times_are_advice() -> None:
    assert timing_advice([0.001] * 10) == []
    [text] = timing_advice([0.001] * 21 + [5.0] * 20)
    assert text == "half of the 41 unary calls took 1.0 ms or less"
    [text] = timing_advice([0.041] * 30)
    assert "TCP_NODELAY" in text
