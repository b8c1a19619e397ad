"""What Tinker and its library answer in place of a result, as errors of the ports. One place for both ports."""

from __future__ import annotations

from crucible_adapters.llm.errors import Provider
from crucible_adapters.retries import STATUS
from crucible_kit.errors import (
    InvalidArgumentError,
    KitchenError,
    NotFoundError,
    UnavailableError,
)

REFUSED, FAILED = "PROVIDER_REFUSED_REQUEST", "PROVIDER_FAILED_REQUEST"
NOT_THERE = "PROVIDER_NOT_FOUND"
BROKEN = "PROVIDER_ERROR"
"""It is there and at work, but something is wrong with it or with a session: waiting won't help."""
_BROKEN_STATUSES = (409, 500, 501)


def is_final_answer(error: KitchenError) -> bool:
    """Whether Tinker has dealt with the request itself and is done with it: what comes after it goes on."""
    return error.reason in (REFUSED, FAILED, NOT_THERE)


def by_status(said: Provider, status: int, text: object, *, delay: float | None) -> KitchenError:
    """The error of an HTTP status."""
    if status == 404:
        return NotFoundError(
            f"{said.name} at {said.address} has no such thing: check the name, and that base_url is the address of its "
            f"API{said.said(text)}",
            reason=NOT_THERE,
            metadata={"provider": said.name, STATUS: status},
        )
    error = said.by_status(status, text, delay=delay)
    if status in _BROKEN_STATUSES:
        error.reason = BROKEN
    return error


def translated(said: Provider, error: BaseException) -> KitchenError | None:
    """The error of the port that one of the library's exceptions stands for; None: it is none of those."""
    if isinstance(error, KitchenError):
        return error
    if isinstance(error, TimeoutError):
        return said.timed_out()
    import tinker
    from tinker.lib.retryable_exception import RetryableException

    match error:
        case tinker.RequestFailedError():
            return _failed(said, error)
        case RetryableException():
            return said.unavailable("has lost a result", reason=BROKEN, status=410)
        case tinker.APIResponseValidationError():
            return said.malformed("with a body that is not of its API's form")
        case tinker.APITimeoutError():
            return said.timed_out()
        case tinker.APIConnectionError():
            return said.unavailable("can't be reached, or broke the connection")
        case tinker.APIStatusError():
            return by_status(said, error.status_code, error.message, delay=None)
        case ValueError() | TypeError() | KeyError() | AttributeError() | AssertionError():
            # The library's own words for replies that it can't read; they may hold anything.
            return said.malformed(f"with a reply that is not of its API's form ({type(error).__name__})")
        case RuntimeError():
            return UnavailableError(
                f"the library of {said.name} takes no more calls of this session{said.said(str(error))}",
                reason=BROKEN,
                metadata={"provider": said.name},
            )
    return None


def _failed(said: Provider, error: object) -> KitchenError:
    category = getattr(getattr(error, "category", None), "value", "unknown")
    text = str(getattr(error, "message", "")).removeprefix("Request failed: ").partition(" for self.request_id=")[0]
    metadata = {"provider": said.name, "category": category}
    if category == "user":
        return InvalidArgumentError(
            f"{said.name} refuses the request{said.said(text)}", reason=REFUSED, metadata=metadata
        )
    return UnavailableError(f"{said.name} failed at the request{said.said(text)}", reason=FAILED, metadata=metadata)
