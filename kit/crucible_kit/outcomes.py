"""What a handler's failure becomes for its caller, the same whether a wire is between them or not."""

from __future__ import annotations

import asyncio
import logging
import uuid
from typing import Any

from crucible_kit.capabilities import capability_of
from crucible_kit.errors import (
    DeadlineExceededError,
    InternalError,
    UnavailableError,
    UnimplementedError,
    capability_missing,
)

logger = logging.getLogger(__name__)


def is_generated_default(handler: Any) -> bool:
    """Whether a handler is the one of the generated base class: nobody wrote this method."""
    return getattr(handler, "__module__", "").endswith("_pb2_grpc")


def method_missing(method: str) -> UnimplementedError:
    """The error of a method that nobody serves: CAPABILITY_MISSING where it belongs to an optional behaviour."""
    capability = capability_of(method)
    if capability:
        name = method.rpartition("/")[2]
        return capability_missing(capability.partition(".")[0], capability, f"{name} is not served here")
    return UnimplementedError(f"{method}: nobody serves it here", reason="METHOD_MISSING", metadata={"method": method})


def deadline_exceeded(method: str, limit: float) -> DeadlineExceededError:
    """The error of a call that took longer than `limit` seconds."""
    return DeadlineExceededError(
        f"{method} did not answer within {limit:g} s: set a deadline that fits",
        reason="DEADLINE_EXCEEDED",
        metadata={"method": method},
    )


def interrupted(method: str) -> UnavailableError:
    """The error of a handler that ended by a CancelledError though nobody cancelled the call."""
    return UnavailableError(f"{method} was interrupted: try again", reason="INTERRUPTED", metadata={"method": method})


def hidden(method: str, error: BaseException) -> InternalError:
    """An INTERNAL that tells nothing of the exception but where to look: under its error_id in the log."""
    error_id = uuid.uuid4().hex[:12]
    logger.error("%s failed, error_id %s", method, error_id, exc_info=error)
    return InternalError(
        f"internal error {error_id}: the server's log has the details",
        reason="INTERNAL_BUG",
        metadata={"error_id": error_id, "method": method},
    )


def task_is_cancelled() -> bool:
    """Whether somebody asked the current task to stop; False: a CancelledError came up from below by itself."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
