"""Environments: episodes that the same seed and actions repeat, step by step."""

from __future__ import annotations

import asyncio
import math
import uuid
from collections.abc import Sequence
from typing import Any

from pydantic import Field

from crucible.port.environment.v1 import environment_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.conformance.context import Context
from crucible_kit.conformance.expect import CheckSkipped, check, check_equal, check_refused
from crucible_kit.conformance.paging import Page, check_names
from crucible_kit.conformance.requirement import Samples, Stage, Suite
from crucible_kit.conformance.settings import SuiteSettings

_MOST_STEPS = 200


class EnvironmentSettings(SuiteSettings):
    """Settings of the suite of environments."""

    environment: str = Field(default="", description="Environment to play. Empty: the adapter's default.")
    actions: list[str] = Field(
        default=["50", "25", "75"],
        min_length=2,
        description="What the model says, one after the other and over again; not the end of an episode of seed 0.",
    )


SUITE = Suite(port="environment", settings=EnvironmentSettings)
Environments = Context[EnvironmentSettings]


def reset_request(context: Environments, *, seed: int = 0, **fields: Any) -> pb.ResetRequest:
    """A request for an episode."""
    given = {"request_id": str(uuid.uuid4()), "environment": context.settings.environment, "seed": seed}
    return pb.ResetRequest(**(given | fields))


async def begin(context: Environments, request: pb.ResetRequest) -> pb.ResetResponse:
    """An episode that is closed after the check."""
    response = await context.stub.Reset(request)
    close = pb.CloseRequest(episode_id=response.episode_id)
    context.defer(lambda: context.stub.Close(close))
    return response


async def reset(context: Environments, **fields: Any) -> pb.ResetResponse:
    """A new episode."""
    return await begin(context, reset_request(context, **fields))


def step_request(context: Environments, episode_id: str, sequence: int, text: str | None = None) -> pb.StepRequest:
    """A request for a step; without a text the settings' action of that number."""
    actions = context.settings.actions
    content = actions[(sequence - 1) % len(actions)] if text is None else text
    action = message_pb2.Message(role="assistant", content=content)
    return pb.StepRequest(episode_id=episode_id, sequence=sequence, action=action)


async def step(context: Environments, episode_id: str, sequence: int, text: str | None = None) -> pb.StepResponse:
    """One step, its answer looked at."""
    response = await context.stub.Step(step_request(context, episode_id, sequence, text))
    numbers = [response.reward, *response.reward_parts.values()]
    check(all(map(math.isfinite, numbers)), "finite rewards", numbers)
    check(not (response.done and response.truncated), "not done and truncated together", "both")
    ended = response.done or response.truncated
    check(ended or len(response.observation) > 0, "an observation of a step that is not the last", "none")
    return response


async def play(context: Environments, episode_id: str) -> list[pb.StepResponse]:
    """Steps until the episode ends."""
    steps: list[pb.StepResponse] = []
    while len(steps) < _MOST_STEPS:
        steps.append(await step(context, episode_id, len(steps) + 1))
        if steps[-1].done or steps[-1].truncated:
            return steps
    raise CheckSkipped(f"an episode takes more than {_MOST_STEPS} steps")


def told(responses: Sequence[Any]) -> list[Any]:
    """What a model sees of steps, and their rewards."""
    return [([(m.role, m.content) for m in each.observation], getattr(each, "reward", None)) for each in responses]


@SUITE.samples
async def _samples(context: Environments) -> Samples:
    episode = await reset(context)
    return {
        "Reset": reset_request(context),
        "Step": step_request(context, episode.episode_id, 1),
        "Close": pb.CloseRequest(episode_id=f"no-{episode.episode_id}"),
        "ListEnvironments": pb.ListEnvironmentsRequest(),
    }


@SUITE.pings
async def _ping(context: Environments) -> None:
    await context.stub.Close(pb.CloseRequest(episode_id="no-episode-is-called-so"))


@SUITE.undoes("Reset")
async def _close_begun(context: Environments, messages: Sequence[Any], answer: Any) -> None:
    # The same request again: the first may have been answered to nobody.
    await begin(context, messages[0])


@SUITE.requirement(
    "ENV-LIST-01",
    "ListEnvironments MUST list the environments by name, each once, in pages of any size.",
    quote="ListEnvironments lists the environments, sorted by name.",
)
async def _lists(context: Environments) -> None:
    async def page(size: int, token: str) -> Page:
        request = pb.ListEnvironmentsRequest(page_size=size, page_token=token)
        response = await context.stub.ListEnvironments(request)
        return Page([each.name for each in response.environments], response.next_page_token)

    check(len(await check_names(page, "the environments")) > 0, "at least one environment", "none")


@SUITE.requirement(
    "ENV-RESET-01",
    "Reset MUST give an episode with something to read and a lease; the same seed gives the same problem, another "
    "episode.",
    quote="The same environment, options and seed give the same problem",
)
async def _same_problem(context: Environments) -> None:
    one, same = await reset(context, seed=3), await reset(context, seed=3)
    check(bool(one.episode_id), "an episode's id", "an empty one")
    check(one.episode_id != same.episode_id, "another episode for another request", same.episode_id)
    check(len(one.observation) > 0, "at least one message", "none")
    check(one.lease.seconds > 0, "a lease of some seconds", one.lease.seconds)
    check_equal(told([same]), told([one]), "the problem of the same seed")


