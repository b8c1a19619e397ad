"""Exceptions of torch and the system as errors that a caller can act on."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from crucible_kit.errors import InternalError, KitchenError, ResourceExhaustedError

logger = logging.getLogger(__name__)


@contextmanager
def storage_errors() -> Iterator[None]:
    """Raises what the system says of the work folder's disk as an error that names the fix."""
    try:
        yield
    # some of ours are OSErrors too
    except KitchenError:
        raise
    except OSError as error:
        raise _storage_failed(error) from error


def _storage_failed(error: OSError) -> KitchenError:
    return ResourceExhaustedError(
        f"the engine's work folder cannot be used: {error.strerror or error}: free space or fix its permissions",
        reason="STORAGE_FAILED",
    )


def as_kitchen_error(error: BaseException, where: str) -> KitchenError:
    """The error itself if it is one of ours; what is not known becomes an INTERNAL that names an entry of the log."""
    if isinstance(error, KitchenError):
        return error
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return ResourceExhaustedError(
            "the device has too little memory for this call: send shorter sequences, or start the engine with a "
            "smaller --micro-batch-tokens",
            reason="OUT_OF_MEMORY",
        )
    if isinstance(error, OSError):
        return _storage_failed(error)
    error_id = uuid.uuid4().hex[:12]
    logger.error("%s failed, error_id %s", where, error_id, exc_info=error)
    return InternalError(
        f"internal error {error_id}: the engine's log has the details",
        reason="INTERNAL_BUG",
        metadata={"error_id": error_id},
    )
