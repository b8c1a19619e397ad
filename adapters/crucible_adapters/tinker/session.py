"""One model that is trained at Tinker: calls that are handed over in order, and what their results mean.

forward_backward(data) ... forward_backward(data)   gradients add up at Tinker
optim_step(options)                                 handed over without waiting for them

Tinker can't drop gradients. A step that takes part of a batch is worse than none, so after one that may have, only
loading a checkpoint goes on.
"""

from __future__ import annotations

import asyncio
import enum
import math
from collections.abc import Awaitable, Coroutine
from dataclasses import dataclass
from typing import Any

import numpy as np

from crucible.port.training.v1 import training_pb2 as pb
from crucible_adapters.operations import Result
from crucible_adapters.tinker.checkpoints import (
    Reference,
    Saved,
    describe_lora,
    exists,
    mismatch,
    not_there,
)
from crucible_adapters.tinker.connection import Connection
from crucible_adapters.tinker.errors import NOT_THERE, REFUSED, is_final_answer
from crucible_adapters.tinker.models import Lora, ModelFacts
from crucible_adapters.tinker.requests import Pass, ttl_at_tinker
from crucible_kit.errors import FailedPreconditionError, KitchenError
from crucible_kit.tensors import to_tensor

_NAME_CHARACTERS = 100
# The first is what the hosted service calls it, the second what servers that speak its form do.
_GRAD_NORM = ("unclipped_grad_l2:mean", "grad_norm", "grad_norm:mean")
_UPDATE_NORM = ("update_norm", "update_norm:mean")


class Outcome(enum.Enum):
    """Of a pass with gradients."""

    PENDING = enum.auto()
    DONE = enum.auto()
    NOT_FINITE = enum.auto()
    FAILED = enum.auto()
    PARTLY_FAILED = enum.auto()


@dataclass
class SentPass:
    """A pass whose gradients the next step takes."""

    outcome: Outcome = Outcome.PENDING


