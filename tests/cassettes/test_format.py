"""The file: what is written is read as it was, and what is wrong is told with its line."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2, struct_pb2, timestamp_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import example, given, settings
from hypothesis import strategies as st

from crucible_kit.cassettes.codec import BlobFolder, from_tree, status_from_tree, status_to_tree, to_tree
from crucible_kit.cassettes.fields import rewrite
from crucible_kit.cassettes.format import Header, dump_line, read_cassette, write_cassette
from crucible_kit.cassettes.methods import find_method
from crucible_kit.cassettes.placeholders import render
from crucible_kit.cassettes.verify import verify_cassette
from crucible_kit.cassettes.writer import CassetteWriter
from crucible_kit.errors import AlreadyExistsError, InvalidArgumentError
from tests.cassettes.conftest import Studio
from tests.cassettes.scratch import SERVICE, Note

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FLOATS = st.floats(allow_nan=False)


def notes() -> st.SearchStrategy[Any]:
    """Messages with every kind of field."""

    def packed(detail: Any) -> any_pb2.Any:
        done = any_pb2.Any()
        done.Pack(detail)
        return done

    def settings_of(values: dict[str, Any]) -> struct_pb2.Struct:
        done = struct_pb2.Struct()
        done.update(values)
        return done

    leaf = {
        "text": TEXTS,
        "number": st.integers(-(2**63), 2**63 - 1),
        "sequence": st.integers(0, 2**64 - 1),
        "data": st.binary(max_size=600),
        "ratio": FLOATS,
        "small": st.floats(width=32, allow_nan=False),
        "tags": st.lists(TEXTS, max_size=3),
        "labels": st.dictionaries(TEXTS, TEXTS, max_size=3),
        "packed": st.builds(packed, st.builds(error_details_pb2.ErrorInfo, reason=TEXTS)),
        "settings": st.builds(settings_of, st.dictionaries(TEXTS, TEXTS | FLOATS.filter(math.isfinite), max_size=3)),
        "start_time": st.builds(
            timestamp_pb2.Timestamp, seconds=st.integers(0, 2**33), nanos=st.integers(0, 10**9 - 1)
        ),
        "mood": st.integers(0, 3),
        "flag": st.booleans(),
        "pieces": st.lists(st.binary(max_size=300), max_size=3),
        "by_number": st.dictionaries(st.integers(-(2**31), 2**31 - 1), st.binary(max_size=300), max_size=3),
    }
    flat = st.fixed_dictionaries({}, optional=leaf).map(lambda fields: Note(**fields))

    def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        optional = {
            **leaf,
            "child": inner,
            "children": st.lists(inner, max_size=2),
            "notes": st.dictionaries(TEXTS, inner, max_size=2),
        }
        return st.fixed_dictionaries({}, optional=optional).map(lambda fields: Note(**fields))

    return st.recursive(flat, nested, max_leaves=4)


@given(notes())
@example(Note(small=3.4028234663852886e38))
@example(Note(by_number={-1: b"x" * 257, 0: b""}, notes={"": Note(child=Note(data=b"y" * 300))}))
@settings(max_examples=150, deadline=None)
def test_a_message_is_the_same_after_json_and_back(message: Any) -> None:
    kept: dict[str, bytes] = {}

    def keep(data: bytes) -> str:
        kept[name := f"blobs/{len(kept)}"] = data
        return name

    tree = json.loads(dump_line({"value": to_tree(message, keep)}))["value"]
    again = from_tree(tree, Note, kept.__getitem__)
    assert again.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    assert all(len(data) > 256 for data in kept.values())


@given(st.sampled_from(range(17)), TEXTS, TEXTS)
def test_a_status_is_the_same_after_json_and_back(code: int, message: str, reason: str) -> None:
    status = status_pb2.Status(code=code, message=message)
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, metadata={"key": message}))
    status.details.append(detail)
    assert status_from_tree(json.loads(json.dumps(status_to_tree(status, reason)))) == (status, reason)


@given(st.lists(notes(), min_size=1, max_size=3), st.lists(notes(), min_size=1, max_size=1))
@settings(max_examples=30, deadline=None)
def test_a_recorded_call_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, requests: list[Any], responses: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("cassette") / "case.jsonl"
    writer = _writer(path)
    entry = writer.start(_method("Tell"), (), 5.0)
    for each in requests:
        entry.request(each)
    entry.half_close()
    for each in responses:
        entry.response(each)
    entry.status(status_pb2.Status())
    writer.close()
    (call,) = read_cassette(path).calls
    assert verify_cassette(path).problems == []
    replayed = [_literal(each) for each in [*call.requests, *call.responses]]
    assert replayed == [*requests, *responses]


def _literal(message: Any) -> Any:
    rewrite(message, lambda _, text: render(text, {}), lambda _, data: data)
    return message


def _writer(path: Path) -> Any:
    return CassetteWriter(path, clock=datetime(2026, 1, 1, tzinfo=UTC))


def _method(name: str) -> Any:
    found = find_method(f"{SERVICE}/{name}")
    assert found is not None
    return found


CALL: list[dict[str, Any]] = [
    {"call": 1, "method": f"{SERVICE}/Ask"},
    {"call": 1, "request": {"text": "a"}},
    {"call": 1, "response": {"text": "b"}},
    {"call": 1, "status": {"code": "OK"}},
]


def test_lines_are_sorted_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "case.jsonl"
    entry = (writer := _writer(path)).start(_method("Ask"), (), None)
    entry.request(Note(text="a", number=2**60, labels={"z": "1", "a": "2"}))
    entry.response(Note(text="b"))
    entry.status(status_pb2.Status())
    writer.close()
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["clock"] == "2026-01-01T00:00:00Z"
    assert lines[2] == '{"call":1,"request":{"labels":{"a":"2","z":"1"},"number":"1152921504606846976","text":"a"}}'
    assert lines[-1] == '{"end":{"calls":1}}'


@pytest.mark.parametrize(
    ("line", "change", "problem"),
    [
        (2, '{"call": 1', r":2: is not JSON"),
        (2, "[1]", r":2: is not a JSON object"),
        (2, '{"call": 0, "method": "x"}', r":2: call is 0"),
        (2, '{"call": 1, "method": "a.B/C"}', r":2: call 1: this build knows no method 'a\.B/C'"),
        (2, '{"call": 1, "methods": "a.B/C"}', r":2: call 1: an event has exactly one of method"),
        (3, '{"call": 1, "request": {"txet": "a"}}', r':3: call 1: .*"?txet"?'),
        (3, '{"call": 1, "request": {"number": "x"}}', r":3: call 1: .*number"),
        (3, '{"call": 1, "request": {}, "bnid": {}}', r":3: call 1: request has no key 'bnid'"),
        (3, '{"call": 2, "request": {}}', r":3: call 2: has not begun"),
        (3, '{"call": 1, "half_close": true}', r":3: call 1: half_close stands once, after a stream"),
        (3, '{"call": 1, "request": {"data": {"$file": "../../etc/passwd"}}}', r":3: .*is not blobs/ and a SHA-256"),
        (4, '{"call": 1, "request": {}}', r":4: call 1: has one request more"),
        (4, '{"call": 1, "status": {"code": "FINE"}}', r":4: call 1: code is 'FINE'"),
        (4, '{"call": 1, "status": {"code": "OK"}}', r":4: call 1: is OK without a response"),
        (6, '{"end": {"calls": 2}}', r":6: is the end of other calls than the 1"),
        (7, '{"call": 2, "method": "x"}', r":7: comes after the end"),
        (1, '{"crucible_cassette": 2, "services": []}', r":1: has format 2, this build reads 1"),
        (1, '{"services": []}', r":1: is no header"),
        (1, '{"crucible_cassette": 1, "services": [], "serv": 1}', r":1: header: serv"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, line: int, change: str, problem: str) -> None:
    path = tmp_path / "case.jsonl"
    write_cassette(path, Header(services=[SERVICE]), CALL)
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [change]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        read_cassette(path)
    assert caught.value.reason == ("CASSETTE_VERSION" if "format 2" in problem else "CASSETTE_INVALID")


def test_long_bytes_are_kept_once_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "case.jsonl"
    entry = (writer := _writer(path)).start(_method("Ask"), (), None)
    entry.request(Note(data=b"x" * 257, pieces=[b"x" * 257, b"y" * 256]))
    entry.response(Note(by_number={3: b"x" * 257}))
    entry.status(status_pb2.Status())
    writer.close()
    (blob,) = (tmp_path / "blobs").iterdir()
    assert read_cassette(path).calls[0].responses[0] == Note(by_number={3: b"x" * 257})
    blob.write_bytes(b"x" * 256)
    with pytest.raises(InvalidArgumentError, match=r":3: call 1: blobs/.* holds other bytes"):
        read_cassette(path)
    blob.unlink()
    with pytest.raises(InvalidArgumentError, match=r":3: call 1: blobs/.* can't be read"):
        read_cassette(path)


def test_a_prefix_is_a_cassette(tmp_path: Path) -> None:
    """Wherever a crash cuts the file: the calls that had ended are there, and it is known not to be complete."""
    path = tmp_path / "case.jsonl"
    second = [{**event, "call": 2} for event in CALL]
    write_cassette(path, Header(services=[SERVICE]), [*CALL, *second])
    whole = path.read_bytes()
    first_line = whole.index(b"\n") + 1
    seen = set()
    for cut in range(first_line, len(whole) - 1):
        path.write_bytes(whole[:cut])
        cassette = read_cassette(path)
        seen.add((len(cassette.calls), cassette.complete, tuple(cassette.unfinished)))
    assert seen == {(0, False, ()), (0, False, (1,)), (1, False, ()), (1, False, (2,)), (2, False, ())}
    path.write_bytes(whole[:-1])  # an editor took the last line's end
    assert read_cassette(path).complete


def test_a_cassette_appears_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "case.jsonl"
    write_cassette(path, Header(services=[SERVICE]), CALL)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        write_cassette(path, Header(services=[SERVICE]), [*CALL, {"call": 2, "request": object()}])
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["case.jsonl"]


def test_a_recorder_takes_no_file_that_is_there(studio: Studio) -> None:
    studio.writer().close()
    with pytest.raises(AlreadyExistsError, match="exists"):
        studio.writer()


def test_a_blob_folder_has_no_way_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not blobs/"):
        BlobFolder(tmp_path / "case.jsonl").load("blobs/../case.jsonl")
