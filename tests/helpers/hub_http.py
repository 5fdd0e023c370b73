"""How the stand-in for the hub (hub.py) answers, and how it fails; its storage.

Knows: one request and its answer, the faults, byte ranges. Does not know: the hub's
routes (hub_routes.py).
"""

import contextlib
import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

_BLOB = re.compile(r"/(blob|put)/([^/]+/[^/]+)/([0-9a-f]{64})/?(.*)")


class Answered(Exception):
    """The answer is on its way; what called need not go on."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_name = ""

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self):
        split = urlsplit(self.path)
        self.route, self.query = split.path, parse_qs(split.query)
        self.kind, self.repo_id, self.file = "other", None, None
        self.received, self.body = 0, None
        header = self.headers.get("authorization", "")
        self.token = header.removeprefix("Bearer ") or None
        with contextlib.suppress(Answered):
            self.answer()

    def note(self, status):
        if self.body is None and status is not None:
            self.read_body()  # else it would be read as the next request
        self.server.hub.record(
            server=self.server_name,
            kind=self.kind,
            method=self.command,
            path=unquote(self.path),
            repo=self.repo_id,
            token=self.token,
            status=status,
            received=self.received,
            range=self.headers.get("range"),
        )

    def read_body(self, limit=None):
        """The request's body, or as much of it as `limit`."""
        parts = []
        if "chunked" in self.headers.get("transfer-encoding", ""):
            while size := int(self.rfile.readline().strip() or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
                self.received += size
                if limit is not None and self.received >= limit:
                    break
            else:
                self.rfile.readline()
        else:
            length = int(self.headers.get("content-length") or 0)
            parts.append(self.rfile.read(length if limit is None else limit))
            self.received = len(parts[0])
        self.body = b"".join(parts)
        return self.body

    def reply(self, status, content=b"", headers=None):
        """Answer, and stop here. content: bytes, or what becomes JSON."""
        self.note(status)
        headers = dict(headers or {})
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers.setdefault("Content-Type", "application/json")
        headers.setdefault("Content-Length", str(len(content)))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        raise Answered

    def refuse(self, status, code=None, message=None, headers=None):
        headers = dict(headers or {})
        message = message or {401: "Invalid username or password."}.get(status, code)
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self.reply(status, {"error": message or "Error"}, headers)

    def hang_up(self):
        """Close the connection at once, as a failing network does."""
        self.note(None)
        self.close_connection = True
        self.connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        self.connection.shutdown(socket.SHUT_RDWR)
        raise Answered

    def run_into_fault(self, sends_file=False):
        """Fail as was asked; returns a fault that concerns the body of a file."""
        fault = self.server.hub.fault_of(self.repo_id, self.kind, self.file, sends_file)
        if fault is None or fault.name in ("cut", "short"):
            return fault
        if fault.name == "gated":
            status = fault.status or (403 if self.token else 401)
            self.refuse(status, "GatedRepo", f"Access to {self.repo_id} is restricted.")
        if fault.name == "missing":
            self.refuse(404, "RepoNotFound", "Repository not found")
        if fault.name == "busy":
            after = fault.retry_after
            headers = {} if after is None else {"Retry-After": str(after)}
            self.refuse(429, message="Too many requests", headers=headers)
        if fault.name == "broken":
            message = fault.message or "Internal Server Error"
            self.refuse(fault.status or 500, message=message)
        if fault.name == "forbidden":
            self.refuse(
                403, message=f"You don't have the rights to write to {self.repo_id}"
            )
        if fault.name == "cut upload":
            self.read_body(int(self.headers.get("content-length") or 2**17) // 2)
        self.hang_up()

    def send_file(self, content, headers, fault):
        """A file, or the asked range of it, or what the fault leaves of it."""
        size, status = len(content), 200
        start, end = 0, size
        headers = {"Accept-Ranges": "bytes", **headers}
        if asked := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("range", "")):
            first, last = asked.groups()
            start = int(first) if first else max(size - int(last), 0)
            end = min(int(last) + 1, size) if first and last else size
            if start >= size:
                self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        if fault and fault.name == "short":
            self.reply(200, content[: size // 2], headers)
        if fault and fault.name == "cut":
            self.note(status)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(end - start))
            self.end_headers()
            self.wfile.write(content[start : min(end, max(start, size // 2))])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            raise Answered
        self.reply(status, content[start:end], headers)


class StorageHandler(Handler):
    """Behind the hub: addresses that need no token."""

    server_name = "storage"

    def answer(self):
        found = _BLOB.fullmatch(self.route)
        if not found:
            self.refuse(404)
        self.kind, self.repo_id, sha256, self.file = found.groups()
        self.file = unquote(self.file) or sha256  # a PUT knows no name
        if self.token:  # the real one refuses a request that is signed twice
            self.refuse(400, message="Only one auth mechanism allowed")
        hub = self.server.hub
        fault = self.run_into_fault(sends_file=self.command == "GET")
        if self.command == "PUT":
            body = self.read_body()
            if hashlib.sha256(body).hexdigest() != sha256:
                self.refuse(400, message="BadDigest")
            with hub.lock:
                hub.stored[sha256] = body
            self.reply(200, b"", {"ETag": f'"{sha256}"'})
        if sha256 not in hub.stored:
            self.refuse(404)
        self.send_file(hub.stored[sha256], {"ETag": f'"{sha256}"'}, fault)
