"""Objects of a Google Cloud Storage bucket, through google-cloud-storage.

The library sends every request once, for the adapter sends it again within its caller's deadline.
"""

from __future__ import annotations

import json
import threading
from base64 import b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader, FileIO
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from crucible_adapters.blob.folder import Record
from crucible_adapters.blob.objects import Changed, Object, Taken, Wanted
from crucible_adapters.blob.refusals import answered, malformed, timed_out, unaskable, unavailable
from crucible_adapters.blob.write import DEFAULT_MEDIA_TYPE
from crucible_adapters.retries import retry_after
from crucible_kit.adapter import AdapterOptions
from crucible_kit.errors import KitchenError, UnauthenticatedError, field_error
from crucible_kit.settings import hidden_value_error

PART_BYTES = 16 * 1024 * 1024
"""A larger file than the library sends at once, which are 8 MiB, goes in parts of so many bytes."""
AT_ONCE_BYTES = 8 * 1024 * 1024
_SHA256 = "crucible-sha256"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_write",)


class GcsOptions(AdapterOptions):
    """How Google Cloud Storage is reached."""

    endpoint_url: str | None = Field(
        default=None, pattern="^https?://[^/?#@]+", description="Address of an emulator or a private endpoint."
    )
    anon: bool = Field(default=False, description="Whether requests go without credentials.")
    user_project: str | None = Field(
        default=None, description="The project that pays, where the bucket's requester does."
    )
    connect_timeout: float = Field(default=60, gt=0, description="Most seconds until there is a connection.")
    read_timeout: float = Field(default=60, gt=0, description="Most seconds without a byte from the server.")


def gcs_options(values: Mapping[str, Any]) -> GcsOptions:
    """Raises what a validator may: it names the option, not its value, which may be a secret."""
    try:
        return GcsOptions(**values)
    except ValidationError as error:
        first = error.errors()[0]
        names = ", ".join(GcsOptions.model_fields)
        raise hidden_value_error(f"{first['loc'][0]}: {first['msg']}; with gs:// there are {names}") from None


class GcsBucket:
    """A bucket. Its library is loaded, and the connections are opened, when they are first needed.

    Args:
        bucket: its name.
        options: how it is reached.
        secrets: `token`, an OAuth 2 access token, or `service_account`, the JSON of a key file. Without, the library
            looks in its usual places.

    Raises:
        InvalidArgumentError: FIELD_INVALID when the secrets can't be used, or not together.
    """

    def __init__(self, bucket: str, options: GcsOptions, secrets: Mapping[str, str]) -> None:
        self._name = bucket
        self._options = options
        self._secrets = secrets
        self._account = _account(secrets["service_account"]) if "service_account" in secrets else None
        if len(secrets) + options.anon > 1:
            raise field_error(
                "secrets", "give one of token and service_account, or none with storage_options {anon: true}"
            )
        self._once: dict[str, Any] = {"retry": None, "timeout": (options.connect_timeout, options.read_timeout)}
        self._lock = threading.Lock()
        self._opened: Any = None

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._opened is None:
                from google.cloud.storage import Client

                endpoint = self._options.endpoint_url
                self._opened = Client(
                    project=None,
                    credentials=self._credentials(),
                    client_options={"api_endpoint": endpoint.rstrip("/")} if endpoint else None,
                )
                # For its traces it would ask for the bucket itself beside each call, and try that again and again.
                self._opened._bucket_metadata_cache = None
            return self._opened

    def _credentials(self) -> Any:
        from google.auth.credentials import AnonymousCredentials
        from google.oauth2.credentials import Credentials
        from google.oauth2.service_account import Credentials as ServiceAccount

        if self._options.anon:
            return AnonymousCredentials()
        if "token" in self._secrets:
            return Credentials(self._secrets["token"])
        if self._account is None:
            return None
        try:
            # It signs its tokens by itself: no server is asked for them, with tries and waits of its own.
            return ServiceAccount.from_service_account_info(self._account, scopes=_SCOPES, always_use_jwt_access=True)
        except ValueError:
            raise UnauthenticatedError(
                "the secret service_account holds no usable private key: give the whole JSON of the account's key file",
                reason="STORE_CREDENTIALS",
            ) from None

    @property
    def _bucket(self) -> Any:
        return self._client.bucket(self._name, user_project=self._options.user_project)

    def close(self) -> None:
        """Ends the connections."""
        with self._lock:
            client, self._opened = self._opened, None
        if client is not None:
            client.close()

    def uri(self, name: str) -> str:
        """Address of an object."""
        return f"gs://{self._name}/{name}"

    def head(self, name: str) -> Object | None:
        """What is known of an object; None: there is none."""
        with _of_form():
            found = self._bucket.get_blob(name, **self._once)
            if found is None:
                return None
            metadata = found.metadata or {}
            record = Record(
                int(found.size), str(metadata.get(_SHA256, "")), str(found.content_type or DEFAULT_MEDIA_TYPE)
            )
            return Object(record, str(int(found.generation)))

    def get(self, name: str, offset: int, size: int, version: str) -> bytes:
        """A range of one version. Raises Changed."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            # Raw: as it is stored. The checksum that is known is the whole object's.
            data: bytes = self._bucket.blob(name).download_as_bytes(
                start=offset,
                end=offset + size - 1,
                if_generation_match=int(version),
                raw_download=True,
                single_shot_download=True,
                checksum=None,
                **self._once,
            )
        except (NotFound, PreconditionFailed):
            raise Changed from None
        if len(data) != size:
            raise malformed("gcs")
        return data

    def put(self, name: str, path: Path, record: Record, *, create_only: bool, wanted: Wanted) -> None:
        """Stores a file, whole or not at all. Raises Taken, and what `wanted` raises."""
        from google.api_core.exceptions import PreconditionFailed

        target = self._bucket.blob(name, chunk_size=PART_BYTES)
        target.metadata = {_SHA256: record.sha256}
        # The checksum goes ahead of the bytes, so that an object of others is never seen. Checked afterwards, the
        # library would delete what is there by then.
        checksum: dict[str, Any] = {"checksum": "crc32c"}
        if record.size_bytes > AT_ONCE_BYTES:
            checksum = {"checksum": None, "crc32c_checksum_value": _crc32c(path)}
        with _Watched(path, wanted) as file, _of_form():
            try:
                target.upload_from_file(
                    file,
                    size=record.size_bytes,
                    content_type=record.media_type,
                    if_generation_match=0 if create_only else None,
                    **checksum,
                    **self._once,
                )
            except PreconditionFailed:
                raise Taken from None
            except ValueError as error:
                if type(error) is not ValueError:
                    raise
                raise _kept_a_piece() from None  # the library does not send the rest again

    def delete(self, name: str) -> None:
        """Removes an object."""
        from google.api_core.exceptions import NotFound

        with suppress(NotFound), _of_form():  # removed by somebody else
            self._bucket.delete_blob(name, **self._once)

    def list(self, prefix: str, after: str) -> Iterator[tuple[str, int]]:
        """Names with a prefix, after a name, with their sizes in bytes."""
        with _of_form():
            found = self._client.list_blobs(
                self._bucket,
                prefix=prefix,
                start_offset=after or None,  # and that name itself
                fields="items(name,size),nextPageToken",
                **self._once,
            )
            for each in found:
                if each.name != after:
                    yield str(each.name), int(each.size)


class _Watched(BufferedReader):
    """A file, of which a piece is only read when somebody still waits for it."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        super().__init__(FileIO(path))
        self._wanted = wanted

    def read(self, size: int | None = -1, /) -> bytes:
        """Bytes; raises what `wanted` raises."""
        self._wanted()
        return super().read(size)