@SUITE.requirement(
    "ENV-RESET-02",
    "The same request_id MUST get the same episode, with other content INVALID_ARGUMENT REQUEST_ID_REUSED.",
    quote="Idempotent by request_id: the same content again gets the first answer, other content is INVALID_ARGUMENT",
)
async def _same_request(context: Environments) -> None:
    request = reset_request(context)
    both = await asyncio.gather(begin(context, request), begin(context, request))
    check_equal(both[1], both[0], "the answer of a repeated request_id")
    request.seed = 99
    call = context.stub.Reset(request)
    await check_refused(call, "INVALID_ARGUMENT", "REQUEST_ID_REUSED", what="a request_id with another seed")


@SUITE.requirement(
    "ENV-RESET-03",
    "An unknown environment MUST be NOT_FOUND ENVIRONMENT_NOT_FOUND, an unknown option INVALID_ARGUMENT "
    "OPTIONS_INVALID.",
    quote="INVALID_ARGUMENT OPTIONS_INVALID",
)
async def _unknown(context: Environments) -> None:
    call = reset(context, environment="no-environment-is-called-so")
    await check_refused(call, "NOT_FOUND", "ENVIRONMENT_NOT_FOUND", what="an unknown environment")
    call = reset(context, options=to_struct({"no_option_is_called_so": True}))
    await check_refused(call, "INVALID_ARGUMENT", "OPTIONS_INVALID", what="an unknown option")


@SUITE.requirement(
    "ENV-STEP-01",
    "The same actions on the same problem MUST give the same observations and rewards, also side by side, until the "
    "end.",
    quote="the episodes of a group share a seed.",
)
async def _repeats_itself(context: Environments) -> None:
    episodes = [await reset(context, seed=3) for _ in range(3)]
    played = await asyncio.gather(*(play(context, each.episode_id) for each in episodes))
    for steps in played[1:]:
        check_equal(told(steps), told(played[0]), "the steps of another episode of the same seed")


@SUITE.requirement(
    "ENV-STEP-02",
    "A repeat of the last step MUST get the first answer and change nothing; another action, or an older step, is "
    "INVALID_ARGUMENT SEQUENCE_REUSED.",
    quote="a repeat of the last one with the same action gets the first answer and changes nothing.",
)
async def _repeated_steps(context: Environments) -> None:
    episode, control = await reset(context), await reset(context)
    first = await step(context, episode.episode_id, 1)
    for _ in range(2):
        check_equal(await step(context, episode.episode_id, 1), first, "the answer of a repeated step")
    await step(context, control.episode_id, 1)
    call = step(context, episode.episode_id, 1, context.settings.actions[1])
    await check_refused(call, "INVALID_ARGUMENT", "SEQUENCE_REUSED", what="a repeat with another action")
    second = await step(context, episode.episode_id, 2)
    check_equal(told([second]), told([await step(context, control.episode_id, 2)]), "the step after repeats")
    call = step(context, episode.episode_id, 1)
    await check_refused(call, "INVALID_ARGUMENT", "SEQUENCE_REUSED", what="a repeat of an older step")


@SUITE.requirement(
    "ENV-STEP-03",
    "A step that leaves numbers out MUST be FAILED_PRECONDITION SEQUENCE_GAP and consume none.",
    quote="FAILED_PRECONDITION SEQUENCE_GAP with the expected number",
)
async def _gaps(context: Environments) -> None:
    episode = await reset(context)
    for sequence in (2, 1000):
        call = step(context, episode.episode_id, sequence)
        error = await check_refused(call, "FAILED_PRECONDITION", "SEQUENCE_GAP", what=f"step {sequence} as the first")
        if context.channel.refusals[-1].details is not None:
            check_equal(error.metadata.get("expected"), "1", "`expected` in the metadata of SEQUENCE_GAP")
    await step(context, episode.episode_id, 1)


@SUITE.requirement(
    "ENV-STEP-04",
    "After its end an episode MUST take no step: FAILED_PRECONDITION EPISODE_ENDED; the last one may be repeated.",
    quote="The episode came to its own end. No step follows.",
)
async def _ends(context: Environments) -> None:
    episode = await reset(context, seed=3)
    steps = await play(context, episode.episode_id)
    again = await step(context, episode.episode_id, len(steps))
    check_equal(again, steps[-1], "the answer of the last step again")
    call = step(context, episode.episode_id, len(steps) + 1)
    await check_refused(call, "FAILED_PRECONDITION", "EPISODE_ENDED", what="a step after the end")


@SUITE.requirement(
    "ENV-CLOSE-01",
    "A closed episode MUST be NOT_FOUND EPISODE_NOT_FOUND; closing it again, or one that never was, is OK.",
    quote="Close frees an episode, finished or not. Idempotent: an unknown one is OK.",
)
async def _closes(context: Environments) -> None:
    episode, other = await reset(context), await reset(context)
    for episode_id in (episode.episode_id, episode.episode_id, "no-episode-is-called-so"):
        await context.stub.Close(pb.CloseRequest(episode_id=episode_id))
    for episode_id in (episode.episode_id, "no-episode-is-called-so"):
        call = step(context, episode_id, 1)
        await check_refused(call, "NOT_FOUND", "EPISODE_NOT_FOUND", what="a step of an episode that is closed")
    await step(context, other.episode_id, 1)


@SUITE.requirement(
    "ENV-RESTART-01",
    "After a restart episodes MUST be gone, and the same seed give the same problem.",
    quote="NOT_FOUND EPISODE_NOT_FOUND",
    stage=Stage.RESTART,
)
async def _end_with_the_process(context: Environments) -> None:
    before = await reset(context, seed=5)
    await context.restart()
    call = step(context, before.episode_id, 1)
    await check_refused(call, "NOT_FOUND", "EPISODE_NOT_FOUND", what="a step of an episode from before the restart")
    check_equal(told([await reset(context, seed=5)]), told([before]), "the problem of the same seed")
