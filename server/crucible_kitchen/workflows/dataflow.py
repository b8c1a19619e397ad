"""Checks a whole tree before it runs: every key that is read was written, loops count numbers, resumption works."""

from __future__ import annotations

from crucible_kit.errors import InvalidArgumentError
from crucible_kitchen.workflows.stage import Kind, StageRegistry
from crucible_kitchen.workflows.tree import ContextFlag, LoopNode, Node, StageNode, Workflow


def check_dataflow(workflow: Workflow, registry: StageRegistry) -> None:
    """Raises INVALID_ARGUMENT WORKFLOW_INVALID naming the node, when

    - a stage, loop or predicate reads a key that no earlier node writes on every way to it;
    - two stages write one key;
    - siblings share a name;
    - a set-up stage stands in a conditional, where a resumed run could not know whether to run it again;
    - a key that lives for one iteration is read after a stage that saves the position.
    """
    _Checker(workflow, registry).check()


class _Checker:
    def __init__(self, workflow: Workflow, registry: StageRegistry) -> None:
        self._workflow = workflow
        self._registry = registry
        self._writers: dict[str, str] = {}
        self._kinds: dict[str, Kind] = {}

    def check(self) -> None:
        known = self._nodes(self._workflow.body, "", set(), in_conditional=False)
        # The finaliser runs after anything: its stages get what is there through `get`, so nothing is required of
        # `known`.
        self._nodes(self._workflow.finalizer, "", known, in_conditional=False)

    def _nodes(self, nodes: tuple[Node, ...], path: str, known: set[str], *, in_conditional: bool) -> set[str]:
        names = [node.name for node in nodes]
        for name in names:
            if names.count(name) > 1:
                raise self._invalid(f"{path}{name}", "two siblings have this name: give one another")
        stale: set[str] = set()
        for node in nodes:
            node_path = f"{path}{node.name}"
            known = self._node(node, node_path, known - stale, in_conditional=in_conditional)
            if self._saves(node):
                stale |= {key for key, kind in self._kinds.items() if kind is Kind.TRANSIENT}
        return known - stale

    def _node(self, node: Node, path: str, known: set[str], *, in_conditional: bool) -> set[str]:
        if isinstance(node, StageNode):
            return self._stage(node, path, known, in_conditional=in_conditional)
        if isinstance(node, LoopNode):
            if isinstance(node.count, str):
                self._require(node.count, path, known)
            elif node.count < 0:
                raise self._invalid(path, f"a loop can't run {node.count} times")
            inside = self._nodes(node.body, f"{path}/", set(known), in_conditional=in_conditional)
            # A loop may run zero times: what only its body writes is not known after it.
            return known & inside if node.count != 0 else known
        if isinstance(node.predicate, ContextFlag):
            self._require(node.predicate.key, path, known)
        self._nodes(node.body, f"{path}/", set(known), in_conditional=True)
        return known

    def _stage(self, node: StageNode, path: str, known: set[str], *, in_conditional: bool) -> set[str]:
        try:
            stage = self._registry[node.stage]
        except ValueError as error:
            raise self._invalid(path, str(error)) from error
        if stage.setup and in_conditional:
            raise self._invalid(path, "a set-up stage can't stand in a conditional: move it out")
        for key in stage.inputs:
            self._require(key, path, known)
        for output in stage.outputs:
            writer = self._writers.setdefault(output.key, stage.name)
            if writer != stage.name:
                raise self._invalid(
                    path, f"writes {output.key!r}, which {writer} writes too: a key belongs to one stage"
                )
            if output.kind is Kind.HANDLE and not stage.setup:
                raise self._invalid(
                    path, f"writes the handle {output.key!r} but is no set-up stage: it would be lost on resume"
                )
            self._kinds[output.key] = output.kind
        return known | {output.key for output in stage.outputs}

    def _saves(self, node: Node) -> bool:
        if isinstance(node, StageNode):
            return self._registry[node.stage].saves_position
        return any(self._saves(child) for child in node.body)

    def _require(self, key: str, path: str, known: set[str]) -> None:
        if key not in known:
            why = (
                "lives for one iteration and is gone after a saved position"
                if key in self._kinds
                else "no earlier node writes"
            )
            raise self._invalid(path, f"reads {key!r}, which {why}")

    def _invalid(self, path: str, problem: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"workflow {self._workflow.name}, node {path}: {problem}",
            reason="WORKFLOW_INVALID",
            metadata={"workflow": self._workflow.name, "node": path},
        )
