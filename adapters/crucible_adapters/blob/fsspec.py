"""BlobStore where fsspec reaches: a local folder, memory, or S3."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from crucible_adapters.blob.folder import BlobFolder
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

P = ParamSpec("P")
T = TypeVar("T")
_THREADS = 8
_SYSTEM_CLOCK = Clock()
_SCHEMES = {"file": "server", "memory": "server", "s3": "s3"}
"""What a URL may begin with, and the extra that brings its library."""
_LIBRARIES = {"file": "fsspec", "memory": "fsspec", "s3": "s3fs"}
_SECRETS = ("key", "secret", "token")
_SECRET_WORDS = ("secret", "token", "password", "access_key", "customerkey")


class FsspecBlobOptions(AdapterOptions):
    """Where the blobs are, and how they are reached."""

    url: str = Field(
        max_length=1024,
        description="`file:///folder`, `memory://name` or `s3://bucket/prefix`; the blobs are below it.",
    )
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Arguments of s3fs's S3FileSystem, such as endpoint_url and client_kwargs; none with other URLs. "
        "Its key, secret and token are secrets.",
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request to S3 is sent again; botocore's own retries are off."
    )

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in _SCHEMES:
            raise ValueError("must begin with file://, memory:// or s3://")
        if "?" in value or "#" in value or "@" in parts.netloc:
            raise ValueError("must hold no user, query or fragment")
        if any(part in (".", "..") for part in parts.path.split("/")):
            raise ValueError("must have no part '.' or '..'")
        if parts.scheme == "file" and (parts.netloc or not parts.path.strip("/")):
            raise ValueError("must name a folder of this machine: file:///folder")
        if parts.scheme == "s3" and not parts.netloc:
            raise ValueError("must name a bucket: s3://bucket/prefix")
        return value.rstrip("/") if not value.endswith("://") else value

    @field_validator("storage_options")
    @classmethod
    def _not_secret(cls, value: dict[str, Any]) -> dict[str, Any]:
        # The value is not shown: it may be what it should not be here.
        named = {name.lower() for name in _names(value)}
        if set(value) & {*_SECRETS, "username"} or any(word in name for name in named for word in _SECRET_WORDS):
            raise ValueError("must hold no key, secret, token, username or password: give them as secrets")
        return value


class FsspecBlobStore(BlobService):
    """Blobs below a URL.

    Args:
        clock: time and chance between tries; tests give their own.
    """

    description = AdapterDescription(name="fsspec-blobs", port="blob", options=FsspecBlobOptions, secrets=_SECRETS)

    def __init__(self, options: FsspecBlobOptions, context: AdapterContext, *, clock: Clock = _SYSTEM_CLOCK) -> None:
        self._scheme = urlsplit(options.url).scheme
        _require(self._scheme)
        if self._scheme != "s3" and (options.storage_options or context.secrets):
            raise field_error(
                "options.storage_options", f"and secrets are for s3:// only, not {self._scheme}://: leave them out"
            )
        self._retries = options.retries
        self._clock = clock
        self._bucket: S3Bucket | None = None
        place, staging = self._open(options, context)
        threads = Threads("blob", _THREADS)
        super().__init__(place, StagingArea(staging, threads), threads)

    def _open(self, options: FsspecBlobOptions, context: AdapterContext) -> tuple[Place, Path]:
        """Where the blobs are, and where contents grow."""
        own, parts = context.data_dir / "blob_staging", urlsplit(options.url)
        if self._scheme == "s3":
            prefix = parts.path.strip("/")
            self._bucket = S3Bucket(parts.netloc, {**options.storage_options, **context.secrets})
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
        if self._scheme != "s3" or self._threads.closed:
            return await once(context, function, *args, **kwargs)
        return await retried(
            lambda: once(context, function, *args, **kwargs),
            self._retries,
            time_remaining=context.time_remaining(),
            clock=self._clock,
        )

    def _errors(self) -> AbstractContextManager[None]:
        return _store_errors(self._clock) if self._scheme == "s3" else disk_errors()


@contextmanager
def _store_errors(clock: Clock) -> Iterator[None]:
    with disk_errors():  # of the folder where contents grow
        try:
            yield
        except KitchenError:
            raise
        except Exception as error:
            known = s3_error(error, now=clock.wall())
            if known is None:
                raise
            # Without its cause: texts and requests of the library may hold credentials.
            raise known from None


def _names(value: object) -> Iterator[str]:
    """The keys of a mapping, and of those within it."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield str(name)
            yield from _names(each)


def _require(scheme: str) -> None:
    """Looks for a library without loading it."""
    package, extra = _LIBRARIES[scheme], _SCHEMES[scheme]
    if find_spec("fsspec") is None or find_spec(package) is None:
        raise FailedPreconditionError(
            f"builtin:fsspec needs the Python package {package} for {scheme}://, which can't be imported: "
            f"pip install 'crucible-kitchen[{extra}]'",
            reason="PACKAGE_MISSING",
            metadata={"package": package, "extra": extra},
        )
