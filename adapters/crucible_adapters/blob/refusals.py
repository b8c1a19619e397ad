"""What stores of objects refuse, as errors of the port: the same for each store, whatever its library.

The library's texts are left out: they hold addresses and names of keys.
"""

from __future__ import annotations

from typing import Any

from crucible_adapters.retries import STATUS
from crucible_kit.errors import (
    DataLossError,
    DeadlineExceededError,
    FailedPreconditionError,
    KitchenError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnauthenticatedError,
    UnavailableError,
)


def answered(
    store: str,
    code: str,
    status: int,
    delay: float | None,
    *,
    busy: bool = False,
    bad_credentials: bool = False,
) -> KitchenError:
    """The error that an answer of a store's stands for.

    Args:
        store: its name, such as s3.
        code: the store's own word for it.
        status: of HTTP.
        delay: seconds that the store wants to be left alone; None: it doesn't say.
        busy: the code says that there are too many requests.
        bad_credentials: the code says that they are not known.
    """
    facts: dict[str, Any] = {"metadata": {"store": store, "code": code, STATUS: status}}
    if busy or status == 429:
        return ResourceExhaustedError(
            f"{store} wants fewer requests ({code})", reason="RATE_LIMITED", retry_delay=delay, **facts
        )
    if bad_credentials or status == 401:
        return UnauthenticatedError(
            f"{store} refuses the credentials ({code}): check the environment variables that the manifest names",
            reason="STORE_CREDENTIALS",
            **facts,
        )
    if status == 403:
        return PermissionDeniedError(
            f"the credentials may not do that in this bucket ({code})", reason="STORE_FORBIDDEN", **facts
        )
    if status == 408 or status >= 500:
        return unavailable(store, f"answers {status} ({code})", facts["metadata"], delay)
    return FailedPreconditionError(
        f"{store} refuses the request ({code}, {status}): check url and storage_options",
        reason="STORE_REFUSED",
        **facts,
    )


def unavailable(
    store: str, why: str, metadata: dict[str, Any] | None = None, delay: float | None = None
) -> UnavailableError:
    """The store is not there, or broke off."""
    return UnavailableError(
        f"{store} {why}: try again, or check endpoint_url and the network",
        reason="STORE_UNAVAILABLE",
        metadata=metadata,
        retry_delay=delay,
    )


def malformed(store: str) -> DataLossError:
    """The store answers with what its API has not."""
    return DataLossError(
        f"{store} answers with a body that is not of its API's form: check endpoint_url",
        reason="STORE_REPLY_MALFORMED",
    )


def timed_out(store: str) -> DeadlineExceededError:
    """The store is silent."""
    return DeadlineExceededError(f"{store} sent nothing within its read_timeout: try again", reason="STORE_TIMEOUT")


def unaskable(store: str, error: Exception) -> FailedPreconditionError:
    """The library refuses what it was given."""
    return FailedPreconditionError(
        f"{store} can't be asked ({type(error).__name__}): check storage_options", reason="STORE_REFUSED"
    )
