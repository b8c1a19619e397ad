"""Rewards of completions: whether the answer after #### is the right one, and how long the completion is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from crucible.port.reward.v1 import reward_pb2, reward_pb2_grpc
from crucible_adapters.fakes.providers import count_tokens
from crucible_adapters.fakes.seeded import plain
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions, to_struct
from crucible_kit.errors import InvalidArgumentError, KitchenError, NotFoundError, field_error, to_failure
from crucible_kit.messages import message_text, refuse_unusable
from crucible_kit.settings import parse_settings

_DEFAULT = "exact_match"
_MARK = "####"
_LIMIT_SECONDS = 10.0


class _ExactMatchOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    format_weight: float = Field(default=0.0, ge=0, le=1, description="Reward for an answer that can be read at all.")


class _LengthOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    full_tokens: int = Field(default=16, ge=1, description="Tokens from which on the reward is 1.")


class _Function(NamedTuple):
    """A reward function.

    Attributes:
        score: the result of a completion's text and, for one that needs it, the reference answer.
    """

    description: str
    options: type[BaseModel]
    parts: tuple[str, ...]
    needs_reference_answer: bool
    max_reward: float
    score: Callable[[str, str, Any], reward_pb2.ScoreResult]


class FakeRewardOptions(AdapterOptions):
    """As all fakes have them."""

    seed: int = Field(default=0, description="Without effect: rewards follow from the completions alone.")


class FakeReward(reward_pb2_grpc.RewardServiceServicer):
    """Rewards that follow from the texts. An item whose metadata says `seconds: N` takes so long, on paper."""

    description = AdapterDescription(name="fake-reward", port="reward", options=FakeRewardOptions)

    def __init__(self, options: FakeRewardOptions, context: AdapterContext) -> None:
        pass

    async def close(self) -> None:
        """It holds nothing."""

    async def Score(self, request: reward_pb2.ScoreRequest, context: Any) -> reward_pb2.ScoreResponse:
        name = request.reward or _DEFAULT
        if name not in _FUNCTIONS:
            raise NotFoundError(
                f"reward: there is no {name!r}; there are {', '.join(sorted(_FUNCTIONS))}",
                reason="REWARD_NOT_FOUND",
                metadata={"field": "reward", "reward": name},
            )
        function = _FUNCTIONS[name]
        options = parse_settings(function.options, plain(request.options), where="options", reason="OPTIONS_INVALID")
        limit = _limit(request)
        return reward_pb2.ScoreResponse(results=[_score(function, each, options, limit) for each in request.items])

    async def ListRewards(self, request: reward_pb2.ListRewardsRequest, context: Any) -> reward_pb2.ListRewardsResponse:
        rewards = [_describe(name, _FUNCTIONS[name]) for name in sorted(_FUNCTIONS)]
        shown, token = page(rewards, lambda each: each.name, request, "ListRewards")
        return reward_pb2.ListRewardsResponse(rewards=shown, next_page_token=token)


def _limit(request: reward_pb2.ScoreRequest) -> float:
    if not request.HasField("item_timeout"):
        return _LIMIT_SECONDS
    seconds = request.item_timeout.ToTimedelta().total_seconds()
    if seconds <= 0:
        raise field_error("item_timeout", f"is {seconds:g} s, must be above 0")
    return min(seconds, _LIMIT_SECONDS)


def _score(function: _Function, item: reward_pb2.ScoreItem, options: Any, limit: float) -> reward_pb2.ScoreResult:
    seconds = item.metadata.fields["seconds"].number_value if "seconds" in item.metadata.fields else 0.0
    if seconds > limit:
        return reward_pb2.ScoreResult(
            outcome=reward_pb2.OUTCOME_TIMED_OUT, explanation=f"not decided within {limit:g} s"
        )
    try:
        refuse_unusable(item.completion, port="reward", usable=("tools", "thinking"), field="completion")
        if function.needs_reference_answer and not item.HasField("reference_answer"):
            raise InvalidArgumentError(
                "reference_answer: is missing, and this reward compares with it", reason="REFERENCE_ANSWER_MISSING"
            )
    except KitchenError as error:
        return reward_pb2.ScoreResult(error=to_failure(error, source="fake-reward"))
    text = "\n".join(message_text(each) for each in item.completion if each.role == "assistant")
    return function.score(text, item.reference_answer, options)


def _exact_match(text: str, reference: str, options: _ExactMatchOptions) -> reward_pb2.ScoreResult:
    answer, wanted = _answer(text), _answer(reference) or _normalised(reference)
    correct = answer == wanted
    parts = {"correct": float(correct), "format": float(bool(answer))}
    outcome, explanation = reward_pb2.OUTCOME_WRONG, f"{answer!r} is not {wanted!r}"
    if not answer:
        outcome, explanation = reward_pb2.OUTCOME_UNPARSEABLE, f"there is no answer after {_MARK}"
    elif correct:
        outcome, explanation = reward_pb2.OUTCOME_CORRECT, f"{answer!r} is the reference answer"
    reward = max(parts["correct"], parts["format"] * options.format_weight)
    return reward_pb2.ScoreResult(reward=reward, parts=parts, outcome=outcome, answer=answer, explanation=explanation)


def _answer(text: str) -> str:
    """What stands after the last mark; empty: nothing."""
    _, mark, after = text.rpartition(_MARK)
    lines = after.strip().splitlines()
    return _normalised(lines[0]) if mark and lines else ""


def _normalised(text: str) -> str:
    return text.strip().replace(",", "").rstrip(".")


def _length(text: str, reference: str, options: _LengthOptions) -> reward_pb2.ScoreResult:
    tokens = count_tokens(text)
    reward = min(1.0, tokens / options.full_tokens)
    return reward_pb2.ScoreResult(reward=reward, parts={"length": reward}, explanation=f"{tokens} tokens")


_FUNCTIONS = {
    "exact_match": _Function(
        description=f"1 when the answer after the last {_MARK} is the reference answer.",
        options=_ExactMatchOptions,
        parts=("correct", "format"),
        needs_reference_answer=True,
        max_reward=1.0,
        score=_exact_match,
    ),
    "length": _Function(
        description="Rises with the length of the completion, up to 1.",
        options=_LengthOptions,
        parts=("length",),
        needs_reference_answer=False,
        max_reward=1.0,
        score=_length,
    ),
}


def _describe(name: str, function: _Function) -> reward_pb2.Reward:
    return reward_pb2.Reward(
        name=name,
        description=function.description,
        min_reward=0.0,
        max_reward=function.max_reward,
        parts=function.parts,
        needs_reference_answer=function.needs_reference_answer,
        options_schema=to_struct(function.options.model_json_schema()),
    )
