"""Walks a workflow's tree, from its start or from a saved position.

A position is a list of frames, outermost first. Each frame says which child of a sequence is being run and, if that is
a loop, in which iteration; the child that the last frame names is completed. On the way back to a position, completed
set-up stages run again (they acquire handles, and the values they write must come out as they were stored), other
completed nodes are left out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypedDict

from crucible.kitchen.v1 import event_pb2
from crucible_kit.errors import FailedPreconditionError, InternalError, KitchenError, to_failure
from crucible_kitchen.workflows.context import RunContext, StageContext
from crucible_kitchen.workflows.stage import Kind, Stage, StageRegistry
from crucible_kitchen.workflows.tree import ConfigFlag, ContextFlag, Every, LoopNode, Node, StageNode, Workflow

logger = logging.getLogger(__name__)


class Frame(TypedDict):
    """One level of a position."""

    index: int
    iteration: int


class Position(TypedDict):
    """Where a run stands: JSON, stored with each checkpoint.

    `path` holds the frames, `values` the stored context keys, `step` the optimizer steps done.
    """

    path: list[Frame]
    values: dict[str, Any]
    step: int


class Interpreter:
    """One attempt's walk.

    Args:
        boundary: awaited after each iteration of a step loop with a context in which the position can be saved, and
            before each node outside step loops with None; may raise to end the walk.
    """

    def __init__(
        self,
        workflow: Workflow,
        registry: StageRegistry,
        context: RunContext,
        *,
        boundary: Callable[[StageContext | None], Awaitable[None]],
    ) -> None:
        self._workflow = workflow
        self._registry = registry
        self._context = context
        self._boundary = boundary
        self._frames: list[Frame] = []
        self._completed: list[tuple[str, Stage]] = []
        self._step_loops = 0
        self._stored: dict[str, Any] = {}
        self._from_start = True
        context.position = self._position

    async def run(self, position: Position | dict[str, Any] | None, *, expected: dict[str, Any] | None = None) -> None:
        """Walks the body to its end.

        Args:
            expected: values that set-up stages must write when there is no position: what an earlier attempt told.

        Raises:
            KitchenError: what a stage raised; RESUME_MISMATCH when a set-up stage does not reproduce what was stored.
        """
        self._stored, self._from_start = expected or {}, position is None
        if position is not None:
            self._stored = position["values"]
            self._context.values.update(self._stored)
            self._context.step = position["step"]
        await self._sequence(self._workflow.body, "", position["path"] if position is not None else [])

    async def rollback(self, error: BaseException) -> None:
        """Undoes the completed stages in reverse order. A stage that can't is logged and does not stop the others."""
        for path, stage in reversed(self._completed):
            if type(stage).rollback is Stage.rollback:
                continue
            payload = event_pb2.StageRolledBack(stage=stage.name)
            try:
                await stage.rollback(self._stage_context(path, stage), error)
            except Exception as problem:
                payload.failure.CopyFrom(to_failure(_as_kitchen_error(path, problem), source=path))
            await self._emit(path, stage_rolled_back=payload)
        self._completed.clear()

    async def finalize(self) -> None:
        """Runs the finaliser's stages. One that fails is logged and does not stop the others."""
        for node in self._workflow.finalizer:
            stage = self._registry[node.stage]
            try:
                await stage.run(self._stage_context(node.name, stage))
            except Exception as problem:
                failure = to_failure(_as_kitchen_error(node.name, problem), source=node.name)
                await self._emit(node.name, stage_failed=event_pb2.StageFailed(stage=stage.name, failure=failure))

    def _position(self) -> dict[str, Any]:
        kinds = {output.key: output.kind for stage in self._registry for output in stage.outputs}
        values = {key: value for key, value in self._context.values.items() if kinds.get(key) is Kind.VALUE}
        return {"path": [dict(frame) for frame in self._frames], "values": values, "step": self._context.step}

    async def _sequence(self, nodes: tuple[Node, ...], path: str, resume: list[Frame]) -> None:
        start = 0
        if resume:
            frame, inner = resume[0], resume[1:]
            start = frame["index"] + 1
            for index, node in enumerate(nodes[:start]):
                self._frames.append(Frame(index=index, iteration=frame["iteration"] if index == frame["index"] else 0))
                if index == frame["index"] and inner:
                    await self._reenter(node, f"{path}{node.name}", frame["iteration"], inner)
                elif isinstance(node, StageNode) and self._registry[node.stage].setup:
                    await self._stage(node, f"{path}{node.name}", again=True)
                self._frames.pop()
        for index in range(start, len(nodes)):
            node = nodes[index]
            if not self._step_loops:
                await self._boundary(None)
            self._frames.append(Frame(index=index, iteration=0))
            await self._node(node, f"{path}{node.name}")
            self._frames.pop()

    async def _node(self, node: Node, path: str) -> None:
        if isinstance(node, StageNode):
            await self._stage(node, path)
        elif isinstance(node, LoopNode):
            await self._loop(node, path, first=0, resume=[])
        elif self._holds(node.predicate):
            await self._sequence(node.body, f"{path}/", [])

    async def _reenter(self, node: Node, path: str, iteration: int, resume: list[Frame]) -> None:
        if isinstance(node, LoopNode):
            await self._loop(node, path, first=iteration, resume=resume)
        elif not isinstance(node, StageNode):
            await self._sequence(node.body, f"{path}/", resume)

    async def _loop(self, node: LoopNode, path: str, *, first: int, resume: list[Frame]) -> None:
        count = self._context.values[node.count] if isinstance(node.count, str) else node.count
        self._step_loops += node.step_loop
        try:
            for iteration in range(first, count):
                self._context.iterations[node.name] = iteration
                if node.step_loop:
                    self._context.step_began_at = time.monotonic()
                self._frames[-1]["iteration"] = iteration
                await self._sequence(node.body, f"{path}/", resume)
                resume = []
                if node.step_loop:
                    # The position of a pause: this iteration's last node is completed.
                    self._frames.append(Frame(index=len(node.body) - 1, iteration=0))
                    await self._boundary(
                        StageContext(self._context, path=path, reads=frozenset({"session"}), writes=frozenset())
                    )
                    self._frames.pop()
        finally:
            self._step_loops -= node.step_loop
            self._context.iterations.pop(node.name, None)

    async def _stage(self, node: StageNode, path: str, *, again: bool = False) -> None:
        stage = self._registry[node.stage]
        context = self._stage_context(path, stage)
        quiet = self._step_loops > 0
        if not quiet:
            await self._emit(path, stage_started=event_pb2.StageStarted(stage=stage.name))
        begun = time.monotonic()
        try:
            await stage.run(context)
            if again or (self._from_start and stage.setup):
                self._check_reproduced(path, stage)
        except Exception as problem:
            failure = to_failure(_as_kitchen_error(path, problem), source=path)
            await self._emit(path, stage_failed=event_pb2.StageFailed(stage=stage.name, failure=failure))
            raise
        seconds = time.monotonic() - begun
        self._context.step += stage.completes_step
        self._context.released |= stage.releases
        if quiet:
            times = self._context.stage_seconds
            times[stage.name] = times.get(stage.name, 0.0) + seconds
        else:
            self._completed.append((path, stage))
            await self._emit(path, stage_completed=event_pb2.StageCompleted(stage=stage.name, seconds=seconds))

    def _check_reproduced(self, path: str, stage: Stage) -> None:
        for output in stage.outputs:
            if output.kind is not Kind.VALUE or output.key not in self._stored:
                continue
            stored, now = self._stored[output.key], self._context.values[output.key]
            if stored != now:
                raise FailedPreconditionError(
                    f"{path}: {output.key} was {stored!r} in an earlier attempt and is {now!r} now: what the run "
                    "stands on has changed, so it can't go on exactly; restore it, or create a new run",
                    reason="RESUME_MISMATCH",
                    metadata={"key": output.key, "stored": stored, "now": now, "stage_path": path},
                )

    def _holds(self, predicate: ContextFlag | ConfigFlag | Every) -> bool:
        match predicate:
            case ContextFlag(key=key):
                return bool(self._context.values[key])
            case ConfigFlag(key=key):
                return bool(self._context.config[key])
            case Every(config_key=key, also_last=also_last):
                every, step = self._context.config[key], self._context.step
                if not every:
                    return False
                return step % every == 0 or (also_last and step == self._context.values["total_steps"])

    def _stage_context(self, path: str, stage: Stage) -> StageContext:
        writes = frozenset(output.key for output in stage.outputs)
        return StageContext(self._context, path=path, reads=writes | frozenset(stage.inputs), writes=writes)

    async def _emit(self, path: str, **payload: Any) -> None:
        await self._context.journal.emit(stage_path=path, step=self._context.step, **payload)


def _as_kitchen_error(path: str, error: Exception) -> KitchenError:
    if isinstance(error, KitchenError):
        return error
    logger.error("stage %s failed", path, exc_info=error)
    return InternalError(
        f"stage {path} failed: the server's log has the details", reason="INTERNAL_BUG", metadata={"stage_path": path}
    )
