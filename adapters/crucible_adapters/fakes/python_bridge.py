"""A Python bridge to the functions of python_library alone, with every error that a bridge may answer."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.duration_pb2 import Duration
from pydantic import Field

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible.port.python_bridge.v1 import python_bridge_pb2_grpc
from crucible_adapters.fakes.python_library import CallTimeout, Clock, Function, Library, MemoryLimit, libraries
from crucible_adapters.fakes.python_sessions import LEASE_SECONDS, Session, Sessions
from crucible_adapters.fakes.seeded import Requests
from crucible_adapters.listing import page
from crucible_kit.adapter import AdapterContext, AdapterDescription, AdapterOptions
from crucible_kit.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    field_error,
)
from crucible_kit.python_values import NotSerialisableError, class_name, from_value, to_value, unparseable

_CALL_SECONDS = 60.0
_MEMORY_BYTES = 2**30
_MAX_RESULT_BYTES = 1024 * 1024
_TRACEBACK_CHARACTERS = 1500
_RETRY_SECONDS = 1.0


class FakePythonBridgeOptions(AdapterOptions):
    """How much there may be of it."""

    seed: int = Field(default=0, description="Without effect: functions follow from their arguments alone.")
    max_sessions: int = Field(default=64, ge=1, description="Sessions that may be open.")


class FakePythonBridge(python_bridge_pb2_grpc.PythonBridgeServiceServicer):
    """Calls the functions of python_library. Time passes only by limits.advance and limits.sleep; a call that runs out
    of time or memory loses the session's objects, as a process that is killed does.
    """

    description = AdapterDescription(
        name="fake-python-bridge",
        port="python_bridge",
        capabilities=("python_bridge.stream",),
        options=FakePythonBridgeOptions,
    )

    def __init__(self, options: FakePythonBridgeOptions, context: AdapterContext) -> None:
        self._options = options
        self._clock = Clock()
        self._libraries = libraries(self._clock)
        self._sessions = Sessions()
        self._requests: Requests[pb.OpenSessionResponse] = Requests()

    async def close(self) -> None:
        """It holds nothing that must be freed."""

    async def ListLibraries(self, request: pb.ListLibrariesRequest, context: Any) -> pb.ListLibrariesResponse:
        listed = [_describe(name, self._libraries[name]) for name in sorted(self._libraries)]
        shown, token = page(listed, lambda each: each.name, request, "ListLibraries")
        return pb.ListLibrariesResponse(libraries=shown, next_page_token=token)

    async def OpenSession(self, request: pb.OpenSessionRequest, context: Any) -> pb.OpenSessionResponse:
        self._expire()
        return self._requests.once(request, lambda: self._open(request))

    def _open(self, request: pb.OpenSessionRequest) -> pb.OpenSessionResponse:
        for name in request.libraries:
            self._library(name)
        timeout = _CALL_SECONDS
        if request.HasField("call_timeout"):
            timeout = request.call_timeout.ToTimedelta().total_seconds()
        if not 0 < timeout <= _CALL_SECONDS:
            raise field_error("call_timeout", f"is {timeout:g} s; it must be above 0 and at most {_CALL_SECONDS:g} s")
        memory = request.memory_limit_bytes if request.HasField("memory_limit_bytes") else _MEMORY_BYTES
        if memory > _MEMORY_BYTES:
            raise field_error("memory_limit_bytes", f"is {memory}, at most {_MEMORY_BYTES} are allowed")
        if len(self._sessions) >= self._options.max_sessions:
            raise ResourceExhaustedError(
                f"{len(self._sessions)} sessions are open, at most {self._options.max_sessions} may be: close one",
                reason="TOO_MANY_SESSIONS",
                metadata={"limit": self._options.max_sessions},
                retry_delay=_RETRY_SECONDS,
            )
        session = self._sessions.open(
            request.request_id,
            libraries=frozenset(request.libraries),
            call_timeout=timeout,
            memory_limit_bytes=memory,
            last_used=self._clock.now,
        )
        return pb.OpenSessionResponse(
            session_id=session.session_id,
            lease=Duration(seconds=int(LEASE_SECONDS)),
            call_timeout=_duration(timeout),
            memory_limit_bytes=memory,
        )

    async def CallFunction(self, request: pb.CallFunctionRequest, context: Any) -> pb.CallFunctionResponse:
        session = self._session(request.session_id)
        function = self._function(session, request.library, request.function)
        arguments, keywords = self._arguments(session, request, function.call)
        with self._limits(session), _raised_by(request.library):
            result = function.call(*arguments, **keywords)
        return pb.CallFunctionResponse(result=self._result(session, result, request.result_mode))

    async def StreamFunction(
        self, request: pb.StreamFunctionRequest, context: Any
    ) -> AsyncIterator[pb.StreamFunctionResponse]:
        session = self._session(request.session_id)
        function = self._function(session, request.library, request.function)
        if not function.streams:
            raise FailedPreconditionError(
                f"function: {request.library}.{request.function} is not streamed: use CallFunction",
                reason="FUNCTION_NOT_STREAMED",
                metadata={"library": request.library, "function": request.function},
            )
        arguments, keywords = self._arguments(session, request, function.call)
        with self._limits(session), _raised_by(request.library):
            items = iter(function.call(*arguments, **keywords))
        end = object()
        while True:
            session = self._session(request.session_id)  # it may have been closed in between
            with self._limits(session), _raised_by(request.library):
                item = next(items, end)
            if item is end:
                return
            yield pb.StreamFunctionResponse(item=self._result(session, item, request.result_mode))

    async def CallMethod(self, request: pb.CallMethodRequest, context: Any) -> pb.CallMethodResponse:
        session = self._session(request.session_id)
        obj = self._sessions.resolve(session, request.ref)
        library = self._allowed(obj, request.method, "method")
        method = getattr(obj, request.method)
        arguments, keywords = self._arguments(session, request, method)
        with self._limits(session), _raised_by(library):
            result = method(*arguments, **keywords)
        return pb.CallMethodResponse(result=self._result(session, result, request.result_mode))

    async def GetAttribute(self, request: pb.GetAttributeRequest, context: Any) -> pb.GetAttributeResponse:
        session = self._session(request.session_id)
        obj = self._sessions.resolve(session, request.ref)
        library = self._allowed(obj, request.attribute, "attribute")
        with self._limits(session), _raised_by(library):
            value = getattr(obj, request.attribute)
        return pb.GetAttributeResponse(value=self._result(session, value, request.result_mode))

    async def ReleaseRef(self, request: pb.ReleaseRefRequest, context: Any) -> pb.ReleaseRefResponse:
        self._sessions.release(self._session(request.session_id), request.ref)
        return pb.ReleaseRefResponse()

    async def CloseSession(self, request: pb.CloseSessionRequest, context: Any) -> pb.CloseSessionResponse:
        session = self._sessions.close(request.session_id)
        if session is not None:
            self._requests.forget(session.request_id)
        return pb.CloseSessionResponse()

    def _expire(self) -> None:
        for session in self._sessions.expire(self._clock.now):
            self._requests.forget(session.request_id)

    def _session(self, session_id: str) -> Session:
        self._expire()
        session = self._sessions.get(session_id)
        session.last_used = self._clock.now
        return session

    def _library(self, name: str) -> Library:
        if name not in self._libraries:
            raise _not_in_manifest("library", name, f"the manifest has {', '.join(sorted(self._libraries))}")
        if not self._libraries[name].version:
            raise FailedPreconditionError(
                f"library: {name} is in the manifest, but not installed on the bridge's machine",
                reason="LIBRARY_NOT_INSTALLED",
                metadata={"library": name},
            )
        return self._libraries[name]

    def _function(self, session: Session, library: str, name: str) -> Function:
        if session.libraries and library not in session.libraries:
            allowed = ", ".join(sorted(session.libraries))
            raise _not_in_manifest("library", library, f"this session was opened for {allowed}")
        functions = self._library(library).functions
        if name not in functions:
            raise _not_in_manifest("function", name, f"{library} has {', '.join(sorted(functions)) or 'none'}")
        return functions[name]

    def _allowed(self, obj: Any, name: str, kind: str) -> str:
        """The library whose manifest has a method or an attribute of the object."""
        for library, entry in self._libraries.items():
            names = (entry.methods if kind == "method" else entry.attributes).get(type(obj), ())
            if name in names:
                return library
        raise _not_in_manifest(kind, name, f"of the class {class_name(obj)}")

    def _arguments(
        self, session: Session, request: Any, function: Callable[..., Any]
    ) -> tuple[list[Any], dict[str, Any]]:
        """The arguments by position and by name, which the function takes."""
        args = [self._object(session, each, f"args[{place}]") for place, each in enumerate(request.args)]
        names = sorted(request.kwargs)
        kwargs = {name: self._object(session, request.kwargs[name], f"kwargs[{name!r}]") for name in names}
        try:
            inspect.signature(function).bind(*args, **kwargs)
        except TypeError as error:
            raise unparseable(_culprit(function, kwargs), str(error)) from error
        except ValueError:
            pass  # some builtins don't tell their parameters; the call itself will
        return args, kwargs

    def _object(self, session: Session, value: pb.Value, path: str) -> Any:
        return from_value(value, path=path, resolve=lambda ref: self._sessions.resolve(session, ref))

    def _result(self, session: Session, result: Any, mode: int) -> pb.Value:
        if mode == pb.RESULT_MODE_REFERENCE:
            return pb.Value(ref=self._sessions.keep(session, result))
        try:
            value = to_value(result)
        except NotSerialisableError as error:
            raise FailedPreconditionError(
                f"{error}, which is no value: ask for a reference (RESULT_MODE_REFERENCE)",
                reason="RESULT_NOT_SERIALISABLE",
                metadata={"class_name": class_name(result)},
            ) from error
        if value.ByteSize() > _MAX_RESULT_BYTES:
            raise ResourceExhaustedError(
                f"the result has {value.ByteSize()} bytes, at most {_MAX_RESULT_BYTES} travel: ask for a reference",
                reason="RESULT_TOO_LARGE",
                metadata={"limit_bytes": _MAX_RESULT_BYTES, "bytes": value.ByteSize()},
            )
        return value

    @contextmanager
    def _limits(self, session: Session) -> Iterator[None]:
        """Holds a call to the session's limits; past them its objects are lost."""
        self._clock.call_timeout, self._clock.memory_limit_bytes = session.call_timeout, session.memory_limit_bytes
        try:
            yield
        except CallTimeout as error:
            self._sessions.forget_objects(session)
            raise DeadlineExceededError(
                f"the call took longer than {session.call_timeout:g} s and was stopped; the session's objects are lost",
                reason="CALL_TIMEOUT",
                metadata={"limit_seconds": session.call_timeout},
            ) from error
        except MemoryLimit as error:
            self._sessions.forget_objects(session)
            raise ResourceExhaustedError(
                f"the call used more than {session.memory_limit_bytes} bytes and was stopped; "
                "the session's objects are lost",
                reason="MEMORY_LIMIT",
                metadata={"limit_bytes": session.memory_limit_bytes},
            ) from error
        finally:
            session.last_used = self._clock.now


