"""The graph of what came from what: a DAG, kept as one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from sqlalchemy import Connection, select
from sqlalchemy.dialects.sqlite import insert

from crucible.port.registry.v1 import registry_pb2
from crucible_adapters.registry.tables import edges
from crucible_kit.errors import field_error


class Node(NamedTuple):
    """A node: NodeKind and id."""

    kind: int
    id: str


class Edge(NamedTuple):
    """`later` came from `earlier`; kind is EdgeKind."""

    kind: int
    later: Node
    earlier: Node


def resolve(edge: registry_pb2.LineageEdge, version_id: str) -> Edge:
    """The edge with the version's id in place of `self`."""

    def node(given: registry_pb2.LineageNode) -> Node:
        is_self = given.kind == registry_pb2.NODE_KIND_MODEL_VERSION and given.id == "self"
        return Node(given.kind, version_id if is_self else given.id)

    return Edge(edge.kind, node(edge.from_node), node(edge.to_node))


def to_message(edge: Edge) -> registry_pb2.LineageEdge:
    """The edge as the contract has it."""
    return registry_pb2.LineageEdge(
        kind=edge.kind,  # type: ignore[arg-type]
        from_node=registry_pb2.LineageNode(kind=edge.later.kind, id=edge.later.id),  # type: ignore[arg-type]
        to_node=registry_pb2.LineageNode(kind=edge.earlier.kind, id=edge.earlier.id),  # type: ignore[arg-type]
    )


def add(connection: Connection, new: Iterable[Edge]) -> None:
    """Adds edges; those that are there already change nothing.

    Raises:
        InvalidArgumentError: LINEAGE_CYCLE, naming the edge that would close a cycle.
    """
    for number, edge in enumerate(new):
        came_from = (each.earlier for each in walk(connection, edge.earlier, ancestors=True))
        if edge.earlier == edge.later or edge.later in came_from:
            raise field_error(
                f"lineage[{number}]",
                f"would close a cycle: {edge.earlier.id!r} itself came from {edge.later.id!r}",
                reason="LINEAGE_CYCLE",
            )
        connection.execute(
            insert(edges).on_conflict_do_nothing(),
            {
                "kind": edge.kind,
                "from_kind": edge.later.kind,
                "from_id": edge.later.id,
                "to_kind": edge.earlier.kind,
                "to_id": edge.earlier.id,
            },
        )


def walk(connection: Connection, start: Node, *, ancestors: bool, max_depth: int | None = None) -> Iterator[Edge]:
    """The edges reached from a node, nearest first, each once.

    Args:
        ancestors: walk to what nodes came from; otherwise to what came from them.
        max_depth: most edges away; None: no limit.
    """
    seen, frontier, depth = {start}, [start], 0
    while frontier and (max_depth is None or depth < max_depth):
        depth += 1
        reached: list[Node] = []
        for node in frontier:
            for edge in _edges_at(connection, node, ancestors=ancestors):
                yield edge
                other = edge.earlier if ancestors else edge.later
                if other not in seen:
                    seen.add(other)
                    reached.append(other)
        frontier = reached


def _edges_at(connection: Connection, node: Node, *, ancestors: bool) -> list[Edge]:
    kind, identity = (edges.c.from_kind, edges.c.from_id) if ancestors else (edges.c.to_kind, edges.c.to_id)
    other = (edges.c.to_kind, edges.c.to_id) if ancestors else (edges.c.from_kind, edges.c.from_id)
    query = select(edges).where(kind == node.kind, identity == node.id).order_by(edges.c.kind, *other)
    return [
        Edge(row.kind, Node(row.from_kind, row.from_id), Node(row.to_kind, row.to_id))
        for row in connection.execute(query)
    ]
