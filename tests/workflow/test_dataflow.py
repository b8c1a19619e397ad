"""The checks a workflow must pass before it runs."""

import pytest

from crucible_kit.errors import InvalidArgumentError
from crucible_kitchen.workflows.dataflow import check_dataflow
from crucible_kitchen.workflows.stage import Kind, Output, Stage, StageRegistry
from crucible_kitchen.workflows.tree import (
    ConditionalNode,
    ConfigFlag,
    ContextFlag,
    LoopNode,
    Node,
    StageNode,
    Workflow,
)


class Open(Stage):
    name = "open"
    description = "acquires a handle"
    outputs = (Output(key="handle", kind=Kind.HANDLE), Output(key="count", kind=Kind.VALUE))
    setup = True


class Pick(Stage):
    name = "pick"
    description = "writes something that lives for one iteration"
    inputs = ("handle",)
    outputs = (Output(key="item", kind=Kind.TRANSIENT),)


class Use(Stage):
    name = "use"
    description = "reads it"
    inputs = ("item",)


class Save(Stage):
    name = "save"
    description = "commits the position"
    inputs = ("handle",)
    saves_position = True


class Thief(Stage):
    name = "thief"
    description = "writes a key that belongs to another stage"
    outputs = (Output(key="item", kind=Kind.TRANSIENT),)


class LateHandle(Stage):
    name = "late_handle"
    description = "writes a handle without being a set-up stage"
    outputs = (Output(key="late", kind=Kind.HANDLE),)


REGISTRY = StageRegistry([Open(), Pick(), Use(), Save(), Thief(), LateHandle()])


def stage(name: str) -> StageNode:
    return StageNode(stage=name)


def loop(*body: Node, count: str | int = "count") -> LoopNode:
    return LoopNode(name="loop", count=count, body=body)


def problem(*body: Node) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        check_dataflow(Workflow(name="w", description="d", body=body), REGISTRY)
    assert caught.value.reason == "WORKFLOW_INVALID"
    return f"{caught.value.metadata['node']} | {caught.value.message}"


def test_a_sound_tree_passes():
    body = (stage("open"), loop(stage("pick"), stage("use"), stage("save")))
    check_dataflow(Workflow(name="w", description="d", body=body), REGISTRY)


def test_a_key_that_nobody_wrote_is_refused_with_its_node():
    assert problem(stage("open"), loop(stage("use"))).startswith("loop/use | ")


def test_a_key_written_later_does_not_count():
    assert "reads 'handle'" in problem(stage("pick"), stage("open"))


def test_a_key_written_only_in_a_conditional_or_loop_is_not_known_after_it():
    maybe = ConditionalNode(name="maybe", predicate=ConfigFlag(key="flag"), body=(stage("pick"),))
    assert problem(stage("open"), maybe, stage("use")).startswith("use | ")
    assert problem(stage("open"), loop(stage("pick")), stage("use")).startswith("use | ")


def test_a_loop_over_an_unknown_count_and_a_flag_nobody_wrote_are_refused():
    assert problem(loop(stage("open"))).startswith("loop | ")
    flagged = ConditionalNode(name="maybe", predicate=ContextFlag(key="flag"), body=(stage("open"),))
    assert problem(flagged).startswith("maybe | ")


def test_what_lives_for_one_iteration_is_gone_after_a_saved_position():
    text = problem(stage("open"), loop(stage("pick"), stage("save"), stage("use")))
    assert text.startswith("loop/use | ")
    assert "saved position" in text


def test_a_save_inside_a_conditional_counts_too():
    maybe = ConditionalNode(name="maybe", predicate=ConfigFlag(key="flag"), body=(stage("save"),))
    assert problem(stage("open"), loop(stage("pick"), maybe, stage("use"))).startswith("loop/use | ")


def test_set_up_in_a_conditional_is_refused():
    maybe = ConditionalNode(name="maybe", predicate=ConfigFlag(key="flag"), body=(stage("open"),))
    assert problem(maybe).startswith("maybe/open | ")


def test_two_writers_unknown_stages_and_equal_names_are_refused():
    assert "belongs to one stage" in problem(stage("open"), stage("pick"), stage("thief"))
    assert "no stage is named 'nope'" in problem(stage("nope"))
    assert "two siblings" in problem(stage("open"), stage("open"))
    assert "no set-up stage" in problem(stage("late_handle"))
