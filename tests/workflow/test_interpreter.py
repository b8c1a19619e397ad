"""Walking, saving the position and going on: a resumed walk does what an undisturbed one does."""

from typing import Any

import pytest

from crucible_kit.errors import FailedPreconditionError
from crucible_kitchen.workflows.context import RunContext, StageContext
from crucible_kitchen.workflows.interpreter import Interpreter
from crucible_kitchen.workflows.stage import Kind, Output, Stage, StageRegistry
from crucible_kitchen.workflows.tree import ConditionalNode, ConfigFlag, Every, LoopNode, StageNode, Workflow

# No stage here calls a port or saves a checkpoint.
NOTHING: Any = None


class World:
    """What the stages of these tests touch: the journal of a walk and the positions it saved."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.events: list[tuple[str, str]] = []
        self.saved: list[dict[str, Any]] = []
        self.fingerprint = "f1"
        self.fail_at = ""

    async def emit(self, *, stage_path: str, step: int, changes: Any = None, **payload: Any) -> Any:
        (kind,) = payload
        self.events.append((stage_path, kind))


def _world(context: StageContext) -> Any:
    return context.run.journal


class Open(Stage):
    name = "open"
    description = "acquires a handle and fingerprints it"
    outputs = (
        Output(key="handle", kind=Kind.HANDLE),
        Output(key="fingerprint", kind=Kind.VALUE),
        Output(key="epochs", kind=Kind.VALUE),
        Output(key="total_steps", kind=Kind.VALUE),
    )
    setup = True

    async def run(self, context: StageContext) -> None:
        world = _world(context)
        world.done.append("open")
        context["handle"], context["fingerprint"] = object(), world.fingerprint
        context["epochs"], context["total_steps"] = 2, 6

    async def rollback(self, context: StageContext, error: BaseException) -> None:
        _world(context).done.append("rollback open")


class Plan(Stage):
    name = "plan"
    description = "writes a value once"
    outputs = (Output(key="planned", kind=Kind.VALUE),)

    async def run(self, context: StageContext) -> None:
        _world(context).done.append("plan")
        context["planned"] = 7

    async def rollback(self, context: StageContext, error: BaseException) -> None:
        _world(context).done.append("rollback plan")


class Work(Stage):
    name = "work"
    description = "one step"
    inputs = ("handle", "planned")
    completes_step = True

    async def run(self, context: StageContext) -> None:
        at = f"work {context.run.iterations['epochs']}.{context.run.iterations['steps']} {context['planned']}"
        if _world(context).fail_at == at:
            raise FailedPreconditionError("asked to fail", reason="TEST")
        _world(context).done.append(at)


class Save(Stage):
    name = "save"
    description = "commits the position"
    inputs = ("handle",)
    saves_position = True

    async def run(self, context: StageContext) -> None:
        _world(context).saved.append(context.run.position())


class Measure(Stage):
    name = "measure"
    description = "after a save in the same iteration"

    async def run(self, context: StageContext) -> None:
        _world(context).done.append(f"measure {context.run.step}")


class Close(Stage):
    name = "close"
    description = "finaliser"

    async def run(self, context: StageContext) -> None:
        _world(context).done.append("close")


REGISTRY = StageRegistry([Open(), Plan(), Work(), Save(), Measure(), Close()])
TREE = Workflow(
    name="w",
    description="two epochs of three steps",
    body=(
        StageNode(stage="open"),
        StageNode(stage="plan"),
        LoopNode(
            name="epochs",
            count="epochs",
            body=(
                LoopNode(
                    name="steps",
                    count=3,
                    step_loop=True,
                    body=(
                        StageNode(stage="work"),
                        ConditionalNode(
                            name="sometimes", predicate=Every(config_key="every"), body=(StageNode(stage="save"),)
                        ),
                        ConditionalNode(
                            name="last",
                            predicate=Every(config_key="rarely", also_last=True),
                            body=(StageNode(stage="measure"),),
                        ),
                    ),
                ),
            ),
        ),
        ConditionalNode(name="never", predicate=ConfigFlag(key="flag"), body=(StageNode(stage="measure"),)),
    ),
    finalizer=(StageNode(stage="close"),),
)


async def never(stage: Any) -> None:
    """No stop is ever asked for."""


def interpreter(world: World, *, boundary: Any = never) -> Interpreter:
    context = RunContext(
        run_id="r", recipe="r", workflow="w", seed=0, attempt=1, config_sha256="",
        config={"every": 2, "rarely": 4, "flag": False},
        ports=NOTHING, journal=world, saver=NOTHING,
    )  # fmt: skip
    return Interpreter(TREE, REGISTRY, context, boundary=boundary)


async def test_walks_in_order_and_counts_steps_in_one_place():
    world = World()
    await interpreter(world).run(None)
    steps = [f"work {epoch}.{step} 7" for epoch in range(2) for step in range(3)]
    steps.insert(4, "measure 4")
    steps.append("measure 6")
    assert world.done == ["open", "plan", *steps]
    assert [position["step"] for position in world.saved] == [2, 4, 6]


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_going_on_from_a_position_does_the_rest_and_nothing_twice(at: int):
    undisturbed = World()
    await interpreter(undisturbed).run(None)
    position = undisturbed.saved[at]
    resumed = World()
    await interpreter(resumed).run(position)
    # Set-up runs again, a stored value does not; then everything that came after the save.
    kept = undisturbed.done.index(f"work {(position['step'] - 1) // 3}.{(position['step'] - 1) % 3} 7") + 1
    assert resumed.done == ["open", *undisturbed.done[kept:]]
    assert resumed.saved == undisturbed.saved[at + 1 :]


async def test_a_position_is_json_and_holds_only_values():
    world = World()
    await interpreter(world).run(None)
    position = world.saved[0]
    assert position["values"] == {"fingerprint": "f1", "epochs": 2, "total_steps": 6, "planned": 7}
    assert position["path"][-1] == {"index": 0, "iteration": 0}
    assert [frame["iteration"] for frame in position["path"]] == [0, 1, 0, 0]


async def test_set_up_that_does_not_reproduce_what_was_stored_is_refused():
    world = World()
    await interpreter(world).run(None)
    changed = World()
    changed.fingerprint = "f2"
    with pytest.raises(FailedPreconditionError) as caught:
        await interpreter(changed).run(world.saved[0])
    assert caught.value.reason == "RESUME_MISMATCH"
    assert "'f1'" in caught.value.message
    assert "'f2'" in caught.value.message
    assert changed.done == ["open"]


async def test_failure_rolls_back_in_reverse_and_the_finaliser_runs():
    world = World()
    world.fail_at = "work 1.0 7"
    walk = interpreter(world)
    with pytest.raises(FailedPreconditionError) as caught:
        await walk.run(None)
    await walk.rollback(caught.value)
    await walk.finalize()
    assert world.done[-3:] == ["rollback plan", "rollback open", "close"]
    assert ("epochs/steps/work", "stage_failed") in world.events
    assert world.events[-2:] == [("plan", "stage_rolled_back"), ("open", "stage_rolled_back")]


class Stop(Exception):
    pass


async def test_a_stop_between_iterations_leaves_a_position_that_goes_on():
    world = World()
    await interpreter(world).run(None)
    stopped, positions = World(), []
    context: list[RunContext] = []

    async def boundary(stage: StageContext | None) -> None:
        if stage is not None and stage.run.step == 3:
            context.append(stage.run)
            positions.append(stage.run.position())
            raise Stop

    with pytest.raises(Stop):
        await interpreter(stopped, boundary=boundary).run(None)
    resumed = World()
    await interpreter(resumed).run(positions[0])
    assert stopped.done + resumed.done[1:] == world.done


async def test_a_loop_of_zero_iterations_runs_nothing():
    world = World()
    body = (StageNode(stage="open"), LoopNode(name="none", count=0, body=(StageNode(stage="plan"),)))
    tree = Workflow(name="w", description="d", body=body)
    context = RunContext(
        run_id="r", recipe="r", workflow="w", seed=0, attempt=1, config_sha256="",
        config={}, ports=NOTHING, journal=world, saver=NOTHING,
    )  # fmt: skip
    await Interpreter(tree, REGISTRY, context, boundary=never).run(None)
    assert world.done == ["open"]


async def test_a_stage_sees_only_the_keys_it_declares():
    context = StageContext(
        RunContext(
            run_id="r", recipe="r", workflow="w", seed=0, attempt=1, config_sha256="", config={},
            ports=NOTHING, journal=World(), saver=NOTHING, values={"a": 1, "b": 2},
        ),
        path="p", reads=frozenset({"a"}), writes=frozenset({"a"}),
    )  # fmt: skip
    assert context["a"] == 1
    with pytest.raises(KeyError, match="does not declare"):
        context["b"]
    with pytest.raises(KeyError, match="does not declare"):
        context["b"] = 3


async def test_seeds_depend_on_run_place_and_step():
    def seed(run_seed: int, step: int, path: str) -> int:
        run = RunContext(
            run_id="r", recipe="r", workflow="w", seed=run_seed, attempt=1, config_sha256="", config={},
            ports=NOTHING, journal=World(), saver=NOTHING, step=step,
        )  # fmt: skip
        return StageContext(run, path=path, reads=frozenset(), writes=frozenset()).seed_for("x")

    assert seed(0, 0, "p") == seed(0, 0, "p")
    assert len({seed(0, 0, "p"), seed(1, 0, "p"), seed(0, 1, "p"), seed(0, 0, "q")}) == 4
