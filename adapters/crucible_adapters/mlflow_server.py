"""An MLflow tracking server, through MLflow's own REST stores: one place for its connection, retries and errors."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from crucible_adapters.retries import STATUS, Clock, RetryPolicy, retried, retry_after
from crucible_adapters.threads import Threads
from crucible_kit.adapter import AdapterOptions
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
from crucible_kit.settings import hidden_value_error

T = TypeVar("T")
SYSTEM_CLOCK = Clock()
SECRETS = ("token", "username", "password")
RUN_TAG = "crucible.run_id"
"""Tag of MLflow's runs and model versions: the run that they are of."""
_RUN_KEY_TAG = "crucible.run_key"
_PLAIN = re.compile(r"[\w.\-]+")
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "INVALID_PARAMETER_VALUE")
_SAID_CHARACTERS = 300
_THREADS = 4


class MlflowOptions(AdapterOptions):
    """Where the tracking server is."""

    tracking_uri: str = Field(max_length=1024, description="Address of the tracking server, `http://` or `https://`.")
    timeout_seconds: float = Field(
        default=30.0, gt=0, le=3600, description="Longest wait for a connection, and for the next bytes of an answer."
    )
    retries: RetryPolicy = Field(
        default_factory=RetryPolicy, description="When a request is sent again; the library's own retries are off."
    )

    @field_validator("tracking_uri")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ValueError("must be the address of a tracking server, http:// or https://")
        if "@" in parts.netloc or "?" in value or "#" in value:
            raise hidden_value_error("must hold no user, query or fragment: give username and password as secrets")
        return value.rstrip("/")


class MlflowExperimentOptions(MlflowOptions):
    """Where the runs are."""

    experiment: str = Field(
        default="crucible-kitchen",
        min_length=1,
        max_length=255,
        description="Name of the experiment that the runs are in; the metrics' adapter makes it when there is none.",
    )


@dataclass(frozen=True)
class Stores:
    """MLflow's clients of the server: of its experiments and runs, and of its registered models."""

    tracking: Any
    registry: Any


