"""The typed tree a workflow is: stages, loops and conditionals. Plain frozen values: printable, comparable,
sendable.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from crucible.kitchen.v1 import catalog_pb2


@dataclass(frozen=True, kw_only=True)
class StageNode:
    """Runs a stage.

    Attributes:
        stage: the stage's name in the registry.
        name: part of the stage path; the stage's name unless one stands twice among its siblings.
    """

    stage: str
    name: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.stage)


@dataclass(frozen=True, kw_only=True)
class LoopNode:
    """Repeats its body a number of times that is known when the loop is entered.

    Attributes:
        name: part of the stage path, and the name under which stages read the iteration.
        count: a context key that holds the number, or the number.
        body: the nodes in order.
        step_loop: each iteration is one optimizer step; pauses happen between its iterations.
    """

    name: str
    count: str | int
    body: tuple[Node, ...]
    step_loop: bool = False


@dataclass(frozen=True, kw_only=True)
class ContextFlag:
    """Holds when a boolean context key is true."""

    key: str


@dataclass(frozen=True, kw_only=True)
class ConfigFlag:
    """Holds when a boolean configuration key is true."""

    key: str


@dataclass(frozen=True, kw_only=True)
class Every:
    """Holds after each n-th step, n being a configuration key's value; n = 0 never holds.

    Attributes:
        config_key: the key that holds n.
        also_last: holds after the last step too, unless n is 0.
    """

    config_key: str
    also_last: bool = False


Predicate = ContextFlag | ConfigFlag | Every


@dataclass(frozen=True, kw_only=True)
class ConditionalNode:
    """Runs its body when its predicate holds."""

    name: str
    predicate: Predicate
    body: tuple[Node, ...]


Node = StageNode | LoopNode | ConditionalNode


@dataclass(frozen=True, kw_only=True)
class Workflow:
    """A named tree.

    Attributes:
        body: the nodes in order.
        finalizer: stages that run at the end, whatever happened before.
    """

    name: str
    description: str
    body: tuple[Node, ...]
    finalizer: tuple[StageNode, ...] = field(default=())

    def stage_names(self) -> list[str]:
        """Names of all its stages, each once, in order of first appearance."""
        return list(dict.fromkeys(node.stage for node in walk((*self.body, *self.finalizer))))


def walk(nodes: tuple[Node, ...]) -> Iterator[StageNode]:
    """The stages below `nodes` in order."""
    for node in nodes:
        if isinstance(node, StageNode):
            yield node
        else:
            yield from walk(node.body)


def to_proto(workflow: Workflow) -> catalog_pb2.Workflow:
    """The workflow as the catalogue sends it."""
    return catalog_pb2.Workflow(
        name=workflow.name,
        description=workflow.description,
        body=[_node_to_proto(node) for node in workflow.body],
        finalizer=[_node_to_proto(node) for node in workflow.finalizer],
    )


def _node_to_proto(node: Node) -> catalog_pb2.WorkflowNode:
    out = catalog_pb2.WorkflowNode(name=node.name)
    if isinstance(node, StageNode):
        out.stage.stage = node.stage
        return out
    body = [_node_to_proto(child) for child in node.body]
    if isinstance(node, LoopNode):
        out.loop.CopyFrom(catalog_pb2.LoopNode(body=body, step_loop=node.step_loop))
        if isinstance(node.count, str):
            out.loop.count_key = node.count
        else:
            out.loop.literal = node.count
        return out
    out.conditional.CopyFrom(catalog_pb2.ConditionalNode(body=body))
    match node.predicate:
        case ContextFlag(key=key):
            out.conditional.context_key = key
        case ConfigFlag(key=key):
            out.conditional.config_flag = key
        case Every(config_key=key, also_last=also_last):
            out.conditional.every.CopyFrom(catalog_pb2.Every(config_key=key, also_last=also_last))
    return out
