"""The routes of the stand-in for the hub (hub.py).

Status codes, headers and JSON fields are those that the hub's clients read.
"""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs, unquote

import yaml
from hub_http import Handler

TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
_API = re.compile(r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/(.+))?")
_RESOLVE = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/(.+)")


class HubHandler(Handler):
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
            "": "info",
            "revision": "info",
            "tree": "tree",
            "paths-info": "paths",
            "refs": "refs",
            "preupload": "preupload",
            "commit": "commit",
            "settings": "settings",
        }.get(head, "other")
        self.run_into_fault()
        if self.kind == "other":
            self.refuse(404)
        repo = self.find_repo(repo_type)
        if self.kind == "refs":
            main = {
                "name": "main",
                "ref": "refs/heads/main",
                "targetCommit": repo.commits[-1][0],
            }
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
