"""All suites by port."""

from __future__ import annotations

from crucible_kit.conformance import (
    blob,
    blob_writes,
    dataset,
    deployment,
    embedding,
    environment,
    evaluator,
    feedback,
    feedback_training,
    handshake,
    hub,
    llm,
    metrics,
    python_bridge,
    python_bridge_refs,
    registry,
    reward,
    sampling,
    sampling_sessions,
    tokenizer,
    training,
    training_checkpoints,
    training_data,
    training_lora,
    training_order,
    training_passes,
    transport,
    transport_errors,
    transport_fields,
    vector,
    vector_queries,
)
from crucible_kit.conformance.requirement import ALL_PORTS, Requirement, Suite
from crucible_kit.errors import NotFoundError
from crucible_kit.settings import unknown_key

# Importing a module registers its requirements; the order here is that of reports and documentation.
_MODULES = (
    handshake,
    transport_fields,
    transport,
    transport_errors,
    training,
    training_passes,
    training_order,
    training_data,
    training_checkpoints,
    training_lora,
    sampling,
    sampling_sessions,
    tokenizer,
    dataset,
    hub,
    blob_writes,
    blob,
    metrics,
    registry,
    llm,
    embedding,
    vector,
    vector_queries,
    evaluator,
    feedback,
    feedback_training,
    deployment,
    python_bridge,
    python_bridge_refs,
    reward,
    environment,
)
_ALL: tuple[Suite, ...] = tuple({id(each.SUITE): each.SUITE for each in _MODULES}.values())
OF_ALL_PORTS = tuple(suite for suite in _ALL if suite.port == ALL_PORTS)
SUITES: dict[str, Suite] = {suite.port: suite for suite in _ALL if suite.port != ALL_PORTS}


def suite_of(port: str) -> Suite:
    """The suite of a port. Raises NOT_FOUND PORT_NOT_FOUND with the nearest port that has one."""
    if port not in SUITES:
        raise NotFoundError(
            f"port {port!r}: {unknown_key(port, SUITES)}".replace("key", "port"), reason="PORT_NOT_FOUND"
        )
    return SUITES[port]


def requirements_of(port: str) -> list[Requirement]:
    """What is asked of an adapter of a port, in the order in which it is checked."""
    of_all = [requirement for suite in OF_ALL_PORTS for requirement in suite.requirements]
    return sorted([*of_all, *suite_of(port).requirements], key=lambda requirement: requirement.stage)


def all_requirements() -> list[Requirement]:
    """Every requirement of every port, in the order of the documentation."""
    return [requirement for suite in _ALL for requirement in suite.requirements]
