"""The rules of the field options, against a table of values and what must be said of them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from crucible.kitchen.v1 import run_pb2
from crucible.port.training.v1 import training_pb2
from crucible.type.v1 import datum_pb2, failure_pb2
from crucible_kit import constraints
from crucible_kit.constraints import check_message, check_no_unknown_fields
from crucible_kit.errors import InvalidArgumentError
from tests.kit.scratch_proto import Inner, Outer

VALID = {"needed_number": 1, "needed_words": ["a"], "needed_child": Inner(name="n")}


def violations(message: Any) -> dict[str, str]:
    """Path -> description of everything that is refused."""
    try:
        check_message(message)
    except InvalidArgumentError as error:
        assert error.reason == "FIELD_INVALID"
        assert error.metadata["field"] == error.fields[0].field
        return {each.field: each.description for each in error.fields}
    return {}


def test_a_message_within_all_rules_passes() -> None:
    assert violations(Outer(**VALID)) == {}


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("plain", "x" * 4096, None),
        ("plain", "x" * 4097, "has 4097 characters, at most 4096 are allowed"),
        ("short_text", "äöü", None),  # characters, not bytes
        ("short_text", "abcd", "has 4 characters, at most 3 are allowed"),
        ("short_bytes", b"abc", None),
        ("short_bytes", b"abcd", "has 4 bytes, at most 3 are allowed"),
        ("free_bytes", b"x" * 100_000, None),
        ("fraction", 0.5, None),
        ("fraction", 0.75, "is 0.75, must be at most 0.5"),
        ("fraction", -1.0, "is -1.0, must be at least 0"),
        ("fraction", math.nan, "is NaN; a number is required"),
        ("fraction", math.inf, "is inf, must be at most 0.5"),
        ("positive", math.inf, "is infinite; a finite number is required"),
        ("seed", 4294967295, None),
        ("seed", 4294967296, "is 4294967296, must be at most 4294967295"),
        ("patterned", "aab", None),
        ("patterned", "", None),
        ("patterned", "aabc", "'aabc' must match a+b"),
        ("as_identifier", "run-7_a.b", None),
        ("as_identifier", "Run", "must be a lower-case identifier"),
        ("as_identifier", "-a", "must be a lower-case identifier"),
        ("as_identifier", "a" * 64, "must be a lower-case identifier"),
        ("as_identifier", "a\n", "must be a lower-case identifier"),
        ("as_uuid", "2F1c0d4e-9d0c-4a57-8f5e-2b9f0c8e7a11", None),
        ("as_uuid", "2f1c0d4e9d0c4a578f5e2b9f0c8e7a11", "must be a UUID"),
        ("as_sha256", "0" * 64, None),
        ("as_sha256", "A" * 64, "must be 64 lower-case hex digits"),
        ("as_uri", "blob://bucket/key", None),
        ("as_uri", "/no/scheme", "must be a URI with a scheme"),
        ("colour", 1, None),
        ("colour", 7, "7 is not a value of crucible.scratch.v1.Colour"),
        ("maybe", 1, None),
        ("maybe", 0, "is 0, must be at least 1"),
        ("word", "", None),
        ("word", "abcd", "has 4 characters, at most 3 are allowed"),
        ("amount", 9, None),
        ("amount", 1, "is 1, must be at least 2"),
    ],
)
def test_one_value(field: str, value: Any, said: str | None) -> None:
    found = violations(Outer(**VALID, **{field: value}))
    assert set(found) == ({field} if said else set())
    assert said is None or said in found[field]


def test_required_fields_are_named_all_at_once() -> None:
    assert violations(Outer()) == dict.fromkeys(
        ("needed_number", "needed_words", "needed_child"), "required, but absent or empty"
    )


def test_an_absent_optional_field_and_an_unset_oneof_have_no_value_to_check() -> None:
    message = Outer(**VALID)
    assert not message.HasField("maybe")
    assert message.WhichOneof("choice") is None
    assert violations(message) == {}


def test_entries_of_lists_and_maps_are_named_by_place() -> None:
    message = Outer(**VALID, numbers=[1, -2], colours=[0, 9], labels={"k": "long", "too-long": "v"})
    message.needed_words.append("long")
    assert violations(message) == {
        "numbers[1]": "is -2, must be at least 0",
        "colours[1]": "9 is not a value of crucible.scratch.v1.Colour",
        "needed_words[1]": "has 4 characters, at most 3 are allowed",
        "labels['k']": "has 4 characters, at most 3 are allowed",
        "labels['too-long']": "its key has 8 characters, at most 3 are allowed",
    }


def test_too_many_entries() -> None:
    message = Outer(**VALID, numbers=[1, 2, 3], labels={"a": "", "b": "", "c": ""})
    assert violations(message) == {
        "numbers": "has 3 entries, at most 2 are allowed",
        "labels": "has 3 entries, at most 2 are allowed",
    }


def test_nested_messages_are_checked_where_they_are_set() -> None:
    message = Outer(
        **VALID,
        child=Inner(name="a", again=Inner(name="b", again=Inner())),
        children=[Inner(name="a"), Inner()],
        by_name={"x": Inner()},
    )
    assert set(violations(message)) == {"child.again.again.name", "children[1].name", "by_name['x'].name"}


def test_every_bad_field_is_reported_though_the_message_shows_five() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_message(Outer(**VALID, numbers=[0] * 2, children=[Inner() for _ in range(8)]))
    assert len(caught.value.fields) == 8
    assert caught.value.message.count("required") == 5


def test_the_options_of_the_real_contract_are_read() -> None:
    request = run_pb2.CreateRunRequest(run_id="Bad Id", seed=-1, labels={"k": "v" * 64})
    assert set(violations(request)) == {"recipe", "run_id", "seed", "labels['k']"}


def unknown(extra: bytes) -> str:
    """Where the unknown field of a CreateRunRequest's bytes is."""
    message = run_pb2.CreateRunRequest.FromString(extra)
    with pytest.raises(InvalidArgumentError) as caught:
        check_no_unknown_fields(message)
    assert caught.value.reason == "FIELD_UNKNOWN"
    return caught.value.fields[0].field


