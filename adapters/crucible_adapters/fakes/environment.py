"""A small game: guess a number that follows from the seed."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from pydantic import BaseModel, ConfigDict, Field

from crucible.port.environment.v1 import environment_pb2, environment_pb2_grpc
from crucible.type.v1 import message_pb2
from crucible_adapters.fakes.seeded import Requests, content_of, plain
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions, to_struct
from crucible_kit.determinism import derive_seed
from crucible_kit.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    field_error,
)
from crucible_kit.messages import message_text, refuse_unusable
from crucible_kit.settings import parse_settings

_GAME = "guess_number"
_LEASE_SECONDS = 1800
_RETRY_SECONDS = 1.0
_MOST_STEPS = 100
_NUMBER = re.compile(r"-?\d{1,18}")


class _GameOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    high: int = Field(default=100, ge=1, le=10**9, description="The number is from 1 to this.")
    max_steps: int = Field(default=10, ge=1, le=_MOST_STEPS, description="Guesses before the episode is cut off.")


class FakeEnvironmentOptions(AdapterOptions):
    """What its numbers follow from."""

    seed: int = Field(default=0, description="Seed that is mixed into every episode's.")
    max_episodes: int = Field(default=10_000, ge=1, description="Episodes that may be open.")


@dataclass
class _Episode:
    """Attributes:
    secret: the number.
    steps: how many were made.
    ended: no step follows.
    last: the last step's request and answer.
    last_used: monotonic seconds.
    """

    request_id: str
    secret: int
    options: _GameOptions
    last_used: float
    steps: int = 0
    ended: bool = False
    last: tuple[bytes, environment_pb2.StepResponse] | None = None


class FakeEnvironment(environment_pb2_grpc.EnvironmentServiceServicer):
    """The game guess_number.

    Args:
        clock: monotonic seconds, for leases.
    """

    description = AdapterDescription(name="fake-environment", port="environment", options=FakeEnvironmentOptions)

    def __init__(
        self, options: FakeEnvironmentOptions, context: AdapterContext, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._options = options
        self._clock = clock
        self._episodes: dict[str, _Episode] = {}
        self._requests: Requests[environment_pb2.ResetResponse] = Requests()
        self._opened = 0

    async def close(self) -> None:
        """Forgets the episodes."""
        self._episodes.clear()

    async def ListEnvironments(
        self, request: environment_pb2.ListEnvironmentsRequest, context: Any
    ) -> environment_pb2.ListEnvironmentsResponse:
        game = environment_pb2.Environment(
            name=_GAME,
            description="Guess a number; every wrong guess is answered with higher or lower.",
            max_steps=_MOST_STEPS,
            options_schema=to_struct(_GameOptions.model_json_schema()),
        )
        shown, token = page([game], lambda each: each.name, request, "ListEnvironments")
        return environment_pb2.ListEnvironmentsResponse(environments=shown, next_page_token=token)

    async def Reset(self, request: environment_pb2.ResetRequest, context: Any) -> environment_pb2.ResetResponse:
        self._expire()
        return self._requests.once(request, lambda: self._reset(request))

    def _reset(self, request: environment_pb2.ResetRequest) -> environment_pb2.ResetResponse:
        if request.environment not in ("", _GAME):
            raise NotFoundError(
                f"environment: there is no {request.environment!r}; there is {_GAME}",
                reason="ENVIRONMENT_NOT_FOUND",
                metadata={"field": "environment", "environment": request.environment},
            )
        options = parse_settings(_GameOptions, plain(request.options), where="options", reason="OPTIONS_INVALID")
        if len(self._episodes) >= self._options.max_episodes:
            raise ResourceExhaustedError(
                f"{len(self._episodes)} episodes are open, at most {self._options.max_episodes} may be: close some",
                reason="TOO_MANY_EPISODES",
                metadata={"limit": self._options.max_episodes},
                retry_delay=_RETRY_SECONDS,
            )
        secret = 1 + derive_seed(self._options.seed, _GAME, request.seed) % options.high
        self._opened += 1
        episode_id = f"episode-{self._opened}"
        self._episodes[episode_id] = _Episode(request.request_id, secret, options, self._clock())
        return environment_pb2.ResetResponse(
            episode_id=episode_id,
            observation=[
                message_pb2.Message(role="system", content="Answer with one number."),
                message_pb2.Message(
                    role="user",
                    content=f"I think of a number from 1 to {options.high}. You have {options.max_steps} guesses.",
                ),
            ],
            lease=Duration(seconds=_LEASE_SECONDS),
            info=to_struct({"secret": secret}),
        )

    async def Step(self, request: environment_pb2.StepRequest, context: Any) -> environment_pb2.StepResponse:
        self._expire()
        episode = self._episodes.get(request.episode_id)
        if episode is None:
            raise NotFoundError(
                f"episode_id: there is no episode {request.episode_id!r}: begin one with Reset",
                reason="EPISODE_NOT_FOUND",
                metadata={"episode_id": request.episode_id},
            )
        episode.last_used = self._clock()
        content = content_of(request)
        if request.sequence <= episode.steps:
            if episode.last is not None and request.sequence == episode.steps and episode.last[0] == content:
                return episode.last[1]
            raise InvalidArgumentError(
                f"sequence: step {request.sequence} was made already, with another action or before the last one; "
                f"the next is {episode.steps + 1}",
                reason="SEQUENCE_REUSED",
                metadata={"field": "sequence", "expected": episode.steps + 1, "sequence": request.sequence},
            )
        if request.sequence > episode.steps + 1:
            raise FailedPreconditionError(
                f"sequence: {request.sequence} came while {episode.steps + 1} is expected: send that one first",
                reason="SEQUENCE_GAP",
                metadata={"field": "sequence", "expected": episode.steps + 1, "sequence": request.sequence},
            )
        if episode.ended:
            raise FailedPreconditionError(
                f"the episode {request.episode_id} has ended: begin another with Reset",
                reason="EPISODE_ENDED",
                metadata={"episode_id": request.episode_id},
            )
        if request.action.role != "assistant":
            raise field_error("action.role", f"is {request.action.role!r}; the model's is assistant")
        refuse_unusable([request.action], port="environment", usable=("thinking",), field="action")
        response = _step(episode, message_text(request.action))
        episode.steps += 1
        episode.ended = response.done or response.truncated
        episode.last = content, response
        return response

    async def Close(self, request: environment_pb2.CloseRequest, context: Any) -> environment_pb2.CloseResponse:
        self._drop(request.episode_id)
        return environment_pb2.CloseResponse()

    def _expire(self) -> None:
        now = self._clock()
        for name in [name for name, each in self._episodes.items() if now - each.last_used > _LEASE_SECONDS]:
            self._drop(name)

    def _drop(self, episode_id: str) -> None:
        episode = self._episodes.pop(episode_id, None)
        if episode is not None:
            self._requests.forget(episode.request_id)


def _step(episode: _Episode, text: str) -> environment_pb2.StepResponse:
    guesses = _NUMBER.findall(text)
    response = environment_pb2.StepResponse(reward_parts={"correct": 0.0})
    left = episode.options.max_steps - episode.steps - 1
    if guesses and int(guesses[-1]) == episode.secret:
        response.reward = response.reward_parts["correct"] = 1.0
        response.done = True
        return response
    hint = "Answer with a number."
    if guesses:
        hint = "Higher." if int(guesses[-1]) < episode.secret else "Lower."
        response.info.update({"guess": int(guesses[-1])})
    response.truncated = left == 0
    hint = "That was the last guess." if response.truncated else f"{hint} {left} guesses are left."
    response.observation.add(role="user", content=hint)
    return response