class TinkerSession:
    """A training session.

    Args:
        service: the library's ServiceClient; its session at Tinker is this one's alone.
        client: the library's TrainingClient.

    Attributes:
        optim_steps: steps that the weights have had, those before a loaded checkpoint included.
        weights_version: changes of the weights in this session.
    """

    def __init__(
        self,
        connection: Connection,
        service: Any,
        client: Any,
        facts: ModelFacts,
        lora: Lora,
        *,
        base_model_name: str,
    ) -> None:
        self._connection = connection
        self._service = service
        self._client = client
        self.facts = facts
        self.lora = lora
        self.base_model_name = base_model_name
        self.optim_steps = 0
        self.weights_version = 0
        self._sent: list[SentPass] = []
        self._lost: KitchenError | None = None
        """Why nothing but loading a checkpoint goes on."""
        self._stale: KitchenError | None = None
        """Why no gradients are added and no step is taken before that."""
        self._saves = 0
        self._steps_under_way = 0

    def forward(self, given: Pass) -> Coroutine[Any, Any, Result]:
        """Hands over a pass without gradients; returns what waits for its result."""
        self._check()
        future = self._client.forward(given.data, given.loss, given.parameters or None)
        return self._finish_pass(future, given, None)

    def forward_backward(self, given: Pass) -> Coroutine[Any, Any, Result]:
        """Hands over a pass with gradients; returns what waits for its result."""
        sent = SentPass()
        self._sent.append(sent)
        try:
            self._check_gradients()
            future = self._client.forward_backward(given.data, given.loss, given.parameters or None)
        except BaseException:
            sent.outcome = Outcome.FAILED
            raise
        return self._finish_pass(future, given, sent)

    async def _finish_pass(self, future: Awaitable[Any], given: Pass, sent: SentPass | None) -> Result:
        try:
            answer = await self._result(future)
            with self._connection.said.reading():
                result = await asyncio.to_thread(_read_pass, answer, given)
        except BaseException:
            if sent is not None:
                sent.outcome = Outcome.FAILED if self._is_one_request(given) else Outcome.PARTLY_FAILED
            raise
        if sent is not None:
            sent.outcome = Outcome.DONE if math.isfinite(result.loss) else Outcome.NOT_FINITE
        return "forward", result

    def _is_one_request(self, given: Pass) -> bool:
        """Whether the library sends a pass as a whole: of several parts some may get through."""
        return sum(1 for _ in self._client._chunked_requests_generator(given.data)) == 1

    def optim_step(self, adam: dict[str, float]) -> Coroutine[Any, Any, Result]:
        """Hands over a step; returns what waits for its result."""
        self._check_gradients()
        sent, self._sent = self._sent, []
        if not sent:
            raise FailedPreconditionError(
                "no gradients: send a forward_backward before this optim_step", reason="NO_GRADIENTS"
            )
        if _failed(sent):
            if not all(each.outcome is Outcome.FAILED for each in sent):
                self._stale = _half_a_batch("the gradients beside it can't be dropped")
            raise _invalid_gradients()
        from tinker import types

        future = self._client.optim_step(types.AdamParams(**adam))
        self._steps_under_way += 1
        return self._finish_step(future, sent, adam["learning_rate"])

    async def _finish_step(self, future: Awaitable[Any], sent: list[SentPass], rate: float) -> Result:
        try:
            answer = await self._result(future)
            self._steps_under_way -= 1
        except KitchenError as error:
            self._steps_under_way -= 1
            if not is_final_answer(error):
                raise
            self._stale = FailedPreconditionError(
                "Tinker failed at a step, and nobody knows which gradients it has left: load a checkpoint",
                reason="GRADIENTS_INVALID",
            )
            if _failed(sent):
                raise _invalid_gradients() from None
            if any(each.outcome is Outcome.NOT_FINITE for each in sent):
                raise FailedPreconditionError(
                    f"the gradients are not finite, the weights stay as they were: look at the loss weights, or lower "
                    f"the learning rate ({error.message})",
                    reason="NUMERIC_ERROR",
                ) from None
            raise
        if _failed(sent):
            self._lost = _half_a_batch("the step was taken without it")
            raise _invalid_gradients()
        self.optim_steps += 1
        self.weights_version += 1
        figures = {name: float(value) for name, value in (answer.metrics or {}).items()}
        norm = _taken(figures, _GRAD_NORM)
        if math.isinf(norm):
            self._lost = FailedPreconditionError(
                f"the gradient norm is {norm}, and the weights may have become so: load a checkpoint",
                reason="NUMERIC_ERROR",
            )
            raise self._lost
        return "optim_step", pb.OptimStepResult(
            grad_norm=norm,
            update_norm=_taken(figures, _UPDATE_NORM),
            learning_rate=rate,
            optim_steps=self.optim_steps,
            weights_version=self.weights_version,
            metrics=_renamed(figures),
        )

    async def save(
        self, name: str, *, weights_only: bool, ttl_seconds: float | None, expires_at: float | None
    ) -> Result:
        """Saves a checkpoint."""
        self._check()
        store = self._connection.checkpoints
        present = store.named(name)
        if present is not None:
            if not self._is_now(present.reference, weights_only):
                raise exists(name)
            return "checkpoint", present.describe()
        self._saves += 1
        at_tinker = f"{name.replace('/', '.')[-_NAME_CHARACTERS:].lstrip('.-')}-{self._saves}"
        ttl = ttl_at_tinker(ttl_seconds)
        # Two: training goes on from the one, and what is sampled from is the other.
        futures = (
            self._client.save_state(at_tinker, ttl_seconds=ttl),
            self._client.save_weights_for_sampler(at_tinker, ttl_seconds=ttl),
        )
        weights, sampler = [(await self._result(each)).path for each in futures]
        reference = Reference(
            weights=weights,
            sampler_weights=sampler,
            optimizer=None if weights_only else weights,
            base_model=self.facts.name,
            base_model_name=self.base_model_name,
            lora=describe_lora(self.lora.describe(self.facts)),
            optim_steps=self.optim_steps,
            weights_version=self.weights_version,
        )
        saved = Saved(name=name, uri=weights, reference=reference, files=reference.files(), expires_at=expires_at)
        return "checkpoint", store.add(saved).describe()

    def _is_now(self, reference: Reference, weights_only: bool) -> bool:
        of_this = reference.weights.startswith(f"tinker://{self._client.model_id}/")
        same = (reference.weights_version, reference.optimizer is None) == (self.weights_version, weights_only)
        return of_this and same

    async def load(self, uri: str, *, weights_only: bool) -> Result:
        """Goes on with a checkpoint's weights, in a new model at Tinker, which can't change one's weights."""
        store = self._connection.checkpoints
        path = store.path_at_tinker(uri)
        if path is not None:
            self._client = await self._loaded(path, weights_only=weights_only, uri=uri)
            self.optim_steps = 0
            result = pb.CheckpointResult(uri=uri, lora=self.lora.describe(self.facts), base_model=self.base_model_name)
        else:
            saved = store.find(uri)
            reference = saved.reference
            lora = self.lora.describe(self.facts)
            if (reference.base_model, reference.lora) != (self.facts.name, describe_lora(lora)):
                raise mismatch(uri, "is of another model or adapter: open another session for it")
            if reference.optimizer is None and not weights_only:
                raise mismatch(uri, "has no optimizer state: load it with weights_only")
            self._client = await self._loaded(reference.weights, weights_only=weights_only, uri=uri)
            self.optim_steps = reference.optim_steps
            result = saved.describe()
        self.weights_version += 1
        self._sent, self._lost, self._stale = [], None, None
        return "checkpoint", result

    @property
    def next_version(self) -> int:
        """Version of the weights behind the calls that were handed over."""
        return self.weights_version + self._steps_under_way

    async def publish(self, retry_config: Any) -> tuple[int, Any]:
        """The weights behind the calls that were handed over: their version and a SamplingClient that keeps them."""
        self._check()
        version = self.next_version
        return version, await self._result(self._client.save_weights_and_get_sampling_client(retry_config=retry_config))

    async def _loaded(self, path: str, *, weights_only: bool, uri: str) -> Any:
        service = self._service
        create = (
            service.create_training_client_from_state
            if weights_only
            else service.create_training_client_from_state_with_optimizer
        )
        try:
            client = await self._connection.result(create(path))
        except KitchenError as error:
            # The path is all that the request is about.
            if error.reason in (NOT_THERE, REFUSED):
                raise not_there(uri, f"uri ({error.message})") from None
            raise
        rank = client.get_info().lora_rank
        if rank is not None and rank != self.lora.rank:
            raise mismatch(uri, f"is an adapter of rank {rank}, the session's is {self.lora.rank}")
        return client

    def _check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def _check_gradients(self) -> None:
        self._check()
        if self._stale is not None:
            raise self._stale

    async def _result(self, future: Any) -> Any:
        if self._lost is not None:
            # Behind a call that Tinker has not got it may wait for ever.
            future.future().cancel()
            raise self._lost
        try:
            return await self._connection.result(future)
        except KitchenError as error:
            if not is_final_answer(error):
                # Whether Tinker has done it nobody knows, and the numbers of its calls have no gaps.
                self._lost = self._lost or error
            raise


