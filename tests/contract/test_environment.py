"""Environment: one seed is one problem, and no step counts twice."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.struct_pb2 import Struct

from crucible.port.environment.v1 import environment_pb2 as pb
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.environment import FakeEnvironment, FakeEnvironmentOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnimplementedError,
)
from tests.contract.conftest import Binding
from tests.contract.listing import assert_pages
from tests.contract.refusals import refused


class Clock:
    """Monotonic seconds that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def stub(binding: Binding, context: AdapterContext, clock: Clock) -> Any:
    return await binding.stub(FakeEnvironment(FakeEnvironmentOptions(max_episodes=3), context, clock=clock))


async def reset(stub: Any, seed: int = 7, **fields: Any) -> pb.ResetResponse:
    options = fields.pop("options", {})
    request = pb.ResetRequest(
        **{"request_id": str(uuid.uuid4()), "seed": seed, "options": ParseDict(options, Struct()), **fields}
    )
    return await stub.Reset(request)


def secret(episode: pb.ResetResponse) -> int:
    return int(episode.info.fields["secret"].number_value)


async def step(stub: Any, episode: pb.ResetResponse, sequence: int, text: object, role: str = "assistant") -> Any:
    action = message_pb2.Message(role=role, content=str(text))
    return await stub.Step(pb.StepRequest(episode_id=episode.episode_id, sequence=sequence, action=action))


async def test_one_seed_is_one_problem(stub: Any) -> None:
    first, again, other = await reset(stub, 7), await reset(stub, 7), await reset(stub, 8)
    assert len({first.episode_id, again.episode_id, other.episode_id}) == 3
    assert secret(first) == secret(again) != secret(other)
    assert list(first.observation) == list(again.observation)
    assert [each.role for each in first.observation] == ["system", "user"]
    # The same actions get the same answers.
    for sequence, guess in enumerate((1, "what?", 50), 1):
        assert await step(stub, first, sequence, guess) == await step(stub, again, sequence, guess)
    # What is for records only is not told to the model.
    assert str(secret(first)) not in " ".join(each.content for each in first.observation)


async def test_the_game_can_be_won_by_what_it_tells(stub: Any) -> None:
    episode = await reset(stub, options={"high": 1000, "max_steps": 10})
    low, high, rewards = 1, 1000, 0.0
    for sequence in range(1, 11):
        guess = (low + high) // 2
        response = await step(stub, episode, sequence, f"I say {guess}")
        rewards += response.reward
        if response.done:
            break
        assert response.observation[0].role == "user" and not response.truncated
        assert response.reward_parts["correct"] == 0 and response.info.fields["guess"].number_value == guess
        low, high = (guess + 1, high) if "Higher" in response.observation[0].content else (low, guess - 1)
    assert guess == secret(episode) and rewards == 1.0
    assert (response.done, response.truncated, response.reward_parts["correct"]) == (True, False, 1.0)
    with refused(FailedPreconditionError, "EPISODE_ENDED"):
        await step(stub, episode, sequence + 1, 1)


async def test_an_episode_is_cut_off_at_its_last_step(stub: Any) -> None:
    episode = await reset(stub, options={"max_steps": 2})
    responses = [await step(stub, episode, sequence, "no idea") for sequence in (1, 2)]
    assert [(each.done, each.truncated) for each in responses] == [(False, False), (False, True)]
    # The last answer can be asked for again, a further step can't be made.
    assert await step(stub, episode, 2, "no idea") == responses[1]
    with refused(FailedPreconditionError, "EPISODE_ENDED"):
        await step(stub, episode, 3, "no idea")