class MlflowServer:
    """The server, as adapters call it.

    Args:
        name: the adapter's, for errors.
        secrets: token, or username and password.
        clock: time and chance between tries.
    """

    def __init__(self, name: str, options: MlflowOptions, secrets: Mapping[str, str], clock: Clock) -> None:
        if find_spec("mlflow") is None:
            raise FailedPreconditionError(
                f"builtin:{name} needs the Python package mlflow, which can't be imported: "
                "pip install 'crucible-kitchen[mlflow]'",
                reason="PACKAGE_MISSING",
                metadata={"package": "mlflow", "extra": "mlflow"},
            )
        self._options = options
        self._secrets = secrets
        self._clock = clock
        self._threads = Threads("mlflow", _THREADS)
        self._lock = threading.Lock()
        self._stores: Stores | None = None

    async def close(self) -> None:
        """Waits for the requests under way."""
        await self._threads.close()

    async def run(self, context: Any, function: Callable[[Stores], T]) -> T:
        """The function's result, in a thread; it is run again when the server's trouble may pass, and may be run twice.

        Raises:
            KitchenError: what the server, or the way to it, has against it.
        """

        def attempt() -> T:
            stores = self._loaded()
            try:
                return function(stores)
            except KitchenError:
                raise
            except Exception as error:
                known = self._translated(error)
                if known is None:
                    raise
                # Without its cause: texts and requests of the library may hold credentials.
                raise known from None

        async def in_thread() -> T:
            return await self._threads.run(attempt)

        if self._threads.closed:
            return await in_thread()
        remaining = context.time_remaining() if context is not None else None
        return await retried(in_thread, self._options.retries, time_remaining=remaining, clock=self._clock)

    def _loaded(self) -> Stores:
        with self._lock:
            if self._stores is None:
                self._stores = self._load()
            return self._stores

    def _load(self) -> Stores:
        # Nobody is told that this kitchen runs.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.store.model_registry.rest_store import RestStore as RegistryStore
        from mlflow.store.tracking.rest_store import RestStore as TrackingStore
        from mlflow.utils.rest_utils import MlflowHostCreds

        # It shows the first bytes of answers that are not of its form.
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        secret = self._secrets.get
        creds = MlflowHostCreds(
            self._options.tracking_uri,
            token=secret("token"),
            username=secret("username"),
            password=secret("password"),
        )
        call = self._call

        class Tracking(TrackingStore):
            def _call_endpoint(
                self,
                api: Any,
                json_body: Any = None,
                endpoint: Any = None,
                retry_timeout_seconds: Any = None,
                response_proto: Any = None,
            ) -> Any:
                path, method = self._METHOD_TO_INFO[api]
                return call(creds, endpoint or path, method, json_body, response_proto or api.Response())

        class Registry(RegistryStore):
            def _call_endpoint(
                self, api: Any, json_body: Any, call_all_endpoints: bool = False, extra_headers: Any = None
            ) -> Any:
                path, method = (
                    self._get_all_endpoints_from_method(api)[-1]
                    if call_all_endpoints
                    else self._get_endpoint_from_method(api)
                )
                return call(creds, path, method, json_body, api.Response())

        return Stores(Tracking(lambda: creds), Registry(lambda: creds))

    def _call(self, creds: Any, path: str, method: str, body: str | None, message: Any) -> Any:
        """One request, as mlflow.utils.rest_utils.call_endpoint sends it, without its retries."""
        import json

        from google.protobuf.json_format import ParseError
        from mlflow.exceptions import RestException
        from mlflow.utils.proto_json_utils import parse_dict
        from mlflow.utils.rest_utils import http_request

        content = json.loads(body) if body else {}
        given: dict[str, Any] = {"params": content} if method == "GET" else {"json": content}
        response: Any = http_request(
            creds,
            path,
            method,
            max_retries=0,
            timeout=self._options.timeout_seconds,
            raise_on_status=False,
            **given,
        )
        try:
            answer = response.json()
        except ValueError:
            answer = None
        status = response.status_code
        if status != 200:
            error = answer if isinstance(answer, dict) else {}
            if status in (401, 403, 408, 429) or status >= 500 or "error_code" not in error:
                raise self._by_status(status, str(error.get("error_code", "")), response.headers)
            raise RestException(error)
        try:
            parse_dict(js_dict=answer, message=message)
        except (ParseError, AttributeError, TypeError, ValueError):
            raise self._malformed() from None
        return message

    def _by_status(self, status: int, code: str, headers: Mapping[str, str]) -> KitchenError:
        facts: dict[str, Any] = {"metadata": {"store": "mlflow", STATUS: status, **({"code": code} if code else {})}}
        delay = retry_after({name.lower(): value for name, value in headers.items()}, now=self._clock.wall())
        where = f"mlflow at {self._options.tracking_uri}"
        if status == 401:
            return UnauthenticatedError(
                f"{where} refuses the credentials: check the environment variables that the manifest names for the "
                "secrets token, or username and password",
                reason="STORE_CREDENTIALS",
                **facts,
            )
        if status == 403:
            return PermissionDeniedError(
                f"the credentials may not do that at {where}", reason="STORE_FORBIDDEN", **facts
            )
        if status == 429:
            return ResourceExhaustedError(
                f"{where} wants fewer requests", reason="RATE_LIMITED", retry_delay=delay, **facts
            )
        if status == 408 or status >= 500:
            return UnavailableError(
                f"{where} answers {status}: try again", reason="STORE_UNAVAILABLE", retry_delay=delay, **facts
            )
        return DataLossError(
            f"{where} answers {status} without MLflow's form of an error: check tracking_uri",
            reason="STORE_REPLY_MALFORMED",
            **facts,
        )

    def _malformed(self) -> DataLossError:
        return DataLossError(
            f"mlflow at {self._options.tracking_uri} answers with a body that is not of its API's form: check "
            "tracking_uri",
            reason="STORE_REPLY_MALFORMED",
            metadata={"store": "mlflow"},
        )

    def _translated(self, error: Exception) -> KitchenError | None:
        from mlflow.exceptions import MlflowException, RestException
        from requests.exceptions import RequestException

        if isinstance(error, RestException):
            words = " ".join(str(error.message).split())
            for secret in self._secrets.values():
                words = words.replace(secret, "[redacted]")
            return FailedPreconditionError(
                f"mlflow refuses the request: {words[:_SAID_CHARACTERS]}",
                reason="STORE_REFUSED",
                metadata={"store": "mlflow", "code": error.error_code},
            )
        if not isinstance(error, MlflowException | RequestException):
            return None
        causes = _causes(error)
        names = {type(each).__name__ for each in causes}
        where = f"mlflow at {self._options.tracking_uri}"
        if "InvalidUrlException" in names or not any(isinstance(each, RequestException) for each in causes):
            return FailedPreconditionError(
                f"{where} can't be asked ({type(error).__name__}): check tracking_uri", reason="STORE_REFUSED"
            )
        if names & {"ReadTimeout", "ReadTimeoutError"}:
            return DeadlineExceededError(
                f"{where} sent nothing within timeout_seconds: raise it", reason="STORE_TIMEOUT"
            )
        return UnavailableError(
            f"{where} can't be reached, or broke the connection: try again, or check tracking_uri and the network",
            reason="STORE_UNAVAILABLE",
            metadata={"store": "mlflow"},
        )


def find_run(stores: Stores, experiment: str, run_id: str) -> str | None:
    """MLflow's id of a kitchen's run, by its tag; None: there is none in the experiment, or no such experiment."""
    there = stores.tracking.get_experiment_by_name(experiment)
    return find_run_in(stores, there.experiment_id, run_id) if there is not None else None


def find_run_in(stores: Stores, experiment_id: str, run_id: str) -> str | None:
    """The same of an experiment by its id."""
    from mlflow.entities import ViewType

    # A filter has no way to write every letter.
    tag = (RUN_TAG, run_id) if _PLAIN.fullmatch(run_id) else (_RUN_KEY_TAG, _run_key(run_id))
    found = stores.tracking.search_runs(
        [experiment_id],
        f"tags.`{tag[0]}` = '{tag[1]}'",
        ViewType.ACTIVE_ONLY,
        max_results=1,
        order_by=["attributes.start_time ASC"],
    )
    return found[0].info.run_id if found else None


def run_tags(run_id: str) -> dict[str, str]:
    """Tags of MLflow's run of a kitchen's run."""
    return {RUN_TAG: run_id, _RUN_KEY_TAG: _run_key(run_id)}


def _run_key(run_id: str) -> str:
    return hashlib.sha256(run_id.encode()).hexdigest()[:32]


def _causes(error: BaseException) -> list[BaseException]:
    """An exception, what it was raised from or beside, and what those hold as their reasons."""
    found: list[BaseException] = []
    upcoming: list[Any] = [error]
    while upcoming:
        each = upcoming.pop()
        if isinstance(each, BaseException) and each not in found:
            found.append(each)
            upcoming += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
    return found
