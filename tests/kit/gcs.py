"""A server of Google Cloud Storage's JSON API on loopback: objects of one bucket, as the API's reference tells them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from tests.kit.scripted import Answer, ScriptedServer, answer

BUCKET = "kitchen"
TOKEN = "ya29.EXAMPLE-TOKEN-c0ffee"
_PIECE = 256 * 1024
_PARAMETERS = {"uploadType", "upload_id", "ifGenerationMatch", "alt", "prettyPrint", "projection", "fields"}
_PARAMETERS |= {"prefix", "startOffset", "pageToken", "maxResults", "userProject"}


class Stored(NamedTuple):
    """An object."""

    content: bytes
    about: dict[str, Any]
    generation: int

    def resource(self, name: str) -> dict[str, Any]:
        """As objects.get tells it."""
        return {
            "kind": "storage#object",
            "bucket": BUCKET,
            "name": name,
            "generation": str(self.generation),
            "size": str(len(self.content)),
            "crc32c": crc32c(self.content),
            "md5Hash": base64.b64encode(hashlib.md5(self.content).digest()).decode(),
            **self.about,
        }


class Refused(Exception):
    """The status and the reason of an answer."""


class Gcs(ScriptedServer):
    """The server; paths of its requests are whole.

    Attributes:
        objects: by name.
        sessions: uploads that have begun, by id.
        page: most entries of one answer of a list.
        authorizations: those of all requests.
    """

    def __init__(self) -> None:
        super().__init__(self._api)
        self.empty()

    def empty(self) -> None:
        """Forgets everything."""
        self.objects: dict[str, Stored] = {}
        self.sessions: dict[str, dict[str, Any]] = {}
        self.page = 1000
        self.authorizations: list[str | None] = []
        self._generation = 1_700_000_000_000_000
        self.forget()

    @staticmethod
    def altered(content: bytes) -> bytes:
        """What arrives of an upload."""
        return content

    def put(self, name: str, content: bytes, **about: Any) -> Stored:
        """Stores an object, as another tool would."""
        self._generation += 1
        self.objects[name] = Stored(content, about, self._generation)
        return self.objects[name]

    def _api(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.authorizations.append(environ.get("HTTP_AUTHORIZATION"))
        # WSGI has the bytes of a path as Latin-1.
        path = environ["PATH_INFO"].encode("latin-1").decode()
        query = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        found = re.fullmatch(rf"(/upload|/download)?/storage/v1/b/{BUCKET}/o(?:/(.+))?", path, re.DOTALL)
        try:
            assert set(query) <= _PARAMETERS, query
            assert found, path
            kind, name = found.groups()
            match environ["REQUEST_METHOD"], kind, name:
                case "GET", None, None:
                    told = self._list(query)
                case "GET", None, _:
                    told = self._there(name, query).resource(name)
                case "GET", "/download", _:
                    return self._media(environ, self._there(name, query))(start_response)
                case "DELETE", None, _:
                    self._there(name, query)
                    del self.objects[name]
                    return answer("204 No Content", b"")(start_response)
                case "POST", "/upload", None if query["uploadType"] == "multipart":
                    about, content = _parts(environ["CONTENT_TYPE"], body)
                    told = self._insert(about, content, query)
                case "POST", "/upload", None if query["uploadType"] == "resumable":
                    return self._begin(environ, json.loads(body), query)(start_response)
                case "PUT", "/upload", None:
                    return self._go_on(environ["HTTP_CONTENT_RANGE"], body, query)(start_response)
                case other:
                    raise AssertionError(other)
        except Refused as error:
            return refusal(*error.args)(start_response)
        return answer("200 OK", json.dumps(told).encode(), Content_Type="application/json")(start_response)

    def _there(self, name: str, query: dict[str, str]) -> Stored:
        if name not in self.objects:
            raise Refused("404 Not Found", "notFound")
        self._check(name, query)
        return self.objects[name]

    def _check(self, name: str, query: dict[str, str]) -> None:
        wanted = query.get("ifGenerationMatch")
        there = self.objects.get(name)
        if wanted is not None and int(wanted) != (there.generation if there else 0):
            raise Refused("412 Precondition Failed", "conditionNotMet")

    def _insert(self, about: dict[str, Any], content: bytes, query: dict[str, str]) -> dict[str, Any]:
        name = about.pop("name")
        self._check(name, query)
        content = self.altered(content)
        if about.pop("crc32c") != crc32c(content):
            raise Refused("400 Bad Request", "invalid")
        return self.put(name, content, **about).resource(name)

    def _begin(self, environ: dict[str, Any], about: dict[str, Any], query: dict[str, str]) -> Answer:
        self._check(about["name"], query)
        session = f"session-{len(self.sessions)}"
        about.setdefault("contentType", environ["HTTP_X_UPLOAD_CONTENT_TYPE"])
        self.sessions[session] = {"about": about, "query": query, "content": b""}
        place = f"{self.address}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={session}"
        return answer("200 OK", b"", Location=place)

    def _go_on(self, content_range: str, body: bytes, query: dict[str, str]) -> Answer:
        session = self.sessions[query["upload_id"]]
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", content_range)
        assert found, content_range
        first, last, whole = map(int, found.groups())
        assert (first, last + 1 - first) == (len(session["content"]), len(body))
        session["content"] += body
        if last + 1 < whole:
            assert len(body) % _PIECE == 0
            return answer("308 Resume Incomplete", b"", Range=f"bytes=0-{last}")
        del self.sessions[query["upload_id"]]
        told = self._insert(session["about"], session["content"], session["query"])
        return answer("200 OK", json.dumps(told).encode(), Content_Type="application/json")

    def _media(self, environ: dict[str, Any], there: Stored) -> Answer:
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", environ.get("HTTP_RANGE", ""))
        assert found
        first, last = map(int, found.groups())
        whole = len(there.content)
        if first >= whole:
            raise Refused("416 Requested Range Not Satisfiable", "requestedRangeNotSatisfiable")
        return answer(
            "206 Partial Content",
            there.content[first : last + 1],
            Content_Range=f"bytes {first}-{min(last, whole - 1)}/{whole}",
            X_Goog_Hash=f"crc32c={crc32c(there.content)}",
            X_Goog_Generation=str(there.generation),
        )

    def _list(self, query: dict[str, str]) -> dict[str, Any]:
        first = max(query.get("startOffset", ""), query.get("pageToken", ""), key=str.encode)
        names = [
            name
            for name in sorted(self.objects, key=str.encode)
            if name.startswith(query.get("prefix", "")) and name.encode() >= first.encode()
        ]
        size = min(int(query.get("maxResults", self.page)), self.page)
        told: dict[str, Any] = {
            "items": [{"name": name, "size": str(len(self.objects[name].content))} for name in names]
        }
        if len(names) > size:
            told = {"items": told["items"][:size], "nextPageToken": names[size]}
        return told if names else {}


def crc32c(content: bytes) -> str:
    """As the API writes it."""
    import google_crc32c

    return base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()


def refusal(status: str, reason: str, **headers: Any) -> Answer:
    """An error as the API tells it; it shows what it should not."""
    first = {"domain": "global", "reason": reason, "message": f"No. {TOKEN}"}
    told = {"error": {"code": int(status[:3]), "message": first["message"], "errors": [first]}}
    return answer(status, json.dumps(told).encode(), Content_Type="application/json", **headers)


def _parts(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The two parts of multipart/related: an object's resource, and its content."""
    boundary = content_type.partition('boundary="')[2].rstrip('"').encode()
    _, about, content, _ = body.split(b"--" + boundary)
    resource = json.loads(about.partition(b"\r\n\r\n")[2])
    headers, _, content = content.partition(b"\r\n\r\n")
    resource.setdefault("contentType", headers.partition(b"content-type: ")[2].decode())
    return resource, content.removesuffix(b"\r\n")


@contextmanager
def gcs_server() -> Iterator[Gcs]:
    """A server for the block."""
    server = Gcs()
    try:
        yield server
    finally:
        server.close()
