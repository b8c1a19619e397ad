"""BlobStore at a URL: a local folder, memory, S3, or Google Cloud Storage."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from crucible_adapters.blob.folder import BlobFolder
from crucible_adapters.blob.gcs import GcsBucket, gcs_error, gcs_options
from crucible_adapters.blob.local import disk_errors
from crucible_adapters.blob.memory import MemoryBlobs
from crucible_adapters.blob.objects import ObjectBlobs
from crucible_adapters.blob.s3 import S3Bucket, s3_error
from crucible_adapters.blob.service import BlobService, Place
from crucible_adapters.retries import Clock, RetryPolicy, retried
from crucible_adapters.staging import StagingArea
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import FailedPreconditionError, KitchenError, field_error
from crucible_kit.settings import hidden_value_error

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8
_SYSTEM_CLOCK = Clock()
_EXTRAS = {"file": "server", "memory": "server", "s3": "s3", "gs": "gcs"}
"""What a URL may begin with, and the extra that brings its library."""
_LIBRARIES = {"file": ("fsspec",), "memory": ("fsspec",), "s3": ("fsspec", "s3fs"), "gs": ("google.cloud.storage",)}
_SECRETS = {"s3": ("key", "secret", "token"), "gs": ("token", "service_account")}
_ALL_SECRETS = tuple(dict.fromkeys(name for names in _SECRETS.values() for name in names))
_SECRET_WORDS = ("secret", "token", "password", "access_key", "customerkey")


class FsspecBlobOptions(AdapterOptions):
    """Where the blobs are, and how they are reached."""

    url: str = Field(
        max_length=1024,
        description="`file:///folder`, `memory://name`, `s3://bucket/prefix` or `gs://bucket/prefix`; the blobs are "
        "below it.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="With s3://, arguments of s3fs's S3FileSystem, such as endpoint_url and client_kwargs; with gs://, "
        "those of the table below; none with other URLs. What is secret is no option.",
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy,
        description="When a request to S3 or Google Cloud Storage is sent again; the libraries' own retries are off.",
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _EXTRAS:
            raise ValueError("must begin with file://, memory://, s3:// or gs://")
        if "?" in value or "#" in value or "@" in parts.netloc:
            raise hidden_value_error("must hold no user, query or fragment")
        if any(part in (".", "..") for part in parts.path.split("/")):
            raise ValueError("must have no part '.' or '..'")
        if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
            raise ValueError("must name a folder of this machine: file:///folder")
        if parts.scheme in _SECRETS and not parts.netloc:
            raise ValueError(f"must name a bucket: {parts.scheme}://bucket/prefix")
        if parts.scheme == "gs" and not re.fullmatch("[a-z0-9][a-z0-9._-]*[a-z0-9]", parts.netloc):
            raise ValueError(
                "must name a bucket of lower-case letters, digits, - _ and ., with a letter or digit at ends"
            )
        return value.rstrip("/") if not value.endswith("://") else value

    @field_validator("storage_options")
    @classmethod
    def _not_secret(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        named = {name.lower() for name in _names(value)}
        if set(value) & {*_ALL_SECRETS, "username"} or any(word in name for name in named for word in _SECRET_WORDS):
            raise hidden_value_error("must hold no key, secret, token, username or password: give them as secrets")
        if any("@" in urlsplit(text).netloc for text in _texts(value) if "://" in text):
            raise hidden_value_error("must hold no address with a user or password: give them as secrets")
        if urlsplit(info.data.get("url", "")).scheme == "gs":
            gcs_options(value)
        return value


class FsspecBlobStore(BlobService):
    """Blobs below a URL.

    Args:
        clock: time and chance between tries; tests give their own.
    """

    description = AdapterDescription(name="fsspec-blobs", port="blob", options=FsspecBlobOptions, secrets=_ALL_SECRETS)

    def __init__(self, options: FsspecBlobOptions, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        self._scheme = urlsplit(options.url).scheme
        _require(self._scheme)
        if self._scheme not in _SECRETS and (options.storage_options or context.secrets):
            raise field_error(
                "options.storage_options",
                f"and secrets are for s3:// and gs:// only, not {self._scheme}://: leave them out",
            )
        if others := sorted(set(context.secrets) - set(_SECRETS.get(self._scheme, ()))):
            raise field_error(
                f"secrets.{others[0]}",
                f"is none with {self._scheme}://: it takes {', '.join(_SECRETS[self._scheme])}",
            )
        self._retries = options.retries
        self._clock = clock
        self._bucket: S3Bucket | GcsBucket | None = None
        place, staging = self._open(options, context)
        threads = Threads("blob", _THREADS)
        super().__init__(place, StagingArea(staging, threads), threads)

    def _open(self, options: FsspecBlobOptions, context: AdapterContext) -> tuple[Place, Path]:
        """Where the blobs are, and where contents grow."""
        own, parts = context.data_dir / "blob_staging", urlsplit(options.url)
        if self._scheme in _SECRETS:
            prefix = parts.path.strip("/")
            if self._scheme == "s3":
                self._bucket = S3Bucket(parts.netloc, {**options.storage_options, **context.secrets})
            else:
                self._bucket = GcsBucket(parts.netloc, gcs_options(options.storage_options), context.secrets)
            return ObjectBlobs(self._bucket, f"{prefix}/" if prefix else ""), own
        from fsspec.core import url_to_fs

        files, root = url_to_fs(options.url)
        if self._scheme == "memory":
            return MemoryBlobs(files, root.rstrip("/")), own
        folder = BlobFolder(Path(root))
        return folder, folder.staging

    async def close(self) -> None:
        """Ends threads and connections, and removes unfinished writes."""
        await super().close()
        if self._bucket is not None:
            await asyncio.to_thread(self._bucket.close)

    async def _run(self, context: Any, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        once = super()._run
        if self._bucket is None or self._threads.closed:
            return await once(context, function, *args, **kwargs)
        return await retried(
            lambda: once(context, function, *args, **kwargs),
            self._retries,
            time_remaining=context.time_remaining(),
            clock=self._clock,
        )

    def _errors(self) -> AbstractContextManager[None]:
        known = {"s3": s3_error, "gs": gcs_error}.get(self._scheme)
        return _store_errors(known, self._clock) if known else disk_errors()


class _KnownError(Protocol):
    """The error of the port that a library's stands for; None: it is none of its."""

    def __call__(self, error: Exception, *, now: float) -> KitchenError | None: ...


@contextmanager
def _store_errors(known: _KnownError, clock: Clock) -> Iterator[None]:
    with disk_errors():  # of the folder where contents grow
        try:
            yield
        except KitchenError:
            raise
        except Exception as error:
            told = known(error, now=clock.wall())
            if told is None:
                raise
            # Without its cause: texts and requests of the library may hold credentials.
            raise told from None


def _names(value: object) -> Iterator[str]:
    """The keys of a mapping, and of those within it."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield str(name)
            yield from _names(each)


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _require(scheme: str) -> None:
    """Looks for a library without loading it."""
    extra = _EXTRAS[scheme]
    for module in _LIBRARIES[scheme]:
        if not _is_there(module):
            package = module.replace(".", "-")
            raise FailedPreconditionError(
                f"builtin:fsspec needs the Python package {package} for {scheme}://, which can't be imported: "
                f"pip install 'crucible-kitchen[{extra}]'",
                reason="PACKAGE_MISSING",
                metadata={"package": package, "extra": extra},
            )


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # what it would be in
        return False