def test_unknown_fields_are_found_at_the_top() -> None:
    # Field 1000, varint 1: key 1000 << 3 = 0x1F40.
    known = run_pb2.CreateRunRequest(recipe="sl_basic").SerializeToString()
    check_no_unknown_fields(run_pb2.CreateRunRequest.FromString(known))
    assert unknown(known + b"\xc0\x3e\x01") == "#1000"


def test_unknown_fields_are_found_at_depth() -> None:
    strange = Inner(name="a").SerializeToString() + b"\xc0\x3e\x01"
    in_list = Outer(children=[Inner(), Inner.FromString(strange)])
    in_map = Outer(by_name={"x": Inner(again=Inner.FromString(strange))})
    for message, place in ((in_list, "children[1].#1000"), (in_map, "by_name['x'].again.#1000")):
        with pytest.raises(InvalidArgumentError) as caught:
            check_no_unknown_fields(message)
        assert caught.value.metadata["field"] == place


@pytest.mark.parametrize("times", [1, 200_000])
def test_unknown_fields_of_a_large_message_are_found(times: int) -> None:
    large = run_pb2.CreateRunRequest(recipe="x" * 100_000).SerializeToString()
    check_no_unknown_fields(run_pb2.CreateRunRequest.FromString(large))
    message = run_pb2.CreateRunRequest.FromString(large + b"\xc0\x3e\x01" * times)
    with pytest.raises(InvalidArgumentError) as caught:
        check_no_unknown_fields(message)
    assert caught.value.reason == "FIELD_UNKNOWN"
    assert caught.value.message.startswith("#1000: " if times == 1 else "the request holds 600000 bytes of unknown")
    assert len(message.SerializeToString()) == len(large) + 3 * times


def test_unknown_fields_inside_google_messages_are_left_alone() -> None:
    failure = failure_pb2.Failure(reason="X")
    failure.retry_delay.MergeFromString(b"\xc0\x3e\x01")
    check_no_unknown_fields(failure)


def test_a_list_that_is_too_long_is_told_once_and_not_looked_into() -> None:
    # Two bytes each: 32 MiB hold 16 million of them.
    flood = training_pb2.ForwardBackwardRequest.FromString(b"\x1a\x00" * 65_537)
    assert violations(flood) == {
        "session_id": "required, but absent or empty",
        "sequence": "is 0, must be at least 1",
        "data": "has 65537 entries, at most 65536 are allowed",
        "loss_fn": "required, but absent or empty",
    }


def test_no_more_than_16_violations_are_looked_for() -> None:
    request = training_pb2.ForwardBackwardRequest(
        session_id="s", sequence=1, loss_fn=training_pb2.LossFunction(name="l"), data=[datum_pb2.Datum()] * 20
    )
    assert list(violations(request)) == [f"data[{index}].model_input" for index in range(16)]


def test_a_message_of_too_many_messages_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = datum_pb2.ModelInputChunk(tokens_int32=bytes(4))
    datum = datum_pb2.Datum(model_input=datum_pb2.ModelInput(chunks=[chunk] * 3))
    # The loss, and of each datum itself, its input and three chunks: 21 in all.
    request = training_pb2.ForwardBackwardRequest(
        session_id="s", sequence=1, loss_fn=training_pb2.LossFunction(name="l"), data=[datum] * 4
    )
    monkeypatch.setattr(constraints, "MAX_NESTED_MESSAGES", 21)
    check_message(request)
    monkeypatch.setattr(constraints, "MAX_NESTED_MESSAGES", 20)
    with pytest.raises(InvalidArgumentError, match="more than 20 messages") as caught:
        check_message(request)
    assert caught.value.reason == "MESSAGE_TOO_COMPLEX"


def test_json_has_no_numbers_that_are_none() -> None:
    request = run_pb2.CreateRunRequest(recipe="sl_basic")
    request.config.update({"a": 1.5, "long": "x" * 5000, "list": [{"deep": math.nan}, math.inf]})
    assert violations(request) == {
        "config.fields['list'].list_value.values[0].struct_value.fields['deep'].number_value": (
            "is nan; JSON has no such number: send a text"
        ),
        "config.fields['list'].list_value.values[1].number_value": "is inf; JSON has no such number: send a text",
    }
