"""Enough of the Hugging Face Hub on loopback to push a folder and load it back: repositories and files in memory."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "a" * 40
LARGE = (".onnx", ".onnx_data", ".safetensors")


class FakeHub(BaseHTTPRequestHandler):
    """Routes requests by the table at the end; `repositories` is {id: {path: content}}."""

    protocol_version = "HTTP/1.1"
    repositories: dict[str, dict[str, bytes]]
    blobs: dict[str, bytes]
    breaks_off: int | None = None  # a file's content ends after so many bytes, as when the network is gone

    def log_message(self, *_: Any) -> None:
        pass

    def handle_request(self) -> None:
        path = self.path.partition("?")[0]
        body = self.content() if self.command in ("POST", "PUT") else b""
        for pattern, answer in ROUTES:
            if found := re.fullmatch(pattern, path):
                return answer(self, body, *found.groups())
        return self.answer({"error": f"no route for {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_request  # noqa: N815

    def content(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().strip() or b"0", 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content: Any, code: int = 200, **headers: str) -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        self.send_response(code)
        for name, value in ({"Content-Type": kind, "Content-Length": str(len(raw))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(raw[: self.breaks_off])
            self.close_connection = self.breaks_off is not None

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'tester'}/{asked['name'].split('/')[-1]}"
        known = name in self.repositories
        self.repositories.setdefault(name, {})
        self.answer({"url": f"{self.root}/{name}", "name": name, "id": name}, 409 if known else 200)

    def preupload(self, body: bytes, name: str) -> None:
        files = json.loads(body)["files"]
        modes = [{"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"} for f in files]
        self.answer({"files": [mode | {"shouldIgnore": False} for mode in modes]})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{self.root}/_blob/{o['oid']}"}}}
            for o in json.loads(body)["objects"]
        ]
        self.answer({"transfer": "basic", "objects": objects}, Content_Type="application/vnd.git-lfs+json")

    def put_blob(self, body: bytes, digest: str) -> None:
        self.blobs[digest] = body
        self.answer(b"", 200 if hashlib.sha256(body).hexdigest() == digest else 400)

    def commit(self, body: bytes, name: str) -> None:
        for entry in map(json.loads, body.decode().splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                self.repositories[name][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                self.repositories[name][value["path"]] = self.blobs[value["oid"]]
        self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{self.root}/{name}", "hookOutput": ""})

    def info(self, body: bytes, name: str) -> None:
        if name not in self.repositories:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        files = [{"rfilename": path} for path in self.repositories[name]]
        return self.answer(
            {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}
        )

    def tree(self, body: bytes, name: str, folder: str) -> None:
        files = self.repositories.get(name, {})
        rows = [{"type": "file", "path": p, "size": len(c), "oid": COMMIT} for p, c in files.items()]
        self.answer([row for row in rows if str(row["path"]).startswith(folder)])

    def resolve(self, body: bytes, name: str, path: str) -> None:
        content = self.repositories.get(name, {}).get(path)
        if content is None:
            return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        return self.answer(content, ETag=tag, X_Repo_Commit=COMMIT, Accept_Ranges="none")

    def whoami(self, body: bytes) -> None:
        self.answer({"name": "tester", "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def validate(self, body: bytes) -> None:
        self.answer({"errors": [], "warnings": []})

    @property
    def root(self) -> str:
        return f"http://{self.headers['Host']}"


_NAME = r"([^/]+/[^/]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/whoami-v2", FakeHub.whoami),
    (r"/api/repos/create", FakeHub.create),
    (r"/api/validate-yaml", FakeHub.validate),
    (rf"/api/models/{_NAME}/preupload/.+", FakeHub.preupload),
    (rf"/{_NAME}\.git/info/lfs/objects/batch", FakeHub.batch),
    (r"/_blob/(\w+)", FakeHub.put_blob),
    (rf"/api/models/{_NAME}/commit/.+", FakeHub.commit),
    (rf"/api/models/{_NAME}/tree/[^/]+/?(.*)", FakeHub.tree),
    (rf"/api/models/{_NAME}(?:/revision/.+)?", FakeHub.info),
    (rf"/{_NAME}/resolve/[^/]+/(.+)", FakeHub.resolve),
]


@contextlib.contextmanager
def fake_hub() -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Serves an empty Hub; gives its address (for HF_ENDPOINT) and its repositories."""
    hub = type("Hub", (FakeHub,), {"repositories": {}, "blobs": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", hub.repositories
    finally:
        server.shutdown()
