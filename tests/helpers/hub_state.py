"""What the stand-in for the hub (hub.py) keeps: repositories, requests, faults."""

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Request:
    """One request: what was asked, by whom, and what came of it.

    kind: info, tree, paths, refs, resolve, blob (the storage's GET), create, yaml,
        preupload, batch, put, verify, commit, whoami, settings, other.
    status: None if the connection was closed instead. received: bytes of the body.
    """

    server: str
    kind: str
    method: str
    path: str
    repo: str | None
    token: str | None
    status: int | None
    received: int
    range: str | None


@dataclass
class Fault:
    name: str
    kinds: tuple
    times: int | None
    path: str
    status: int | None
    retry_after: int | None
    message: str | None
    hits: int = 0


@dataclass
class File:
    """A file of a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self):
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self):
        """Its id in git: of the content, or of the pointer to it."""
        body = self.content
        if self.lfs:
            body = (
                "version https://git-lfs.github.com/spec/v1\n"
                f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
            ).encode()
        return hashlib.sha1(b"blob %d\0%b" % (len(body), body)).hexdigest()

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repo:
    """A repository: its commits, oldest first, as (oid, {path: File})."""

    id: str
    type: str
    private: bool = False
    commits: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)

    def commit(self, files):
        state = repr([self.id, len(self.commits), sorted(files)]).encode()
        oid = hashlib.sha1(state).hexdigest()
        self.commits.append((oid, dict(files)))
        return oid

    def at(self, revision):
        """(oid, files) at "main", a tag or a commit; None if there is no such thing."""
        if revision == "main":
            return self.commits[-1]
        revision = self.tags.get(revision, revision)
        return next((c for c in self.commits if c[0] == revision), None)
