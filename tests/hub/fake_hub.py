"""A hub on a port of this machine: the part of the Hugging Face hub's HTTP interface that its libraries use."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

DATE = "2026-01-02T03:04:05.000Z"
LFS_SUFFIXES = (".safetensors", ".bin", ".gguf", ".parquet")
_PIECE = 64 * 1024
_REPO = r"(?P<owner>[^/]+)/(?P<name>[^/]+)"


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_lfs(path: str) -> bool:
    return path.endswith(LFS_SUFFIXES)


@dataclass
class FakeRepo:
    """One repository: commits, branches, who may read it."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    token: str = ""
    """Without this token the repository does not exist."""
    gated: bool = False
    """Everybody sees it; files only for `consents`."""
    consents: set[str] = field(default_factory=set)
    ignored: str = ""
    """A path that the repository's .gitignore names."""

    def commit(self, files: Mapping[str, bytes], branch: str = "main") -> str:
        sha = hashlib.sha1(json.dumps([len(self.commits), *sorted(files)]).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches[branch] = sha
        return sha

    def resolve(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


@dataclass
class Request:
    """What was asked, and how many bytes of the answer's body went out."""

    method: str
    path: str
    token: str
    agent: str
    sent: int = 0


@dataclass
class Fault:
    """What happens instead of the answer to requests whose path matches."""

    pattern: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    change: Callable[[bytes], bytes] | None = None
    """Another body of the same answer."""
    hang: threading.Event | None = None
    """Half of the body, then nothing until this is set."""
    reached: threading.Event = field(default_factory=threading.Event)


class FakeHub:
    """The server. `url` is its address, `requests` what was asked of it."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], FakeRepo] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.stored: dict[str, bytes] = {}
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # Another host to the libraries, as the hub's storage is.
        self.storage_url = f"http://localhost:{self._server.server_port}"

    def add(self, kind: str, name: str, files: Mapping[str, bytes], **attributes: Any) -> FakeRepo:
        """A repository; kind is models or datasets."""
        repo = self.repos[kind, name] = FakeRepo(**attributes)
        repo.commit(files)
        return repo

    def close(self) -> None:
        for fault in self.faults:
            if fault.hang is not None:
                fault.hang.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def asked(self, pattern: str = "") -> list[Request]:
        """The requests whose method and path match."""
        return [each for each in self.requests if re.search(pattern, f"{each.method} {each.path}")]


class _Handler(BaseHTTPRequestHandler):
    state: FakeHub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def setup(self) -> None:
        # What waits in the kernel counts as sent: little may.
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _PIECE)
        super().setup()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        self.content = self.rfile.read(length) if length else self._chunked()
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.fault = next((each for each in self.state.faults if re.search(each.pattern, self.path)), None)
        if self.fault is not None:
            self.fault.reached.set()
            if self.fault.status:
                self._send(self.fault.status, self.fault.body, self.fault.headers)
                return
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        for pattern, answer in _ROUTES:
            match = re.fullmatch(pattern, address.path)
            if match:
                answer(self, **{key: unquote(value or "") for key, value in match.groupdict().items()})
                return
        self._error(404, "", "Not Found")

    def _chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        data = b""
        while size := int(self.rfile.readline().strip(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        fault = self.fault
        if fault is not None and fault.change is not None and self.command == "GET":
            body = fault.change(body)
        request = Request(self.command, unquote(self.path), self.token, self.headers.get("User-Agent") or "")
        self.state.requests.append(request)
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            self.wfile.flush()
            return
        if fault is not None and fault.hang is not None:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            fault.hang.wait()
            self.close_connection = True
            return
        try:
            for start in range(0, len(body), _PIECE):
                self.wfile.write(body[start : start + _PIECE])
                self.wfile.flush()
                request.sent += len(body[start : start + _PIECE])
        except ConnectionError:
            self.close_connection = True

    def _json(self, value: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self._send(status, json.dumps({"error": message}).encode(), {"X-Error-Message": message, **headers})

    # What repositories hold

    def _repo(self, kind: str, owner: str, name: str) -> FakeRepo | None:
        repo = self.state.repos.get((kind, f"{owner}/{name}"))
        if repo is None or (repo.token and repo.token != self.token):
            self._error(404 if self.token else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _files(self, repo: FakeRepo, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = repo.resolve(revision or "main")
        if sha is None:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return sha, repo.commits[sha]

    def _allowed(self, repo: FakeRepo) -> bool:
        if not repo.gated or self.token in repo.consents:
            return True
        self._error(403 if self.token else 401, "GatedRepo", "Access to it is restricted. Ask for access.")
        return False

    def info(self, kind: str, owner: str, name: str, revision: str = "") -> None:
        repo = self._repo(kind, owner, name)
        found = repo and self._files(repo, revision)
        if not repo or not found:
            return
        sha, files = found
        siblings: list[dict[str, Any]] = []
        for path, data in sorted(files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if "blobs" in self.query:
                sibling |= {"size": len(data), "blobId": git_hash(data)}
                if is_lfs(path):
                    sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 134}
            siblings.append(sibling)
        self._json(
            {
                "_id": "1",
                "id": f"{owner}/{name}",
                "sha": sha,
                "lastModified": DATE,
                "createdAt": DATE,
                "private": bool(repo.token),
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": siblings,
            }
        )

    def tree(self, kind: str, owner: str, name: str, revision: str, path: str = "") -> None:
        repo = self._repo(kind, owner, name)
        found = repo and self._files(repo, revision)
        if not found:
            return
        prefix = f"{path}/" if path else ""
        entries: dict[str, dict[str, Any]] = {}
        for file, data in sorted(found[1].items()):
            if not file.startswith(prefix):
                continue
            *folders, _ = file.removeprefix(prefix).split("/")
            for depth in range(1, len(folders) + 1):
                folder = prefix + "/".join(folders[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
            entries[file] = tree_entry(file, data)
        if prefix and not entries:
            self._error(404, "EntryNotFound", f"{path} does not exist")
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() == "true"
        shown = [each for each in entries.values() if recursive or "/" not in each["path"].removeprefix(prefix)]
        # A small page, so that the libraries' paging is needed.
        start = int(self.query.get("cursor", ["0"])[0])
        page = shown[start : start + 6]
        headers = {}
        if start + 6 < len(shown):
            address = urlsplit(self.path)
            query = "&".join(f"{key}={values[0]}" for key, values in self.query.items() if key != "cursor")
            headers["Link"] = f'<{self.state.url}{address.path}?{query}&cursor={start + 6}>; rel="next"'
        self._json(page, headers)

    def paths_info(self, kind: str, owner: str, name: str, revision: str) -> None:
        repo = self._repo(kind, owner, name)
        found = repo and self._files(repo, revision)
        if found:
            wanted = parse_qs(self.content.decode()).get("paths", [])
            self._json([tree_entry(path, found[1][path]) for path in wanted if path in found[1]])

    def auth_check(self, kind: str, owner: str, name: str) -> None:
        repo = self._repo(kind, owner, name)
        if repo and self._allowed(repo):
            self._json({})

    def resolve(self, owner: str, name: str, revision: str, path: str, datasets: str = "") -> None:
        repo = self._repo("datasets" if datasets else "models", owner, name)
        found = repo and self._files(repo, revision)
        if not repo or not found or not self._allowed(repo):
            return
        sha, files = found
        data = files.get(path)
        if data is None:
            self._error(404, "EntryNotFound", f"{path} does not exist")
            return
        headers = {"X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        if is_lfs(path):
            self.state.stored[sha256(data)] = data
            headers |= {
                "ETag": f'"{git_hash(data)}"',
                "X-Linked-Etag": f'"{sha256(data)}"',
                "X-Linked-Size": str(len(data)),
                "Location": f"{self.state.storage_url}/storage/{sha256(data)}?Signature=secret",
            }
            self._send(302, b"", headers)
            return
        self._bytes(data, {**headers, "ETag": f'"{git_hash(data)}"'})

    def storage(self, oid: str) -> None:
        if self.command == "PUT":
            if sha256(self.content) != oid:
                self._error(400, "", "other content")
                return
            self.state.stored[oid] = self.content
            self._send(200, b"")
            return
        self._bytes(self.state.stored[oid], {"ETag": f'"{oid}"'})

    def _bytes(self, data: bytes, headers: Mapping[str, str]) -> None:
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range") or "")
        if asked is None:
            self._send(200, data, headers)
            return
        first, last = asked.groups()
        start = int(first) if first else max(len(data) - int(last), 0)
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        content_range = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}
        self._send(206, data[start:end], {**headers, **content_range})

    # Uploads

    def preupload(self, kind: str, owner: str, name: str, revision: str) -> None:
        repo = self._repo(kind, owner, name)
        found = repo and self._files(repo, revision)
        if not repo or not found:
            return
        files = []
        for each in json.loads(self.content)["files"]:
            there = found[1].get(each["path"])
            files.append(
                {
                    "path": each["path"],
                    "uploadMode": "lfs" if is_lfs(each["path"]) else "regular",
                    "shouldIgnore": each["path"] == repo.ignored,
                    "oid": None if there is None else sha256(there) if is_lfs(each["path"]) else git_hash(there),
                }
            )
        self._json({"files": files})

    def batch(self, owner: str, name: str) -> None:
        objects = [
            {
                "oid": each["oid"],
                "size": each["size"],
                "actions": {"upload": {"href": f"{self.state.storage_url}/storage/{each['oid']}", "header": {}}},
            }
            for each in json.loads(self.content)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def commit(self, kind: str, owner: str, name: str, revision: str) -> None:
        repo = self._repo(kind, owner, name)
        found = repo and self._files(repo, revision)
        if not repo or not found:
            return
        sha, files = found
        if not self.token:
            self._error(401, "", "Invalid username or password.")
            return
        changed = dict(files)
        for line in self.content.splitlines():
            each = json.loads(line)
            value = each["value"]
            if each["key"] == "header" and value.get("parentCommit", sha) != sha:
                self._error(412, "", "A commit has happened since. Please refresh and try again.")
                return
            if each["key"] == "file":
                changed[value["path"]] = base64.b64decode(value["content"])
            if each["key"] == "lfsFile":
                changed[value["path"]] = self.state.stored[value["oid"]]
        made = repo.commit(changed, revision)
        self._json({"success": True, "commitOid": made, "commitUrl": f"{self.state.url}/{owner}/{name}/commit/{made}"})

    def harnesses(self) -> None:
        self._json({"standardEnvVars": [], "harnesses": {}})


def tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_hash(data)}
    if is_lfs(path):
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 134}
    return entry


_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/agent-harnesses", _Handler.harnesses),
    (rf"{_API}/auth-check", _Handler.auth_check),
    (rf"{_API}/revision/(?P<revision>[^/]+)", _Handler.info),
    (rf"{_API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", _Handler.tree),
    (rf"{_API}/paths-info/(?P<revision>[^/]+)", _Handler.paths_info),
    (rf"{_API}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (rf"{_API}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (_API, _Handler.info),
    (rf"/(?P<datasets>datasets/)?{_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", _Handler.resolve),
    (rf"/{_REPO}\.git/info/lfs/objects/batch", _Handler.batch),
    (r"/storage/(?P<oid>[0-9a-f]{64})", _Handler.storage),
]
