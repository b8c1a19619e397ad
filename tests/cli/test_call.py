"""kitchen call: methods found through reflection, JSON in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crucible.kitchen.v1 import event_pb2, run_pb2
from crucible_kitchen.cli.describe import proto_source
from tests.cli.conftest import Kitchen

PACKAGE = "crucible.kitchen.v1"
RUN_SERVICE = f"{PACKAGE}.RunService"
PROBE = f"rpc ProbeAdapter({PACKAGE}.ProbeAdapterRequest) returns ({PACKAGE}.ProbeAdapterResponse);"


@pytest.mark.parametrize(
    "method", [f"{RUN_SERVICE}/CreateRun", f"/{RUN_SERVICE}/CreateRun", f"{RUN_SERVICE}.CreateRun"]
)
def test_a_method_by_each_of_its_names(kitchen: Kitchen, method: str) -> None:
    answer = kitchen("call", method, '{"recipe": "sl_basic", "preset": "tiny", "seed": 3}', "--json")
    assert answer.code == 0, answer.err
    assert answer.lines[0]["run"]["seed"] == "3"


def test_a_service_by_its_last_name(kitchen: Kitchen) -> None:
    assert kitchen("call", "CatalogService/ListStages", "--json").lines == [
        {"stages": [{"name": "evaluate", "description": "Scores.", "ports": ["training"]}]}
    ]


def test_without_json_an_answer_is_indented(kitchen: Kitchen) -> None:
    out = kitchen("call", "CatalogService/ListStages").out
    assert json.loads(out)["stages"][0]["name"] == "evaluate"
    assert len(out.splitlines()) > 3


def test_the_request_from_a_file_or_stdin(kitchen: Kitchen, tmp_path: Path) -> None:
    kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "from-file", "--detach")
    (tmp_path / "request.json").write_text('{"run_id": "from-file"}')
    for words, stdin in (
        (("-d", "@request.json"), ""),
        (("-d", "-"), '{"runId": "from-file"}'),
        (("-d", "@-"), '{"run_id": "from-file"}'),
        (("-d", '{"run_id": "from-file"}'), ""),
    ):
        answer = kitchen("call", f"{RUN_SERVICE}/GetRun", *words, "--json", stdin=stdin)
        assert answer.lines[0]["run"]["run_id"] == "from-file"


def test_a_stream_is_a_line_for_each_response(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "tiny", "--run-id", "streamed", "--detach")
    answer = kitchen("call", f"{RUN_SERVICE}/WatchRun", '{"run_id": "streamed"}')
    assert answer.code == 0
    sequences = [int(event["sequence"]) for line in answer.lines for event in line["events"]]
    assert sequences == list(range(1, len(sequences) + 1))


def test_a_stream_with_error_details_inside_can_be_printed(kitchen: Kitchen) -> None:
    """The failure of a run holds google.protobuf.Any, whose types come from the server too."""
    kitchen("run", "sl_basic", "--preset", "fails", "--run-id", "any", "--detach")
    answer = kitchen("call", f"{RUN_SERVICE}/GetRun", '{"run_id": "any"}', "--json")
    detail = answer.lines[0]["run"]["failure"]["status"]["details"][0]
    assert (detail["@type"].rpartition("/")[2], detail["reason"]) == ("google.rpc.ErrorInfo", "ROW_INVALID")


def test_a_deadline(kitchen: Kitchen) -> None:
    kitchen("run", "sl_basic", "--preset", "never-pauses", "--run-id", "endless", "--detach")
    answer = kitchen("call", f"{RUN_SERVICE}/WatchRun", '{"run_id": "endless"}', "--max-time", "0.3", "--json")
    assert (answer.code, answer.error["code"]) == (1, "DEADLINE_EXCEEDED")
    assert len(answer.lines) == 1


def test_headers(offline: Kitchen, addresses: dict[str, str]) -> None:
    from tests.cli.fake_server import TOKEN

    words = ("call", "CatalogService/ListStages", "--server", addresses["guarded"], "--json")
    assert offline(*words, "-H", f"Authorization: Bearer {TOKEN}").code == 0
    assert offline(*words, "-H", "authorization: Bearer wrong", "--token", TOKEN).error["code"] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("method", "request_json", "reason"),
    [
        (f"{RUN_SERVICE}/GetRun", '{"run_id": "nope"}', "RUN_NOT_FOUND"),
        (f"{RUN_SERVICE}/GetRun", "{}", "FIELD_INVALID"),  # the server judges, not the command
        (f"{RUN_SERVICE}/GetRun", '{"run": "x"}', "REQUEST_INVALID"),
        (f"{RUN_SERVICE}/GetRun", "[1]", "REQUEST_INVALID"),
        (f"{RUN_SERVICE}/GetRun", "{", "REQUEST_INVALID"),
        (f"{RUN_SERVICE}/GetRun", '{"run_id": "a"} {"run_id": "b"}', "REQUEST_INVALID"),
        (f"{RUN_SERVICE}/GetRnu", "{}", "METHOD_NOT_FOUND"),
        ("crucible.kitchen.v1.Nothing/Get", "{}", "SERVICE_NOT_FOUND"),
        ("GetRun", "{}", "METHOD_NAME_INVALID"),
    ],
)
def test_errors(kitchen: Kitchen, method: str, request_json: str, reason: str) -> None:
    answer = kitchen("call", method, request_json, "--json")
    assert (answer.code, answer.out, answer.error["reason"]) == (1, "", reason)
    assert {"code", "reason", "message"} <= set(answer.error)


def test_an_error_names_the_fields(kitchen: Kitchen) -> None:
    answer = kitchen("call", f"{RUN_SERVICE}/GetRun", "{}", "--json")
    assert answer.error["fields"] == [{"field": "run_id", "description": "required, but absent or empty"}]


def test_list(kitchen: Kitchen) -> None:
    assert kitchen("call", "--list").out.split() == [
        "crucible.kitchen.v1.AdapterAdminService",
        "crucible.kitchen.v1.CatalogService",
        "crucible.kitchen.v1.RunService",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    assert kitchen("call", "--list", "crucible.kitchen.v1.AdapterAdminService").out.split() == [
        "crucible.kitchen.v1.AdapterAdminService.ListAdapters",
        "crucible.kitchen.v1.AdapterAdminService.ProbeAdapter",
        "crucible.kitchen.v1.AdapterAdminService.AddAdapter",
        "crucible.kitchen.v1.AdapterAdminService.RemoveAdapter",
    ]


@pytest.mark.parametrize(
    ("symbol", "line"),
    [
        (f"{PACKAGE}.AdapterAdminService", f"  {PROBE}"),
        (f"{PACKAGE}.AdapterAdminService/ProbeAdapter", PROBE),
        (RUN_SERVICE, f"  rpc WatchRun({PACKAGE}.WatchRunRequest) returns (stream {PACKAGE}.WatchRunResponse);"),
        (f"{PACKAGE}.CreateRunRequest", "  optional int64 seed = 6;"),
        ("crucible.kitchen.v1.CreateRunRequest", "  map<string, string> labels = 7;"),
        ("crucible.kitchen.v1.RunEvent", "    crucible.kitchen.v1.StepCompleted step_completed = 28;"),
        ("crucible.kitchen.v1.RunState", "  RUN_STATE_PAUSED = 4;"),
    ],
)
def test_describe(kitchen: Kitchen, symbol: str, line: str) -> None:
    assert line in kitchen("call", "--describe", symbol).out.splitlines()


def test_describe_as_json(kitchen: Kitchen) -> None:
    described = kitchen("call", "--describe", "crucible.kitchen.v1.RunState", "--json").lines[0]
    assert described["value"][4] == {"name": "RUN_STATE_PAUSED", "number": 4}


def test_describe_an_unknown_symbol(kitchen: Kitchen) -> None:
    assert kitchen("call", "--describe", "no.such.Thing", "--json").error["reason"] == "SYMBOL_NOT_FOUND"


def test_nested_types_are_written_inside() -> None:
    source = proto_source(event_pb2.LogRecorded.DESCRIPTOR)
    assert source.splitlines()[:2] == ["message crucible.kitchen.v1.LogRecorded {", "  enum Severity {"]
    assert "repeated crucible.kitchen.v1.RunState states = 3;" in proto_source(run_pb2.ListRunsRequest.DESCRIPTOR)
