"""Malformed requests: each breaks its rule, and none is forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from crucible.adapter.v1 import adapter_pb2
from crucible.port.blob.v1 import blob_pb2
from crucible.port.tokenizer.v1 import tokenizer_pb2
from crucible.port.training.v1 import training_pb2
from crucible_kit.conformance.malformed import Rule, filled, malformed
from crucible_kit.constraints import check_message, field_rule
from crucible_kit.errors import InvalidArgumentError
from crucible_kit.ports import PORTS

REQUESTS = {
    method.input_type.full_name: method.input_type
    for service in (
        *(port.service for port in PORTS.values()),
        adapter_pb2.DESCRIPTOR.services_by_name["AdapterService"],
    )
    for method in service.methods
}


def constrained(descriptor: Descriptor, outer: frozenset[str] = frozenset()) -> Iterator[tuple[str, Rule]]:
    """Fields of a message, and of those within it, by the rules that they have."""
    for field in descriptor.fields:
        rule, target, text_keys = field_rule(field), field.message_type, False
        if target is not None and target.GetOptions().map_entry:
            text_keys = target.fields_by_name["key"].type == FieldDescriptor.TYPE_STRING
            target = target.fields_by_name["value"].message_type
        has = {
            Rule.REQUIRED: rule.required,
            Rule.MAX_ITEMS: rule.HasField("max_items"),
            Rule.PATTERN: bool(rule.pattern),
            Rule.FORMAT: bool(rule.format),
            Rule.ENUM: field.cpp_type == FieldDescriptor.CPPTYPE_ENUM,
            Rule.MAX_LEN: field.type == FieldDescriptor.TYPE_STRING or text_keys or rule.HasField("max_len"),
        }
        yield from ((field.full_name, each) for each, there in has.items() if there)
        if target is not None and target.full_name.startswith("crucible.") and target.full_name not in outer:
            yield from constrained(target, outer | {descriptor.full_name, target.full_name})


@pytest.mark.parametrize("name", REQUESTS)
def test_filled_messages_break_nothing(name: str) -> None:
    check_message(filled(REQUESTS[name]))


@pytest.mark.parametrize("name", REQUESTS)
def test_each_malformed_request_is_refused_for_its_field(name: str) -> None:
    valid = filled(REQUESTS[name])
    for rule in Rule:
        for each in malformed(valid, rule):
            with pytest.raises(InvalidArgumentError) as caught:
                check_message(each.request)
            named = [violation.field for violation in caught.value.fields]
            assert any(each.field in field for field in named), (each.path, named)
    check_message(valid)  # it is as it was


@pytest.mark.parametrize("name", REQUESTS)
def test_every_constrained_field_is_broken(name: str) -> None:
    broken = {(each.field, rule) for rule in Rule for each in malformed(filled(REQUESTS[name]), rule)}
    expected = {(field.rpartition(".")[2], rule) for field, rule in constrained(REQUESTS[name])}
    assert expected <= broken


def test_what_a_valid_request_holds_stays() -> None:
    valid = training_pb2.OptimStepRequest(session_id="s", sequence=7, adam=training_pb2.AdamParams(learning_rate=0.5))
    [missing] = [each for each in malformed(valid, Rule.REQUIRED) if each.field == "session_id"]
    assert missing.request == training_pb2.OptimStepRequest(sequence=7, adam=valid.adam)
    requests: list[Any] = [e.request for e in malformed(valid, Rule.MIN) if e.path == "adam.learning_rate"]
    assert [str(each.adam.learning_rate) for each in requests] == ["-1.0", "nan"]


def test_paths_lead_into_lists_and_maps() -> None:
    encode = tokenizer_pb2.DecodeBatchRequest(tokenizer="t", sequences=[tokenizer_pb2.TokenSequence()])
    paths = {each.path for rule in Rule for each in malformed(encode, rule)}
    assert "tokenizer" in paths
    write = {each.path for rule in Rule for each in malformed(blob_pb2.WriteBlobRequest(), rule)}
    assert any(path.startswith("header.") for path in write)
    forward = training_pb2.ForwardBackwardRequest(session_id="s", sequence=1)
    assert any(
        path.startswith("data[0].loss_fn_inputs['")
        for path in {each.path for rule in Rule for each in malformed(forward, rule)}
    )
