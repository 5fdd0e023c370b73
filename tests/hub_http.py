"""What the stand-in for the hub (hub.py) answers: its routes.

Status codes, headers and JSON fields are those that the hub's clients read.
"""

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.+))?")
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/(.+)")
_BLOB = re.compile(r"/(blob|put)/([^/]+/[^/]+)/([0-9a-f]{64})/?(.*)")


class _Answered(Exception):
    """The answer is on its way; what called need not go on."""


class _Handler(BaseHTTPRequestHandler):
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
        with contextlib.suppress(_Answered):
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
        raise _Answered

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
        raise _Answered

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
            raise _Answered
        self.reply(status, content[start:end], headers)


class StorageHandler(_Handler):
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


class HubHandler(_Handler):
    server_name = "hub"

    def answer(self):
        if self.route == "/api/whoami-v2":
            self.kind = "whoami"
            self.need_token()
            right = self.server.hub.tokens[self.token]
            self.reply(
                200,
                {
                    "type": "user",
                    "name": self.server.hub.owner,
                    "orgs": [],
                    "auth": {"accessToken": {"displayName": "t", "role": right}},
                },
            )
        if self.route == "/api/repos/create":
            self.create()
        if self.route == "/api/validate-yaml":
            self.validate_yaml()
        if found := _API.fullmatch(self.route):
            kind, self.repo_id, rest = found.groups()
            self.api(TYPES[kind], unquote(rest or ""))
        if found := _RESOLVE.fullmatch(self.route):
            kind, self.repo_id, revision, path = found.groups()
            self.kind, self.file = "resolve", unquote(path)
            self.resolve(TYPES[kind or "models"], unquote(revision))
        if found := _LFS.fullmatch(self.route):
            kind, self.repo_id, rest = found.groups()
            self.kind = {"objects/batch": "batch", "verify": "verify"}[rest]
            self.lfs(TYPES[kind or "models"])
        self.refuse(404)

    # ---- who may do what ----

    def check_token(self):
        if self.token and self.token not in self.server.hub.tokens:
            self.refuse(401, message="Invalid credentials in Authorization header")

    def need_token(self):
        self.check_token()
        if not self.token:
            self.refuse(401)

    def need_write(self, namespace):
        self.need_token()
        hub = self.server.hub
        if namespace != hub.owner or hub.tokens[self.token] != "write":
            self.refuse(
                403,
                message="You don't have the rights to create or change a repository "
                f'under the namespace "{namespace}"',
            )

    def find_repo(self, repo_type):
        self.check_token()
        repo = self.server.hub.repos.get((repo_type, self.repo_id))
        if repo is None or (repo.private and not self.token):
            # Over https the clients take a bare 401 for this; over http they do not.
            self.refuse(404 if self.token else 401, "RepoNotFound")
        return repo

    def find_commit(self, repo, revision):
        found = repo.at(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found

    # ---- downloads ----

    def api(self, repo_type, rest):
        head, _, tail = rest.partition("/")
        self.kind = {
            "": "info", "revision": "info", "tree": "tree", "paths-info": "paths",
            "refs": "refs", "preupload": "preupload", "commit": "commit",
            "settings": "settings",
        }.get(head, "other")  # fmt: skip
        self.run_into_fault()
        if self.kind == "other":
            self.refuse(404)
        repo = self.find_repo(repo_type)
        if self.kind == "refs":
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit":
                    repo.commits[-1][0]}  # fmt: skip
            self.reply(200, {"branches": [main], "tags": [], "converts": []})
        if self.kind == "settings":
            self.need_write(self.repo_id.split("/")[0])
            asked = json.loads(self.read_body())
            repo.private = asked.get("visibility", "private") == "private"
            self.reply(200, {"private": repo.private})
        if self.kind in ("preupload", "commit"):
            self.need_write(self.repo_id.split("/")[0])
            getattr(self, self.kind)(repo, tail)
        revision, _, below = (tail or "main").partition("/")
        oid, files = self.find_commit(repo, revision)
        if self.kind == "info":
            self.reply(200, self.info(repo, oid, files))
        if self.kind == "tree":
            recursive = self.query.get("recursive", [""])[0].lower() == "true"
            self.reply(200, _tree(files, below, recursive))
        asked = parse_qs(self.read_body().decode())["paths"]
        everything = _tree(files, "", recursive=True)
        self.reply(200, [entry for entry in everything if entry["path"] in asked])

    def info(self, repo, oid, files):
        return {
            "id": repo.id,
            "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
            "author": repo.id.split("/")[0],
            "sha": oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": [],
            "lastModified": "2026-11-22T00:00:00.000Z",
            "createdAt": "2026-11-22T00:00:00.000Z",
            "siblings": [
                {"rfilename": path, "size": len(file.content), "blobId": file.oid}
                for path, file in files.items()
            ],
        }

    def resolve(self, repo_type, revision):
        hub = self.server.hub
        file = hub.file_at(repo_type, self.repo_id, revision, self.file)
        in_git = file is not None and not file.lfs
        fault = self.run_into_fault(sends_file=in_git and self.command == "GET")
        repo = self.find_repo(repo_type)
        oid, _ = self.find_commit(repo, revision)
        headers = {"X-Repo-Commit": oid}
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found", headers)
        if file.lfs:
            name = self.file.rsplit("/", 1)[-1]
            headers |= {
                "X-Linked-Etag": f'"{file.sha256}"',
                "X-Linked-Size": str(len(file.content)),
                "Location": f"{hub.storage}/blob/{self.repo_id}/"
                f"{file.sha256}/{name}?X-Amz-Signature=stand-in",
            }
            self.reply(302, b"", headers)
        headers["ETag"] = f'"{file.etag}"'
        self.send_file(file.content, headers, fault)

    # ---- uploads ----

    def create(self):
        self.kind = "create"
        asked = json.loads(self.read_body())
        namespace = asked.get("organization") or self.server.hub.owner
        self.repo_id = f"{namespace}/{asked['name']}"
        self.run_into_fault()
        self.need_write(namespace)
        hub, repo_type = self.server.hub, asked.get("type", "model")
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        made = {"url": f"{hub.endpoint}/{prefix}{self.repo_id}", "name": self.repo_id}
        with hub.lock:
            if (repo_type, self.repo_id) in hub.repos:
                error = f"You already created this {repo_type} repo"
                self.reply(409, made | {"error": error})
            private = asked.get("private") or asked.get("visibility") == "private"
            hub.add(self.repo_id, {}, repo_type, private=bool(private))
        self.reply(200, made)

    def validate_yaml(self):
        self.kind = "yaml"
        self.check_token()
        text = json.loads(self.read_body())["content"]
        answer = {"errors": [], "warnings": []}
        parts = text.split("---\n", 2)
        if not text.startswith("---\n") or len(parts) < 3:
            answer["warnings"].append({"message": "empty or missing yaml metadata"})
            self.reply(200, answer)
        try:
            yaml.safe_load(parts[1])
        except yaml.YAMLError as error:
            answer["errors"].append({"message": str(error)})
            self.reply(400, answer | {"error": "Invalid metadata"})
        self.reply(200, answer)

    def preupload(self, repo, revision):
        _, files = self.find_commit(repo, revision)
        is_lfs = self.server.hub.is_lfs
        answer = [
            {
                "path": asked["path"],
                "uploadMode": "lfs" if is_lfs(**asked) else "regular",
                "shouldIgnore": False,
                "oid": files[asked["path"]].etag if asked["path"] in files else None,
            }
            for asked in json.loads(self.read_body())["files"]
        ]
        self.reply(200, {"files": answer})

    def lfs(self, repo_type):
        hub = self.server.hub
        self.run_into_fault()
        self.find_repo(repo_type)
        self.need_write(self.repo_id.split("/")[0])
        asked = json.loads(self.read_body())
        if self.kind == "verify":
            content = hub.stored.get(asked["oid"])
            if content is None or len(content) != asked["size"]:
                self.refuse(404, message="There is no such object")
            self.reply(200, {"success": True})
        prefix = "" if repo_type == "model" else f"{repo_type}s/"
        objects = []
        for wanted in asked["objects"]:
            answer = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in hub.stored:
                verify = f"{hub.endpoint}/{prefix}{self.repo_id}.git/info/lfs/verify"
                put = f"{hub.storage}/put/{self.repo_id}/{wanted['oid']}"
                answer["actions"] = {
                    "upload": {"href": f"{put}?X-Amz-Signature=stand-in"},
                    "verify": {"href": verify},
                }
            objects.append(answer)
        self.reply(200, {"transfer": "basic", "objects": objects})

    def commit(self, repo, revision):
        hub = self.server.hub
        _, files = self.find_commit(repo, revision)
        files = {path: file.content for path, file in files.items()}
        for line in self.read_body().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                if value["oid"] not in hub.stored:
                    self.refuse(400, message=f"LFS pointer to nothing: {value}")
                files[value["path"]] = hub.stored[value["oid"]]
            elif item["key"] == "deletedFile":
                files.pop(value["path"], None)
            elif item["key"] == "deletedFolder":
                gone = value["path"].rstrip("/") + "/"
                files = {p: f for p, f in files.items() if not p.startswith(gone)}
        oid = hub.add(repo.id, files, repo.type)
        url = f"{hub.endpoint}/{self.repo_id}/commit/{oid}"
        self.reply(200, {"success": True, "commitOid": oid, "commitUrl": url})


def _tree(files, below, recursive):
    """Files and folders below a folder, as the hub lists them."""
    prefix = f"{below}/" if below else ""
    entries, folders = [], set()
    for path, file in sorted(files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        folders |= {
            prefix + "/".join(parts[:depth])
            for depth in range(1, len(parts) if recursive else min(len(parts), 2))
        }
        if len(parts) == 1 or recursive:
            entry = {
                "type": "file",
                "path": path,
                "size": len(file.content),
                "oid": file.oid,
            }
            if file.lfs:
                entry["lfs"] = {
                    "oid": file.sha256,
                    "size": len(file.content),
                    "pointerSize": 134,
                }
            entries.append(entry)
    made = [
        {
            "type": "directory",
            "path": f,
            "size": 0,
            "oid": hashlib.sha1(f.encode()).hexdigest(),
        }
        for f in sorted(folders)
    ]
    return made + entries