async def test_a_repeated_step_changes_nothing(stub: Any) -> None:
    episode = await reset(stub, options={"max_steps": 3})
    first = await step(stub, episode, 1, 0)
    assert await step(stub, episode, 1, 0) == first
    with pytest.raises(InvalidArgumentError) as caught:
        await step(stub, episode, 1, 1)
    assert (caught.value.reason, caught.value.metadata["expected"]) == ("SEQUENCE_REUSED", "2")
    with pytest.raises(FailedPreconditionError) as gap:
        await step(stub, episode, 3, 0)
    assert (gap.value.reason, gap.value.metadata["expected"]) == ("SEQUENCE_GAP", "2")
    assert (await step(stub, episode, 2, 0)).observation[0].content.endswith("1 guesses are left.")
    with refused(InvalidArgumentError, "SEQUENCE_REUSED"):
        await step(stub, episode, 1, 0)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="sequence"):
        await step(stub, episode, 0, 0)


async def test_a_refused_step_uses_no_number(stub: Any) -> None:
    episode = await reset(stub)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="action.role"):
        await step(stub, episode, 1, 1, role="user")
    call = message_pb2.ToolCall(id="c", name="guess")
    action = message_pb2.Message(role="assistant", tool_calls=[call])
    with refused(UnimplementedError, "CAPABILITY_MISSING", says="environment.tools"):
        await stub.Step(pb.StepRequest(episode_id=episode.episode_id, sequence=1, action=action))
    assert (await step(stub, episode, 1, secret(episode))).done


async def test_an_episode_begins_once_for_a_request_id(stub: Any) -> None:
    request_id = str(uuid.uuid4())
    first = await reset(stub, request_id=request_id)
    await step(stub, first, 1, 0)
    assert await reset(stub, request_id=request_id) == first
    with refused(InvalidArgumentError, "REQUEST_ID_REUSED"):
        await reset(stub, 8, request_id=request_id)
    await stub.Close(pb.CloseRequest(episode_id=first.episode_id))
    assert (await reset(stub, 8, request_id=request_id)).episode_id != first.episode_id


async def test_closed_and_expired_episodes_are_not_found(stub: Any, clock: Clock) -> None:
    closed, idle, used = await reset(stub), await reset(stub), await reset(stub)
    for _ in range(2):
        await stub.Close(pb.CloseRequest(episode_id=closed.episode_id))
    assert idle.lease.seconds == 1800
    clock.now += 1000
    await step(stub, used, 1, 0)
    clock.now += 1000
    for episode in (closed, idle):
        with refused(NotFoundError, "EPISODE_NOT_FOUND", says=episode.episode_id):
            await step(stub, episode, 1, 0)
    await step(stub, used, 2, 0)


async def test_episodes_are_limited_until_one_is_closed(stub: Any) -> None:
    episodes = [await reset(stub) for _ in range(3)]
    with pytest.raises(ResourceExhaustedError) as caught:
        await reset(stub)
    assert caught.value.reason == "TOO_MANY_EPISODES" and caught.value.retry_delay
    await stub.Close(pb.CloseRequest(episode_id=episodes[0].episode_id))
    await reset(stub)


async def test_bad_beginnings_are_refused(stub: Any) -> None:
    with refused(NotFoundError, "ENVIRONMENT_NOT_FOUND", says="guess_number"):
        await reset(stub, environment="chess")
    for options, field in (({"high": 0}, "options.high"), ({"low": 1}, "options.low")):
        with refused(InvalidArgumentError, "OPTIONS_INVALID", field=field):
            await reset(stub, options=options)
    with refused(InvalidArgumentError, "FIELD_INVALID", field="seed"):
        await stub.Reset(pb.ResetRequest(request_id=str(uuid.uuid4())))
    assert secret(await reset(stub, 0, environment="guess_number", options={"high": 1})) == 1


async def test_environments_are_listed(stub: Any) -> None:
    (game,) = (await stub.ListEnvironments(pb.ListEnvironmentsRequest())).environments
    assert (game.name, game.max_steps) == ("guess_number", 100) and game.description
    assert set(game.options_schema.fields["properties"].struct_value.fields) == {"high", "max_steps"}
    await assert_pages(stub.ListEnvironments, pb.ListEnvironmentsRequest(), "environments")
