"""RunService, CatalogService and AdapterAdminService over gRPC on a unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from datetime import timedelta

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from crucible.kitchen.v1 import adapter_admin_pb2, catalog_pb2, run_pb2
from crucible.kitchen.v1.adapter_admin_pb2_grpc import AdapterAdminServiceStub
from crucible.kitchen.v1.catalog_pb2_grpc import CatalogServiceStub
from crucible.kitchen.v1.event_pb2 import (
    RUN_STATE_CANCELLED,
    RUN_STATE_COMPLETED,
    RUN_STATE_CREATED,
    RUN_STATE_FAILED,
    RUN_STATE_PAUSED,
    RUN_STATE_QUEUED,
    RunSummary,
)
from crucible.kitchen.v1.run_pb2_grpc import RunServiceStub
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
    from_rpc_error,
    to_failure,
)
from crucible_kitchen.api import run_service
from crucible_kitchen.api.convert import run_message
from tests.server.fakes import START, Api, checkpoint, checkpoint_event, log_event, record, state_event

UUID = "2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11"


async def test_a_run_goes_through_its_calls(api: Api) -> None:
    created = (await api.runs.CreateRun(run_pb2.CreateRunRequest(run_id="run-1", recipe="sl_basic"))).run
    assert (created.run_id, created.state, created.last_sequence) == ("run-1", RUN_STATE_CREATED, 1)
    assert dict(created.config) == {"learning_rate": 0.5, "steps": 3.0}
    started = await api.runs.StartRun(run_pb2.StartRunRequest(run_id="run-1"))
    assert started.run.state == RUN_STATE_QUEUED
    assert (await api.runs.PauseRun(run_pb2.PauseRunRequest(run_id="run-1"))).run.state == RUN_STATE_PAUSED
    assert (await api.runs.ResumeRun(run_pb2.ResumeRunRequest(run_id="run-1"))).run.state == RUN_STATE_QUEUED
    assert (await api.runs.CancelRun(run_pb2.CancelRunRequest(run_id="run-1"))).run.state == RUN_STATE_CANCELLED
    assert (await api.runs.GetRun(run_pb2.GetRunRequest(run_id="run-1"))).run.last_sequence == 5


async def test_errors_arrive_with_reason_and_field(api: Api) -> None:
    with pytest.raises(NotFoundError, match="run-1") as missing:
        await api.runs.GetRun(run_pb2.GetRunRequest(run_id="run-1"))
    assert missing.value.reason == "RUN_NOT_FOUND"
    await api.new_run()
    with pytest.raises(FailedPreconditionError) as state:
        await api.runs.ResumeRun(run_pb2.ResumeRunRequest(run_id="run-1"))
    assert state.value.reason == "RUN_STATE"
    first = run_pb2.CreateRunRequest(run_id="run-2", recipe="sl_basic", request_id=UUID)
    await api.runs.CreateRun(first)
    assert (await api.runs.CreateRun(first)).run.run_id == "run-2"
    with pytest.raises(InvalidArgumentError) as reused:
        await api.runs.CreateRun(run_pb2.CreateRunRequest(run_id="run-2", recipe="dpo", request_id=UUID))
    assert reused.value.reason == "REQUEST_ID_REUSED"


async def test_requests_are_checked_on_the_server(api: Api) -> None:
    """Raw bytes: our own client would refuse them before they leave."""

    async def refusal(data: bytes) -> tuple[grpc.StatusCode, str, str]:
        async with grpc.aio.insecure_channel(api.address) as raw:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw.unary_unary("/crucible.kitchen.v1.RunService/CreateRun")(data)
        trailers = dict(caught.value.trailing_metadata() or ())
        packed = trailers["grpc-status-details-bin"]
        assert isinstance(packed, bytes)
        status = status_pb2.Status.FromString(packed)
        bad = error_details_pb2.BadRequest()
        field = ""
        for detail in status.details:
            if detail.Unpack(bad):
                field = bad.field_violations[0].field
        return caught.value.code(), str(trailers["crucible-reason"]), field

    invalid = grpc.StatusCode.INVALID_ARGUMENT
    assert await refusal(b"") == (invalid, "FIELD_INVALID", "recipe")
    negative = run_pb2.CreateRunRequest(recipe="sl_basic", seed=-1)
    assert await refusal(negative.SerializeToString()) == (invalid, "FIELD_INVALID", "seed")
    unknown = run_pb2.CreateRunRequest(recipe="sl_basic").SerializeToString() + b"\xd2\x09\x01x"
    assert await refusal(unknown) == (invalid, "FIELD_UNKNOWN", "#154")
    large = run_pb2.CreateRunRequest(recipe="sl_basic")
    large.config["note"] = "x" * (4 * 1024 * 1024)
    assert await refusal(large.SerializeToString()) == (invalid, "MESSAGE_TOO_LARGE", "")


async def test_lists_page_with_tokens_that_hold_for_their_filters(api: Api) -> None:
    for number in range(11):
        fields = {"create_time": START + timedelta(seconds=number), "labels": {"odd": str(number % 2)}}
        await api.new_run(f"run-{number:02}", **fields)

    async def page(token: str = "", size: int = 2, odd: str = "1") -> run_pb2.ListRunsResponse:
        return await api.runs.ListRuns(run_pb2.ListRunsRequest(page_size=size, page_token=token, labels={"odd": odd}))

    found, sizes, token = [], [], ""
    while True:
        response = await page(token)
        found += [each.run_id for each in response.runs]
        sizes.append(len(response.runs))
        token = response.next_page_token
        if not token:
            break
    assert found == ["run-09", "run-07", "run-05", "run-03", "run-01"]
    assert sizes == [2, 2, 1]
    full = await page(size=5)
    assert (len(full.runs), full.next_page_token) == (5, ""), "a full last page says that it is the last"
    token = (await page()).next_page_token
    for bad, odd in ((token, "0"), (token[:-3], "1"), ("?", "1"), ("AAAA" + token[4:], "1")):
        with pytest.raises(InvalidArgumentError) as caught:
            await page(bad, odd=odd)
        assert caught.value.reason == "PAGE_TOKEN_INVALID"
    assert len((await api.runs.ListRuns(run_pb2.ListRunsRequest())).runs) == 11
    with pytest.raises(InvalidArgumentError):
        await page(size=-1)


async def test_events_page_until_the_log_ends(api: Api) -> None:
    await api.new_run(events=119)

    async def page(after: int, size: int = 0) -> list[int]:
        request = run_pb2.ListRunEventsRequest(run_id="run-1", after_sequence=after, page_size=size)
        return [each.sequence for each in (await api.runs.ListRunEvents(request)).events]

    assert await page(0) == list(range(1, 51))
    assert await page(50, 70) == list(range(51, 121)), "full though it is the last: the next one is empty"
    assert await page(120) == []
    with pytest.raises(NotFoundError):
        await api.runs.ListRunEvents(run_pb2.ListRunEventsRequest(run_id="run-2"))


async def test_large_events_come_in_short_pages_and_none_is_lost(api: Api) -> None:
    await api.new_run()
    await api.store.append("run-1", [log_event("x" * 100_000) for _ in range(9)])
    seen: list[int] = []
    while True:
        after = seen[-1] if seen else 0
        request = run_pb2.ListRunEventsRequest(run_id="run-1", after_sequence=after, page_size=50)
        page = (await api.runs.ListRunEvents(request)).events
        if not page:
            break
        assert len(page) <= 4
        seen.extend(each.sequence for each in page)
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("state", [RUN_STATE_COMPLETED, RUN_STATE_FAILED, RUN_STATE_CANCELLED, RUN_STATE_PAUSED])
async def test_waiting_ends_when_the_run_stops(api: Api, state: int) -> None:
    await api.new_run()
    wait = asyncio.ensure_future(
        api.runs.WaitRun(run_pb2.WaitRunRequest(run_id="run-1", wait=Duration(seconds=60)), timeout=90)
    )
    await api.store.append("run-1", [log_event()])
    await api.store.append("run-1", [state_event(state)], changes={"state": state})  # type: ignore[arg-type]
    assert (await wait).run.state == state


async def test_a_wait_that_runs_out_answers_the_run_as_it_is(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    await api.new_run()
    for wait in (Duration(), Duration(nanos=1_000_000)):
        response = await api.runs.WaitRun(run_pb2.WaitRunRequest(run_id="run-1", wait=wait))
        assert response.run.state == RUN_STATE_CREATED
    # A deadline shorter than the wait counts instead of it, less the time of the way back: a stall is no late answer.
    monkeypatch.setattr(run_service, "_DEADLINE_MARGIN_SECONDS", 29.9)
    response = await api.runs.WaitRun(run_pb2.WaitRunRequest(run_id="run-1", wait=Duration(seconds=50)), timeout=30)
    assert response.run.state == RUN_STATE_CREATED
    for bad in (Duration(seconds=-1), Duration(seconds=-(2**62))):
        with pytest.raises(InvalidArgumentError, match="wait"):
            await api.runs.WaitRun(run_pb2.WaitRunRequest(run_id="run-1", wait=bad))


async def test_a_draining_server_reads_but_changes_nothing(api: Api) -> None:
    await api.new_run()
    # Our own channel would try again until another server answers.
    async with grpc.aio.insecure_channel(api.address, options=[("grpc.enable_retries", 0)]) as raw:
        runs = RunServiceStub(raw)
        wait = asyncio.ensure_future(runs.WaitRun(run_pb2.WaitRunRequest(run_id="run-1"), timeout=60))
        await api.endpoint.drain()

        async def reason(call: Awaitable[object]) -> str:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            error = from_rpc_error(caught.value)
            assert isinstance(error, UnavailableError) and error.retry_delay is not None
            return error.reason

        assert await reason(runs.CreateRun(run_pb2.CreateRunRequest(recipe="sl_basic"))) == "DRAINING"
        assert await reason(runs.StartRun(run_pb2.StartRunRequest(run_id="run-1"))) == "DRAINING"
        assert await reason(runs.CancelRun(run_pb2.CancelRunRequest(run_id="run-1"))) == "DRAINING"
        assert (await runs.GetRun(run_pb2.GetRunRequest(run_id="run-1"))).run.state == RUN_STATE_CREATED
        stopping = asyncio.create_task(api.endpoint.stop(5))
        assert await reason(wait) == "DRAINING"
        await stopping


def test_a_record_becomes_a_message_field_by_field() -> None:
    failure = to_failure(NotFoundError("no file", reason="DATASET_NOT_FOUND"))
    saved = checkpoint(4, final=True)
    message = run_message(
        record(
            preset="tiny",
            state=RUN_STATE_FAILED,
            attempt=2,
            pause_requested=True,
            failure=failure,
            labels={"a": "b"},
            step=4,
            total_steps=9,
            last_sequence=17,
            start_time=START + timedelta(seconds=1),
            end_time=START + timedelta(seconds=2),
            model_version_id="v1",
            latest_checkpoint=saved,
            summary=RunSummary(steps=4),
            waiting_for_port="blob",
        )
    )
    filled = {field.name for field, _ in message.ListFields()}
    assert filled == {field.name for field in message.DESCRIPTOR.fields}
    assert message.failure == failure
    assert message.latest_checkpoint.uri == saved.uri and message.latest_checkpoint.final
    assert message.end_time.ToDatetime(START.tzinfo) == START + timedelta(seconds=2)
    plain = run_message(record())
    may_be_absent = ("failure", "latest_checkpoint", "start_time", "end_time", "summary")
    absent = [name for name in may_be_absent if plain.HasField(name)]
    assert absent == []


async def test_the_catalogue_is_served(api: Api) -> None:
    stub = CatalogServiceStub(api.channel)
    recipes = (await stub.ListRecipes(catalog_pb2.ListRecipesRequest())).recipes
    assert [each.name for each in recipes] == ["chat_sl", "sl_basic"]
    assert not any(each.HasField("config_schema") for each in recipes)
    recipe = (await stub.GetRecipe(catalog_pb2.GetRecipeRequest(name="sl_basic"))).recipe
    assert recipe.config_schema["type"] == "object"
    with pytest.raises(NotFoundError) as caught:
        await stub.GetRecipe(catalog_pb2.GetRecipeRequest(name="nope"))
    assert caught.value.reason == "RECIPE_NOT_FOUND"
    assert [each.name for each in (await stub.ListWorkflows(catalog_pb2.ListWorkflowsRequest())).workflows] == [
        "supervised"
    ]
    assert (await stub.GetWorkflow(catalog_pb2.GetWorkflowRequest(name="supervised"))).workflow.name == "supervised"
    stages = (await stub.ListStages(catalog_pb2.ListStagesRequest())).stages
    assert [each.name for each in stages] == ["forward_backward", "optim_step"]
    metrics = (await stub.ListMetricDefinitions(catalog_pb2.ListMetricDefinitionsRequest())).metrics
    assert metrics[0].unit == "nats"


async def test_the_adapters_are_served(api: Api) -> None:
    stub = AdapterAdminServiceStub(api.channel)
    listed = (await stub.ListAdapters(adapter_admin_pb2.ListAdaptersRequest())).adapters
    assert [each.port for each in listed] == ["blob", "tokenizer"]
    probed = (await stub.ProbeAdapter(adapter_admin_pb2.ProbeAdapterRequest(port="blob"))).adapter
    assert probed.state == adapter_admin_pb2.ADAPTER_STATE_READY
    with pytest.raises(NotFoundError) as caught:
        await stub.ProbeAdapter(adapter_admin_pb2.ProbeAdapterRequest(port="nope"))
    assert caught.value.reason == "PORT_NOT_FOUND"


async def test_the_newest_checkpoint_stands_in_the_run(api: Api) -> None:
    await api.new_run()
    saved = checkpoint(3)
    await api.store.append("run-1", [checkpoint_event(saved)], checkpoint=saved)
    run = (await api.runs.GetRun(run_pb2.GetRunRequest(run_id="run-1"))).run
    assert run.latest_checkpoint.manifest_sha256 == saved.manifest_sha256
