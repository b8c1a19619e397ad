"""Objects of an S3 bucket, through s3fs."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from crucible_adapters.blob.folder import Record
from crucible_adapters.blob.objects import Changed, Object, Taken, Wanted
from crucible_adapters.blob.refusals import answered, malformed, timed_out, unaskable, unavailable
from crucible_adapters.blob.write import DEFAULT_MEDIA_TYPE
from crucible_adapters.retries import retry_after
from crucible_kit.errors import KitchenError, UnauthenticatedError

PART_BYTES = 16 * 1024 * 1024
"""A larger file is uploaded in parts of so many bytes, or more when S3's most parts would not do."""
_MOST_PARTS = 10_000
_SHA256 = "crucible-sha256"
_BAD_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "InvalidSecurity"}
_BUSY = {"SlowDown", "ServiceUnavailable", "TooManyRequests", "RequestLimitExceeded", "Throttling", "429"}


class S3Bucket:
    """A bucket. Its library is loaded, and the connections are opened, when they are first needed.

    Args:
        bucket: its name.
        options: arguments of S3FileSystem, secrets among them.
    """

    def __init__(self, bucket: str, options: Mapping[str, Any]) -> None:
        self._bucket = bucket
        # The adapter sends requests again, within its caller's deadline.
        config = {"retries": {"total_max_attempts": 1}, **options.get("config_kwargs", {})}
        self._options = {**options, "config_kwargs": config}
        self._lock = threading.Lock()
        self._opened: Any = None

    @property
    def _files(self) -> Any:
        with self._lock:
            if self._opened is None:
                from s3fs import S3FileSystem

                self._opened = S3FileSystem(**self._options, skip_instance_cache=True, use_listings_cache=False)
                self._opened.retries = 1
            return self._opened

    def close(self) -> None:
        """Ends the connections."""
        with self._lock:
            files, self._opened = self._opened, None
        if files is not None:
            files.close_session(files.loop, files.s3)

    def uri(self, name: str) -> str:
        """Address of an object."""
        return f"s3://{self._bucket}/{name}"

    def head(self, name: str) -> Object | None:
        """What is known of an object; None: there is none."""
        try:
            answer = self._call("head_object", name)
        except FileNotFoundError:
            return None
        metadata = answer.get("Metadata", {})
        record = Record(
            answer["ContentLength"], metadata.get(_SHA256, ""), answer.get("ContentType") or DEFAULT_MEDIA_TYPE
        )
        return Object(record, answer["ETag"])

    def get(self, name: str, offset: int, size: int, version: str) -> bytes:
        """A range of one version. Raises Changed."""
        from fsspec.asyn import sync

        try:
            answer = self._call("get_object", name, Range=f"bytes={offset}-{offset + size - 1}", IfMatch=version)
        except OSError as error:
            if isinstance(error, FileNotFoundError) or _answer(error)[0] in ("PreconditionFailed", "412"):
                raise Changed from None
            raise
        try:
            return cast(bytes, sync(self._files.loop, answer["Body"].read))
        finally:
            answer["Body"].close()

    def put(self, name: str, path: Path, record: Record, *, create_only: bool, wanted: Wanted) -> None:
        """Stores a file, whole or not at all. Raises Taken, and what `wanted` raises."""
        about = {"ContentType": record.media_type, "Metadata": {_SHA256: record.sha256}}
        condition = {"IfNoneMatch": "*"} if create_only else {}
        wanted()
        with _taken():
            if record.size_bytes <= PART_BYTES:
                self._call("put_object", name, Body=path.read_bytes(), **about, **condition)
            else:
                self._put_parts(name, path, record.size_bytes, about, condition, wanted)

    def _put_parts(
        self, name: str, path: Path, size: int, about: dict[str, Any], condition: dict[str, str], wanted: Wanted
    ) -> None:
        upload = {"UploadId": self._call("create_multipart_upload", name, **about)["UploadId"]}
        part_bytes = max(PART_BYTES, math.ceil(size / _MOST_PARTS))
        parts: list[dict[str, Any]] = []
        try:
            with path.open("rb") as file:
                while data := file.read(part_bytes):
                    wanted()
                    answer = self._call("upload_part", name, PartNumber=len(parts) + 1, Body=data, **upload)
                    parts.append({"PartNumber": len(parts) + 1, "ETag": answer["ETag"]})
            wanted()
            self._call("complete_multipart_upload", name, MultipartUpload={"Parts": parts}, **upload, **condition)
        except BaseException:
            with suppress(Exception):  # the first error counts; what is left can be expired by a rule of the bucket
                self._call("abort_multipart_upload", name, **upload)
            raise

    def delete(self, name: str) -> None:
        """Removes an object."""
        self._call("delete_object", name)

    def list(self, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        """Names with a prefix, after a name, with their sizes in bytes."""
        further: dict[str, Any] = {"StartAfter": after} if after else {}
        while True:
            answer = self._files.call_s3("list_objects_v2", Bucket=self._bucket, Prefix=prefix, **further)
            yield from ((each["Key"], each["Size"]) for each in answer.get("Contents", ()))
            if not answer["IsTruncated"]:
                return
            further = {"ContinuationToken": answer["NextContinuationToken"]}

    def _call(self, method: str, name: str, **arguments: Any) -> Any:
        return self._files.call_s3(method, Bucket=self._bucket, Key=name, **arguments)


@contextmanager
def _taken() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if _answer(error)[0] in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise Taken from None
        raise


def s3_error(error: Exception, *, now: float) -> KitchenError | None:
    """The error of the port that one of s3fs's or botocore's stands for; None: it is none of those."""
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    cause = error.__cause__ if isinstance(error, OSError) and error.__cause__ is not None else error
    code, status, headers = _answer(error)
    if code:
        return answered(
            "s3",
            code,
            status,
            retry_after(headers, now=now),
            busy=code in _BUSY,
            bad_credentials=code in _BAD_CREDENTIALS,
        )
    if isinstance(cause, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return UnauthenticatedError(
            "s3 has no credentials: name the environment variables that hold them in the manifest, "
            "`secrets: {key: VARIABLE, secret: VARIABLE}`",
            reason="STORE_CREDENTIALS",
        )
    if isinstance(cause, ResponseParserError | KeyError):
        return malformed("s3")
    if isinstance(cause, exceptions.ReadTimeoutError | TimeoutError):
        return timed_out("s3")
    if isinstance(cause, _broken()):
        return unavailable("s3", f"can't be reached, or broke the connection ({type(cause).__name__})")
    if type(cause).__module__.partition(".")[0] in ("aiohttp", "aiobotocore"):
        return unavailable("s3", f"broke the connection ({type(cause).__name__})")
    if isinstance(cause, exceptions.BotoCoreError):
        return unaskable("s3", cause)
    return None


def _broken() -> tuple[type[Exception], ...]:
    from botocore import exceptions

    return (
        exceptions.ConnectionError,
        exceptions.HTTPClientError,
        exceptions.IncompleteReadError,
        exceptions.ResponseStreamingError,
        ConnectionError,
    )


def _answer(error: BaseException) -> tuple[str, int, Mapping[str, str]]:
    """Code, HTTP status and headers of an answer of S3's that an exception stands for; empty: it stands for none."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, Mapping) and "Error" in response:
            about = response.get("ResponseMetadata", {})
            return str(response["Error"].get("Code")), about.get("HTTPStatusCode", 0), about.get("HTTPHeaders", {})
    return "", 0, {}
