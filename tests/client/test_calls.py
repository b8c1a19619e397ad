"""Each method of the client against the request that the contract says it makes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from crucible.kitchen.v1 import adapter_admin_pb2, catalog_pb2, event_pb2, run_pb2
from crucible_client import KitchenClient
from crucible_kit.errors import InvalidArgumentError, NotFoundError, UnauthenticatedError, UnavailableError
from tests.client.fake_kitchen import FakeKitchen, events, served

RUN = run_pb2.Run(run_id="r", state=event_pb2.RUN_STATE_QUEUED)
RECIPE = catalog_pb2.Recipe(name="sl_basic")
WORKFLOW = catalog_pb2.Workflow(name="supervised")
ADAPTER = adapter_admin_pb2.Adapter(port="blob")
UUID = "2f1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11"


@pytest.fixture
def kitchen() -> FakeKitchen:
    return FakeKitchen()


@pytest.fixture
async def client(kitchen: FakeKitchen) -> AsyncIterator[KitchenClient]:
    async with served(kitchen) as address, KitchenClient.connect(address) as client:
        yield client


def create_request() -> run_pb2.CreateRunRequest:
    request = run_pb2.CreateRunRequest(
        request_id=UUID, run_id="r", recipe="sl_basic", preset="tiny", seed=0, labels={"a": "b"}, hold=True
    )
    request.config.update({"learning_rate": 0.5, "names": ["a", {"b": None}], "on": True})
    return request


def add_request() -> adapter_admin_pb2.AddAdapterRequest:
    mapping = adapter_admin_pb2.AdapterMapping(
        adapter="grpc:a:1",
        secrets={"api_key": "BLOB_KEY"},
        tls=adapter_admin_pb2.AdapterTls(ca="/ca.pem"),
        token_env="BLOB_TOKEN",
        wait_seconds=5.0,
    )
    mapping.options.update({"size": 2})
    return adapter_admin_pb2.AddAdapterRequest(port="blob", mapping=mapping, force=True)


def wait_request(seconds: int) -> run_pb2.WaitRunRequest:
    request = run_pb2.WaitRunRequest(run_id="r")
    request.wait.FromSeconds(seconds)
    return request


# method, arguments, call, request, response, what the client returns
CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], str, Any, Any, Any]] = [
    (
        "create_run",
        ("sl_basic",),
        {
            "preset": "tiny",
            "config": {"learning_rate": 0.5, "names": ["a", {"b": None}], "on": True},
            "seed": 0,
            "run_id": "r",
            "labels": {"a": "b"},
            "hold": True,
            "request_id": UUID,
        },
        "CreateRun",
        create_request(),
        run_pb2.CreateRunResponse(run=RUN),
        RUN,
    ),
    (
        "start_run",
        ("r",),
        {"request_id": UUID},
        "StartRun",
        run_pb2.StartRunRequest(run_id="r", request_id=UUID),
        run_pb2.StartRunResponse(run=RUN),
        RUN,
    ),
    (
        "resume_run",
        ("r",),
        {"request_id": UUID},
        "ResumeRun",
        run_pb2.ResumeRunRequest(run_id="r", request_id=UUID),
        run_pb2.ResumeRunResponse(run=RUN),
        RUN,
    ),
    ("pause_run", ("r",), {}, "PauseRun", run_pb2.PauseRunRequest(run_id="r"), run_pb2.PauseRunResponse(run=RUN), RUN),
    (
        "cancel_run",
        ("r",),
        {"reason": "why"},
        "CancelRun",
        run_pb2.CancelRunRequest(run_id="r", reason="why"),
        run_pb2.CancelRunResponse(run=RUN),
        RUN,
    ),
    ("get_run", ("r",), {}, "GetRun", run_pb2.GetRunRequest(run_id="r"), run_pb2.GetRunResponse(run=RUN), RUN),
    (
        "list_runs",
        (),
        {"page_size": 3, "page_token": "t", "states": [2, 3], "recipe": "x", "labels": {"a": "b"}},
        "ListRuns",
        run_pb2.ListRunsRequest(page_size=3, page_token="t", states=[2, 3], recipe="x", labels={"a": "b"}),  # type: ignore[arg-type]
        run_pb2.ListRunsResponse(runs=[RUN], next_page_token="n"),
        run_pb2.ListRunsResponse(runs=[RUN], next_page_token="n"),
    ),
    ("wait_run", ("r",), {"wait": 2}, "WaitRun", wait_request(2), run_pb2.WaitRunResponse(run=RUN), RUN),
    (
        "list_run_events",
        ("r",),
        {"after_sequence": 4, "page_size": 2},
        "ListRunEvents",
        run_pb2.ListRunEventsRequest(run_id="r", after_sequence=4, page_size=2),
        run_pb2.ListRunEventsResponse(events=events(5, 6)),
        events(5, 6),
    ),
    (
        "list_recipes",
        (),
        {},
        "ListRecipes",
        catalog_pb2.ListRecipesRequest(),
        catalog_pb2.ListRecipesResponse(recipes=[RECIPE]),
        [RECIPE],
    ),
    (
        "get_recipe",
        ("sl_basic",),
        {},
        "GetRecipe",
        catalog_pb2.GetRecipeRequest(name="sl_basic"),
        catalog_pb2.GetRecipeResponse(recipe=RECIPE),
        RECIPE,
    ),
    (
        "list_workflows",
        (),
        {},
        "ListWorkflows",
        catalog_pb2.ListWorkflowsRequest(),
        catalog_pb2.ListWorkflowsResponse(workflows=[WORKFLOW]),
        [WORKFLOW],
    ),
    (
        "get_workflow",
        ("supervised",),
        {},
        "GetWorkflow",
        catalog_pb2.GetWorkflowRequest(name="supervised"),
        catalog_pb2.GetWorkflowResponse(workflow=WORKFLOW),
        WORKFLOW,
    ),
    (
        "list_stages",
        (),
        {},
        "ListStages",
        catalog_pb2.ListStagesRequest(),
        catalog_pb2.ListStagesResponse(stages=[catalog_pb2.Stage(name="s")]),
        [catalog_pb2.Stage(name="s")],
    ),
    (
        "list_metric_definitions",
        (),
        {},
        "ListMetricDefinitions",
        catalog_pb2.ListMetricDefinitionsRequest(),
        catalog_pb2.ListMetricDefinitionsResponse(metrics=[catalog_pb2.MetricDefinition(name="m")]),
        [catalog_pb2.MetricDefinition(name="m")],
    ),
    (
        "list_adapters",
        (),
        {},
        "ListAdapters",
        adapter_admin_pb2.ListAdaptersRequest(),
        adapter_admin_pb2.ListAdaptersResponse(adapters=[ADAPTER]),
        [ADAPTER],
    ),
    (
        "probe_adapter",
        ("blob",),
        {},
        "ProbeAdapter",
        adapter_admin_pb2.ProbeAdapterRequest(port="blob"),
        adapter_admin_pb2.ProbeAdapterResponse(adapter=ADAPTER),
        ADAPTER,
    ),
    (
        "add_adapter",
        ("blob", "grpc:a:1"),
        {
            "options": {"size": 2},
            "secrets": {"api_key": "BLOB_KEY"},
            "tls": {"ca": "/ca.pem"},
            "token_env": "BLOB_TOKEN",
            "wait_seconds": 5.0,
            "force": True,
        },
        "AddAdapter",
        add_request(),
        adapter_admin_pb2.AddAdapterResponse(adapter=ADAPTER),
        ADAPTER,
    ),
    (
        "add_adapter",
        ("blob",),
        {"command": ["node", "blob.mjs"], "validate_only": True},
        "AddAdapter",
        adapter_admin_pb2.AddAdapterRequest(
            port="blob",
            mapping=adapter_admin_pb2.AdapterMapping(command=["node", "blob.mjs"]),
            validate_only=True,
        ),
        adapter_admin_pb2.AddAdapterResponse(),
        None,
    ),
    (
        "remove_adapter",
        ("blob",),
        {"force": True},
        "RemoveAdapter",
        adapter_admin_pb2.RemoveAdapterRequest(port="blob", force=True),
        adapter_admin_pb2.RemoveAdapterResponse(),
        None,
    ),
]


@pytest.mark.parametrize("case", CALLS, ids=lambda case: case[0])
async def test_a_call(kitchen: FakeKitchen, client: KitchenClient, case: Any) -> None:
    method, arguments, options, rpc, request, response, expected = case
    kitchen.answers[rpc] = response
    assert await getattr(client, method)(*arguments, **options) == expected
    assert kitchen.requests == [(rpc, request)]


def test_every_call_of_the_contract_is_covered() -> None:
    contract = {
        method.name
        for file in (run_pb2, catalog_pb2, adapter_admin_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert {case[3] for case in CALLS} | {"WatchRun"} == contract


async def test_a_seed_that_is_not_given_stays_absent(kitchen: FakeKitchen, client: KitchenClient) -> None:
    kitchen.answers["CreateRun"] = run_pb2.CreateRunResponse(run=RUN)
    await client.create_run("sl_basic")
    assert not kitchen.asked("CreateRun")[0].HasField("seed")


@pytest.mark.parametrize(
    ("method", "rpc", "response"),
    [
        ("create_run", "CreateRun", run_pb2.CreateRunResponse(run=RUN)),
        ("start_run", "StartRun", run_pb2.StartRunResponse(run=RUN)),
        ("resume_run", "ResumeRun", run_pb2.ResumeRunResponse(run=RUN)),
    ],
)
async def test_a_retried_change_carries_one_request_id(
    kitchen: FakeKitchen, client: KitchenClient, method: str, rpc: str, response: Any
) -> None:
    def fails_once(_: Any) -> Any:
        return UnavailableError("not now", reason="BUSY") if len(kitchen.asked(rpc)) == 1 else response

    kitchen.answers[rpc] = fails_once
    assert (await getattr(client, method)("name")).run_id == "r"
    first, second = kitchen.asked(rpc)
    assert first == second
    assert uuid.UUID(first.request_id).version == 4
    await getattr(client, method)("name")
    assert kitchen.asked(rpc)[2].request_id != first.request_id


async def test_errors_are_typed(kitchen: FakeKitchen, client: KitchenClient) -> None:
    kitchen.answers["GetRun"] = NotFoundError("no run 'r'", reason="RUN_NOT_FOUND", metadata={"run_id": "r"})
    with pytest.raises(NotFoundError) as caught:
        await client.get_run("r")
    assert (caught.value.reason, caught.value.metadata) == ("RUN_NOT_FOUND", {"run_id": "r"})


async def test_a_value_that_json_lacks_is_refused_with_its_key(client: KitchenClient) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await client.create_run("sl_basic", config={"dataset": object()})
    assert caught.value.fields[0].field == "config.dataset"


async def test_the_token_is_sent(kitchen: FakeKitchen) -> None:
    def guard(method: str, metadata: Any) -> None:
        if metadata.get("authorization") != "Bearer t0k3n":
            raise UnauthenticatedError("no", reason="TOKEN_MISSING")

    kitchen.answers["ListAdapters"] = adapter_admin_pb2.ListAdaptersResponse()
    async with served(kitchen, guard=guard) as address:
        async with KitchenClient.connect(address, token="t0k3n") as client:
            assert await client.list_adapters() == []
        async with KitchenClient.connect(address) as client:
            with pytest.raises(UnauthenticatedError):
                await client.list_adapters()


async def test_a_missing_server_is_told_at_once() -> None:
    async with KitchenClient.connect("unix:/nonexistent/kitchen") as client:
        with pytest.raises(UnavailableError):
            await client.get_run("r")


def test_tls_files_are_checked(tmp_path: Any) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        KitchenClient.connect("localhost:1", ca_cert=tmp_path / "missing.pem")
    assert caught.value.fields[0].field == "ca_cert"
    with pytest.raises(InvalidArgumentError, match="go together"):
        KitchenClient.connect("localhost:1", client_cert=tmp_path / "c.pem")
