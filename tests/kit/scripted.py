"""A real server on loopback, with answers of one's own in place of some of its."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

Answer = Callable[[Any], Iterable[bytes]]
"""A WSGI application without its environment: takes start_response."""


class Request(NamedTuple):
    """A request as it came: method, path and query."""

    method: str
    path: str
    query: str


class ScriptedServer:
    """A WSGI application, served.

    Args:
        application: is called for one request at a time.
        root: what all paths begin with, left out of requests.

    Attributes:
        address: with http://, without a slash at the end.
        requests: all so far but the oracle's.
        before: called with every request before the application has it; an answer it gives is sent in its place.
    """

    oracle_agent = "oracle"
    """Requests with it in their User-Agent go straight to the application."""

    def __init__(self, application: Any, *, root: str = "") -> None:
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log(self, type: str, message: str, *args: Any) -> None:
                pass

        self._application = application
        self._root = root
        self._lock = threading.Lock()
        self.requests: list[Request] = []
        self.before: Callable[[Request], Answer | None] = lambda request: None
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True, request_handler=Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if self.oracle_agent not in environ.get("HTTP_USER_AGENT", ""):
            path = environ["PATH_INFO"].removeprefix(self._root)
            request = Request(environ["REQUEST_METHOD"], path, environ["QUERY_STRING"])
            self.requests.append(request)
            answer = self.before(request)
            if answer is not None:
                environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                return answer(start_response)
        with self._lock:
            return list(self._application(environ, start_response))

    def forget(self) -> None:
        """Requests and answers of one's own."""
        self.requests.clear()
        self.before = lambda request: None

    def close(self) -> None:
        """Ends it."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def answer(status: str, content: bytes, *, length: int | None = None, **headers: str) -> Answer:
    """A status such as `200 OK`, and a body, which may be shorter than its length says; headers with _ for -."""
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]

    def send(start_response: Any) -> Iterable[bytes]:
        start_response(status, [("Content-Length", str(len(content) if length is None else length)), *given])
        return [content]

    return send
