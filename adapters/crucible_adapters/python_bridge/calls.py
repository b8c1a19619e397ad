"""The calls of one session, in its worker."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from google.protobuf.message import DecodeError

from crucible.port.python_bridge.v1 import python_bridge_pb2 as pb
from crucible_adapters.python_bridge.frames import Frame, encode, receive
from crucible_adapters.python_bridge.guard import Limits
from crucible_adapters.python_bridge.manifest import Library, Method, Parameter, PythonClass, parameters_of
from crucible_adapters.python_bridge.targets import Targets
from crucible_adapters.python_bridge.types import mismatch
from crucible_kit.errors import (
    FailedPreconditionError,
    KitchenError,
    NotFoundError,
    ResourceExhaustedError,
    to_status,
)
from crucible_kit.python_values import NotSerialisableError, class_name, from_value, to_value, unparseable

_TRACEBACK_CHARACTERS = 1500
_MAX_DEPTH = 32
_END = object()


def serve(connection: socket.socket, calls: Calls) -> None:
    """Answers the frames of a socket until it ends, or memory does."""
    while True:
        frame = receive(connection)
        if frame is None:
            os._exit(0)
        answer, out_of_memory = calls.answer(frame)
        connection.sendall(answer)
        if out_of_memory:
            os._exit(0)


class Calls:
    """Does what frames ask for, with the objects of the session."""

    def __init__(self, libraries: Mapping[str, Library], targets: Targets, limits: Limits) -> None:
        self._libraries = libraries
        self._targets = targets
        self._limits = limits
        self._objects: dict[str, Any] = {}
        self._streams: dict[str, Iterator[Any]] = {}
        self._does: dict[str, Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]] = {
            "function": self._function,
            "stream": self._stream,
            "next": self._next,
            "stop": self._stop,
            "method": self._method,
            "attribute": self._attribute,
            "release": self._release,
        }

    def answer(self, frame: Frame) -> tuple[bytes, bool]:
        """The frame of the answer, and whether the process has to end after it."""
        try:
            try:
                self._limits.start_call(frame.header["cpu_seconds"])
                return encode(*self._does[frame.header["do"]](frame.header, frame.payload)), False
            except KitchenError as error:
                return encode({"is": "refused"}, to_status(error).SerializeToString()), False
        except MemoryError:
            self._limits.make_room()
            return encode({"is": "out_of_memory"}), True

    def _function(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        library = self._libraries[header["library"]]
        entry = library.functions[header["function"]]
        args, kwargs = self._arguments(pb.CallFunctionRequest, payload, entry)
        with raised_by(library.name):
            result = self._targets[entry.target](*args, **kwargs)
        return self._result(header, result, entry.returns)

    def _stream(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        library = self._libraries[header["library"]]
        entry = library.functions[header["function"]]
        args, kwargs = self._arguments(pb.StreamFunctionRequest, payload, entry)
        with raised_by(library.name):
            self._streams[header["stream"]] = iter(self._targets[entry.target](*args, **kwargs))
        return {"is": "done"}, b""

    def _next(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        library = self._libraries[header["library"]]
        entry = library.functions[header["function"]]
        try:
            with raised_by(library.name):
                item = next(self._streams[header["stream"]], _END)
            if item is not _END:
                return self._result(header, item, entry.returns)
        except BaseException:
            self._streams.pop(header["stream"], None)
            raise
        del self._streams[header["stream"]]
        return {"is": "end"}, b""

    def _stop(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        items = self._streams.pop(header["stream"], None)
        close = getattr(items, "close", None)
        if close is not None:
            with raised_by(header["library"]):
                close()
        return {"is": "done"}, b""

    def _method(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        library = self._libraries[header["library"]]
        entry = library.classes[header["class"]].methods[header["method"]]
        obj = self._object(pb.ObjectRef(ref_id=header["ref_id"]))
        args, kwargs = self._arguments(pb.CallMethodRequest, payload, entry)
        with raised_by(library.name):
            result = getattr(obj, header["method"])(*args, **kwargs)
        return self._result(header, result, entry.returns)

    def _attribute(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        library = self._libraries[header["library"]]
        entry = library.classes[header["class"]].attributes[header["attribute"]]
        obj = self._object(pb.ObjectRef(ref_id=header["ref_id"]))
        with raised_by(library.name):
            value = getattr(obj, header["attribute"])
        return self._result(header, value, entry.returns)

    def _release(self, header: dict[str, Any], payload: bytes) -> tuple[dict[str, Any], bytes]:
        self._objects.pop(header["ref_id"], None)
        return {"is": "done"}, b""

    def _arguments(self, kind: type[Any], payload: bytes, entry: Method) -> tuple[list[Any], dict[str, Any]]:
        try:
            request = kind.FromString(payload)
        except DecodeError as error:  # the server has decoded it before: only its depth may differ
            raise unparseable("args", "can't be decoded") from error
        parameters = parameters_of(entry, len(request.args), sorted(request.kwargs))
        args = [
            self._argument(each, f"args[{place}]", parameters[f"args[{place}]"])
            for place, each in enumerate(request.args)
        ]
        kwargs = {}
        for name in sorted(request.kwargs):
            path = f"kwargs[{name!r}]"
            kwargs[name] = self._argument(request.kwargs[name], path, parameters[path])
        return args, kwargs

    def _argument(self, value: pb.Value, path: str, parameter: Parameter) -> Any:
        obj = from_value(value, path=path, resolve=self._object)
        wrong = mismatch(self._targets.type(parameter.type), obj, path, self._targets.__getitem__)
        if wrong is not None:
            raise unparseable(*wrong)
        most = parameter.max_length
        if most is not None and hasattr(obj, "__len__") and len(obj) > most:
            raise unparseable(path, f"has a length of {len(obj)}, at most {most} is allowed")
        return obj

    def _object(self, ref: pb.ObjectRef) -> Any:
        if ref.ref_id not in self._objects:
            raise NotFoundError(
                f"ref: there is no object {ref.ref_id!r}: it was released, or lost with its process",
                reason="REF_NOT_FOUND",
                metadata={"ref_id": ref.ref_id},
            )
        return self._objects[ref.ref_id]

    def _result(self, header: dict[str, Any], result: Any, returns: str) -> tuple[dict[str, Any], bytes]:
        wrong = mismatch(self._targets.type(returns), result, "result", self._targets.__getitem__)
        if wrong is not None:
            raise _not_serialisable(f"{wrong[0]} {wrong[1]}, as the manifest has it", result)
        if header["keep_as"]:
            self._objects[header["keep_as"]] = result
            kinds = [f"{library}\0{name}" for library, name, _ in self._classes_of(result)]
            return {"is": "kept", "class_name": class_name(result)[:500], "kinds": kinds}, b""
        try:
            value = to_value(self._plain(result, 0))
        except NotSerialisableError as error:
            raise _not_serialisable(str(error), result) from error
        size, most = value.ByteSize(), header["max_result_bytes"]
        if size > most:
            raise ResourceExhaustedError(
                f"the result has {size} bytes, at most {most} travel: ask for a reference",
                reason="RESULT_TOO_LARGE",
                metadata={"limit_bytes": most, "bytes": size},
            )
        return {"is": "value"}, value.SerializeToString(deterministic=True)

    def _plain(self, obj: Any, depth: int) -> Any:
        """The object with those inside made values whose class says how."""
        if depth > _MAX_DEPTH:
            return obj
        if type(obj) in (list, tuple):
            return [self._plain(each, depth + 1) for each in obj]
        if type(obj) is dict:
            return {key: self._plain(each, depth + 1) for key, each in obj.items()}
        if isinstance(obj, (type(None), bool, int, float, str, bytes)):
            return obj
        for library, _, kind in self._classes_of(obj):
            if kind.value:
                with raised_by(library):
                    return self._targets[kind.value](obj)
        return obj

    def _classes_of(self, obj: Any) -> list[tuple[str, str, PythonClass]]:
        """The classes of the manifests that an object is of, the closest first."""
        order = {kind: place for place, kind in enumerate(type(obj).__mro__)}
        found = [
            (order[self._targets[kind.target]], name, each, kind)
            for name, library in self._libraries.items()
            for each, kind in library.classes.items()
            if self._targets[kind.target] in order
        ]
        return [(library, name, kind) for _, library, name, kind in sorted(found, key=lambda each: each[:3])]


@contextmanager
def raised_by(library: str) -> Iterator[None]:
    """Turns what a library raises into PYTHON_EXCEPTION, but for the end of memory."""
    try:
        yield
    except MemoryError:
        raise
    except BaseException as error:
        frames = [f"  in {frame.name}" for frame in traceback.extract_tb(error.__traceback__, limit=-40)[1:]]
        message = _text(error)
        lines = [f"Traceback of {library} (most recent call last):", *frames, f"{class_name(error)}: {message}"]
        raise FailedPreconditionError(
            f"the call raised {class_name(error)}\n" + "\n".join(lines)[-_TRACEBACK_CHARACTERS:],
            reason="PYTHON_EXCEPTION",
            metadata={"exception_class": class_name(error), "exception_message": message},
        ) from None


def _text(error: BaseException) -> str:
    try:
        return str(error).encode("utf-8", "replace").decode()  # a lone surrogate does not travel
    except MemoryError:
        raise
    except BaseException as other:
        return f"<its text raises {class_name(other)}>"


def _not_serialisable(what: str, result: Any) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{what}, which is no value: ask for a reference (RESULT_MODE_REFERENCE)",
        reason="RESULT_NOT_SERIALISABLE",
        metadata={"class_name": class_name(result)},
    )
