"""The libraries' exceptions as errors of the ports."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import httpx

from crucible_adapters.dataset.splits import dataset_not_found
from crucible_adapters.huggingface.http import RateLimited, wait_of
from crucible_kit.errors import (
    DataLossError,
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    UnavailableError,
    field_error,
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What an operation is about, for its errors.

    Attributes:
        kind: model or dataset.
        repo: owner/name.
        revision: branch, tag or commit; empty: the default.
        endpoint: the hub's address.
        token_variable: name of the environment variable that holds the token.
        path: the file in it, if it is about one.
    """

    kind: Literal["model", "dataset"]
    repo: str
    revision: str
    endpoint: str
    token_variable: str
    path: str = ""

    def not_found(self, why: str) -> NotFoundError:
        """The repository is not there, or not for this caller."""
        if self.kind == "dataset":
            return dataset_not_found(self.repo, why)
        return NotFoundError(f"repository {self.repo!r}: {why}", reason="REPO_NOT_FOUND", metadata={"repo": self.repo})

    def revision_not_found(self) -> NotFoundError:
        """It has no such branch, tag or commit."""
        why = f"{self.endpoint} has no branch, tag or commit {self.revision!r} of it"
        if self.kind == "dataset":
            return dataset_not_found(self.repo, why)
        return NotFoundError(
            f"repository {self.repo!r}: {why}",
            reason="REVISION_NOT_FOUND",
            metadata={"repo": self.repo, "revision": self.revision},
        )

    def access_denied(self, why: str) -> PermissionDeniedError:
        """The hub knows the caller too little."""
        page = f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.repo}"
        return PermissionDeniedError(
            f"{self.kind} {self.repo!r}: {why}; set {self.token_variable} in the server's environment to a token that "
            f"may, and where {page} asks for consent, give it there",
            reason="REPO_ACCESS_DENIED",
            metadata={"repo": self.repo, "variable": self.token_variable},
        )

    def unreachable(self, why: str) -> UnavailableError:
        """The hub does not answer, and what is wanted is not in the cache."""
        return UnavailableError(
            f"{self.kind} {self.repo!r} is not in the cache as a whole, and {self.endpoint} can't be asked ({why}): "
            "try again, check HF_ENDPOINT and the network, or give an absolute path",
            reason="HUB_UNREACHABLE",
            metadata={"repo": self.repo, "endpoint": self.endpoint},
        )


def translated(error: BaseException, subject: Subject) -> KitchenError | None:
    """The error of the port that an exception stands for; None for one that is no outcome but a defect."""
    for each in _chain(error):
        known = _known(each, subject)
        if known is not None:
            return known
    return None


def is_unreachable(error: BaseException) -> bool:
    """Whether the hub could not be asked, so that what is cached has to do."""
    return any(
        isinstance(each, httpx.TransportError | OfflineModeIsEnabled)
        or (isinstance(each, HfHubHTTPError) and each.response.status_code >= 500)
        for each in _chain(error)
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The exception and its causes, outermost first. Not its context: the library tries one thing after another."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _known(error: BaseException, subject: Subject) -> KitchenError | None:
    match error:
        case KitchenError():
            return error
        case RateLimited():
            return _rate_limited(error.seconds, subject)
        case GatedRepoError() | DisabledRepoError():
            return subject.access_denied(_said(error) or "access to it is restricted")
        case RepositoryNotFoundError():
            return subject.not_found(
                f"{subject.endpoint} does not show it: it does not exist, or it is private; check the name (files and "
                f"folders need an absolute path), or set {subject.token_variable} to a token that may read it"
            )
        case RevisionNotFoundError():
            return subject.revision_not_found()
        case LocalEntryNotFoundError():
            return None if error.__cause__ is not None else subject.unreachable("it is not in the cache")
        case EntryNotFoundError() if subject.kind == "dataset":
            return dataset_not_found(subject.repo, "files that it names are not there")
        case EntryNotFoundError():
            return NotFoundError(
                f"{subject.repo} has no file {subject.path!r}: ListRepoFiles lists those it has",
                reason="HUB_FILE_NOT_FOUND",
                metadata={"repo": subject.repo, "path": subject.path},
            )
        case HfHubHTTPError():
            return _by_status(error, subject)
        case FileMetadataError():
            return FailedPreconditionError(
                f"{subject.endpoint} does not answer as a hub does: check HF_ENDPOINT and the proxy",
                reason="HUB_REFUSED",
                metadata={"repo": subject.repo, "endpoint": subject.endpoint},
            )
        case OfflineModeIsEnabled():
            return subject.unreachable("HF_HUB_OFFLINE is set")
        case httpx.TransportError():
            return subject.unreachable(type(error).__name__)
        case HFValidationError():
            field = "source.uri" if subject.kind == "dataset" else "ref.repo"
            return field_error(field, f"{subject.repo!r} is no name of a repository")
        case OSError() if "Consistency check failed" in str(error):
            return DataLossError(
                f"{subject.repo}: the hub sent a file of another size than it told; nothing was kept: try again",
                reason="HUB_FILE_CORRUPT",
                metadata={"repo": subject.repo},
            )
        case OSError() if error.errno is not None and error.filename is not None:
            return FailedPreconditionError(
                f"the cache folder can't be used: {error.filename}: {error.strerror}; free space, or set the option "
                "cache_dir",
                reason="HUB_CACHE_UNUSABLE",
                metadata={"path": error.filename},
            )
    return None


def _by_status(error: HfHubHTTPError, subject: Subject) -> KitchenError:
    status = error.response.status_code
    said = _said(error)
    if status in (401, 403):
        return subject.access_denied(f"{subject.endpoint} answers {status}{f' ({said})' if said else ''}")
    if status == 429:
        return _rate_limited(wait_of(error.response), subject)
    if status == 412:
        return subject.revision_not_found()
    if status >= 500 or status == 408:
        return subject.unreachable(f"it answers {status}")
    return FailedPreconditionError(
        f"{subject.kind} {subject.repo!r}: {subject.endpoint} answers {status}{f': {said}' if said else ''}",
        reason="HUB_REFUSED",
        metadata={"repo": subject.repo, "status": status},
    )


def _rate_limited(seconds: float, subject: Subject) -> ResourceExhaustedError:
    return ResourceExhaustedError(
        f"{subject.endpoint} wants fewer requests: try again in {seconds:g} s; a token in {subject.token_variable} "
        "raises its limit",
        reason="HUB_RATE_LIMITED",
        metadata={"endpoint": subject.endpoint},
        retry_delay=seconds,
    )


def _said(error: HfHubHTTPError) -> str:
    """What the hub says itself. Not the library's text: it holds addresses that may be signed."""
    return (error.server_message or "").strip().rstrip(".")[:300]