@contextmanager
def _raised_by(library: str) -> Iterator[None]:
    """Turns what a function raises into PYTHON_EXCEPTION."""
    try:
        yield
    except (KitchenError, CallTimeout, MemoryLimit):
        raise
    except Exception as error:
        frames = [f"  in {frame.name}" for frame in traceback.extract_tb(error.__traceback__)[1:]]
        lines = [f"Traceback of {library} (most recent call last):", *frames, f"{class_name(error)}: {error}"]
        raise FailedPreconditionError(
            f"the call raised {class_name(error)}\n" + "\n".join(lines)[-_TRACEBACK_CHARACTERS:],
            reason="PYTHON_EXCEPTION",
            metadata={"exception_class": class_name(error), "exception_message": str(error)},
        ) from error


def _culprit(function: Callable[..., Any], keywords: Mapping[str, Any]) -> str:
    """The path of the argument that a function does not take."""
    parameters = inspect.signature(function).parameters
    unknown = sorted(name for name in keywords if name not in parameters)
    return f"kwargs[{unknown[0]!r}]" if unknown else "args"


def _not_in_manifest(kind: str, name: str, known: str) -> NotFoundError:
    return NotFoundError(
        f"{kind}: {name!r} is not in the manifest; {known}",
        reason=f"{kind.upper()}_NOT_IN_MANIFEST",
        metadata={"field": kind, kind: name},
    )


def _describe(name: str, library: Library) -> pb.Library:
    functions = [
        pb.Function(name=each, signature=_signature(entry.call), description=entry.description, streams=entry.streams)
        for each, entry in sorted(library.functions.items())
    ]
    kinds = {*library.methods, *library.attributes}
    classes = [
        pb.PythonClass(
            name=kind.__name__,
            methods=sorted(library.methods.get(kind, ())),
            attributes=sorted(library.attributes.get(kind, ())),
        )
        for kind in sorted(kinds, key=lambda each: each.__name__)
    ]
    return pb.Library(
        name=name, version=library.version, description=library.description, functions=functions, classes=classes
    )


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except ValueError:  # some builtins don't tell
        return ""


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