def _read_pass(answer: Any, given: Pass) -> pb.ForwardResult:
    rows = [each["logprobs"].to_numpy() for each in answer.loss_fn_outputs]
    if len(rows) != len(given.data):
        raise ValueError(f"{len(rows)} outputs for {len(given.data)} datums")
    figures = {name: float(value) for name, value in answer.metrics.items()}
    loss = figures.pop("loss:sum")
    outputs = [pb.LossOutput(logprobs=to_tensor(np.asarray(row, dtype=np.float32))) for row in rows]
    return pb.ForwardResult(loss=loss, outputs=outputs, metrics=_renamed(figures))


def _taken(figures: dict[str, float], names: tuple[str, ...]) -> float:
    """The first figure of these names, out of the others; NaN: Tinker does not tell it."""
    for name in names:
        if name in figures:
            return figures.pop(name)
    return math.nan


def _renamed(figures: dict[str, float]) -> dict[str, float]:
    """Figures by names without the colon that Tinker puts before how parts are put together."""
    return {name.replace(":", "_"): value for name, value in figures.items()}


def _failed(sent: list[SentPass]) -> bool:
    return any(each.outcome in (Outcome.FAILED, Outcome.PARTLY_FAILED) for each in sent)


def _invalid_gradients() -> KitchenError:
    return FailedPreconditionError(
        "a forward_backward of this step did not take effect: send the whole step again", reason="GRADIENTS_INVALID"
    )


def _half_a_batch(why: str) -> KitchenError:
    return FailedPreconditionError(
        f"a forward_backward failed and {why}: load a checkpoint, the weights may have had part of a batch",
        reason="GRADIENTS_INVALID",
    )