def _crc32c(path: Path) -> str:
    """As the API writes it."""
    from google_crc32c import Checksum

    checksum = Checksum()
    with path.open("rb") as file:
        for _ in checksum.consume(file, 1024 * 1024):
            pass
    return b64encode(checksum.digest()).decode()


def _account(secret: str) -> dict[str, Any]:
    try:
        account = json.loads(secret)
    except ValueError:
        account = None
    if not isinstance(account, dict) or account.get("type") != "service_account":
        # The value is not shown.
        raise field_error(
            "secrets.service_account",
            'must be the JSON of a service account\'s key file, with "type": "service_account"; other kinds of '
            "credentials are found by GOOGLE_APPLICATION_CREDENTIALS",
        )
    return account


@contextmanager
def _of_form() -> Iterator[None]:
    """Around what reads an answer: the library finds one of another form by what Python raises."""
    try:
        yield
    except (KitchenError, OSError):
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if "google" in type(error).__module__:
            raise  # of google-auth
        raise malformed("gcs") from None


def gcs_error(error: Exception, *, now: float) -> KitchenError | None:
    """The error of the port that one of google-cloud-storage's stands for; None: it is none of those."""
    from google.api_core.exceptions import GoogleAPICallError
    from google.auth.exceptions import GoogleAuthError, TransportError
    from requests import exceptions
    from urllib3.exceptions import HTTPError, ReadTimeoutError

    if isinstance(error, GoogleAPICallError):
        return _answer(error, now)
    if isinstance(error, GoogleAuthError):
        if isinstance(error, TransportError) or error.retryable:
            return unavailable("gcs", f"gets no token from the server of the credentials ({type(error).__name__})")
        return UnauthenticatedError(
            f"gcs has no credentials, or they were refused ({type(error).__name__}): name the environment variable "
            "that holds them in the manifest, `secrets: {token: VARIABLE}` or `{service_account: VARIABLE}`",
            reason="STORE_CREDENTIALS",
        )
    if isinstance(error, exceptions.JSONDecodeError):
        return malformed("gcs")
    if isinstance(error, exceptions.ReadTimeout | ReadTimeoutError):
        return timed_out("gcs")
    if isinstance(error, exceptions.RequestException) and isinstance(error, ValueError):
        return unaskable("gcs", error)  # an address that is none
    if isinstance(error, exceptions.RequestException | HTTPError | ConnectionError):
        return unavailable("gcs", f"can't be reached, or broke the connection ({type(error).__name__})")
    return None


def _answer(error: Any, now: float) -> KitchenError:
    status = int(error.code)
    if status == 308:
        return _kept_a_piece()
    if status < 400:
        return malformed("gcs")
    try:
        # Of uploads and downloads, the library leaves it in the answer.
        code = str(error.response.json()["error"]["errors"][0]["reason"])
    except (AttributeError, LookupError, TypeError, ValueError):
        code = str(status)  # a proxy's
    return answered("gcs", code, status, retry_after(error.response.headers, now=now))


def _kept_a_piece() -> KitchenError:
    return unavailable("gcs", "has kept only a piece of what was sent")
