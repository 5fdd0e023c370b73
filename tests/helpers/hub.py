"""A stand-in for the Hugging Face hub on loopback, for the hub's own clients.

Knows: the requests that huggingface_hub and datasets make to download and to upload
(without xet), and the ways in which these fail. Does not know: what is in the files.

    with Hub() as hub:
        hub.add("owner/name", {"data/train.jsonl": b"..."}, repo_type="dataset")
        hub.fail("owner/name", "busy", times=2, retry_after=1)
        done = hub.run('from datasets import load_dataset; print(load_dataset(...))')
        assert hub.seen(kind="blob")

Libraries read their variables at import, and the tests' own process is offline: so
clients run in a process of their own (`hub.run`), or with `hub.environ()`.

Two servers, as in reality: the hub, and the storage behind signed addresses, which must
never see a token. What is uploaded can be downloaded again.
"""

import contextlib
import fnmatch
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from hub_http import StorageHandler
from hub_routes import HubHandler
from hub_state import Fault, File, Repo, Request

TOKEN = "hf_standInStandInStandInStandInStandIn"
# What each fault breaks unless told otherwise; the kinds are Request's.
FAULTS = {
    "gated": ("resolve",),  # status=401: no token, 403: not on the list
    "missing": (),  # 404; () is every request of the repository
    "busy": (),  # 429, with retry_after=seconds if given
    "broken": (),  # 500
    "dropped": (),  # the connection is closed without an answer
    "cut": ("resolve", "blob"),  # the body stops in the middle of the file
    "short": ("resolve", "blob"),  # half a file that claims to be whole
    "cut upload": ("put",),  # the connection goes away in the middle of a PUT
    "forbidden": ("create", "preupload", "batch", "commit"),  # 403
}
LFS = (".safetensors", ".parquet", ".bin", ".arrow", ".gguf", ".gz", ".zip", ".png")
# Prepended by `run(patience=...)`: the clients wait for minutes between their tries.
HURRY = """
import time
_sleep = time.sleep
time.sleep = lambda seconds: _sleep(min(seconds, {patience}))
"""


# What a Client's process does: run lines of code, answer with what came of each.
WORK = """
import contextlib, io, json, sys, traceback
answers, scope = sys.stdout, {}
for line in sys.stdin:
    answer, printed = {}, io.StringIO()
    scope["result"] = None
    with contextlib.redirect_stdout(printed):
        try:
            exec(json.loads(line), scope)
        except Exception as error:
            whole = traceback.TracebackException.from_exception(
                error, capture_locals=True
            )
            for frame in whole.stack:
                if frame.filename == "<string>":  # this code itself
                    frame.locals = None
            answer = {"error": type(error).__name__, "said": str(error),
                      "trace": "".join(whole.format())}
    answer |= {"result": scope["result"], "printed": printed.getvalue()}
    print(json.dumps(answer), file=answers, flush=True)
"""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, *args):
        super().__init__(*args)
        self.open = set()

    def process_request(self, request, client_address):
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.open.discard(request)
        super().shutdown_request(request)

    def hang_up(self):
        """Close the port, and the connections that clients keep open."""
        self.shutdown()
        self.server_close()
        for request in list(self.open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request, client_address):
        error = sys.exception()
        if not isinstance(error, ConnectionError):  # a client may go away
            self.hub.errors.append(error)


class Hub:
    """The stand-in, running while it is a context manager.

    tokens: {token: "write" or "read"}; any other is refused with 401. owner: the user
    whom they belong to, who can write below no other name.
    """

    def __init__(self, owner="someone"):
        self.owner = owner
        self.tokens = {TOKEN: "write"}
        self.repos, self.requests, self.faults, self.errors = {}, [], [], []
        self.stored = {}  # the storage: {sha256: bytes}
        self.lock = threading.RLock()

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.home = Path(self._folder.name)
        self._start(0, 0)
        return self

    def _start(self, *ports):
        self._servers = []
        for handler, port in zip((HubHandler, StorageHandler), ports, strict=True):
            server = _Server(("127.0.0.1", port), handler)
            server.hub = self
            threading.Thread(
                target=server.serve_forever, args=(0.05,), daemon=True
            ).start()
            self._servers.append(server)
        self.ports = [server.server_address[1] for server in self._servers]
        self.endpoint, self.storage = (f"http://127.0.0.1:{p}" for p in self.ports)

    def __exit__(self, *_):
        self.stop()
        self._folder.cleanup()
        if self.errors:  # the stand-in's own, and not one that was asked for
            raise self.errors[0]

    def stop(self):
        """Close both ports: from here on the hub is unreachable."""
        for server in self._servers:
            server.hang_up()
        self._servers = []

    @contextlib.contextmanager
    def unreachable(self):
        """Both ports are closed in this block."""
        self.stop()
        try:
            yield
        finally:
            self._start(*self.ports)

    def add(self, repo_id, files, repo_type="dataset", private=False, tag=None):
        """Make a repository, or a further commit that replaces its files.

        files: {path in the repository: bytes, str, or the Path of a local file}.
        Returns: the commit's oid, a revision.
        """
        made = {}
        for path, content in files.items():
            if isinstance(content, Path):
                content = content.read_bytes()
            elif isinstance(content, str):
                content = content.encode()
            made[path] = file = File(content, self.is_lfs(path, len(content)))
            if file.lfs:
                self.stored[file.sha256] = content
        with self.lock:
            repo = self.repos.setdefault(
                (repo_type, repo_id), Repo(repo_id, repo_type, private)
            )
            oid = repo.commit(made)
            if tag:
                repo.tags[tag] = oid
        return oid

    def file_at(self, repo_type, repo_id, revision, path):
        """The File, or None if there is no such repository, revision or path."""
        repo = self.repos.get((repo_type, repo_id))
        found = repo and repo.at(revision)
        return found[1].get(path) if found else None

    @staticmethod
    def is_lfs(path, size, **_):
        """Does the hub keep this file in its storage, and not in git?"""
        return size > 0 and (path.endswith(LFS) or size > 10 * 2**20)

    def files(self, repo_id, repo_type="model"):
        """{path: bytes} of the newest commit."""
        _, files = self.repos[repo_type, repo_id].commits[-1]
        return {path: file.content for path, file in files.items()}

    def fail(
        self,
        repo_id,
        fault,
        times=None,
        on=None,
        path="*",
        status=None,
        retry_after=None,
        message=None,
    ):
        """Let requests of a repository fail until `fix`, or the first `times` of them.

        fault: a key of FAULTS. on: kinds of request, instead of the fault's usual ones.
        path: pattern of the files in the repository, where a request is for a file; of
            their sha256 for a PUT, which knows no more.
        message: the hub's words.
        """
        kinds = FAULTS[fault] if on is None else on
        made = Fault(fault, tuple(kinds), times, path, status, retry_after, message)
        with self.lock:
            self.faults.append((repo_id, made))
        return made

    def fix(self):
        with self.lock:
            self.faults.clear()

    def fault_of(self, repo_id, kind, path, sends_file):
        """The first fault that this request runs into, counted; or None."""
        with self.lock:
            for where, fault in self.faults:
                if (
                    where == repo_id
                    and (not fault.kinds or kind in fault.kinds)
                    and (path is None or fnmatch.fnmatch(path, fault.path))
                    and (sends_file or fault.name not in ("cut", "short"))
                    and (fault.times is None or fault.hits < fault.times)
                ):
                    fault.hits += 1
                    return fault
        return None

    def record(self, **values):
        with self.lock:
            self.requests.append(Request(**values))

    def seen(self, **wanted):
        """The requests with these values, in order."""
        with self.lock:
            return [
                request
                for request in self.requests
                if all(getattr(request, k) == v for k, v in wanted.items())
            ]

    def tokens_seen(self):
        return {request.token for request in self.seen() if request.token}

    def environ(self, token=TOKEN, **more):
        """The variables for a process whose hub this is, with caches of its own."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING", "TRANSFORMERS_OFF", "XDG_CACHE"))
            and not name.lower().endswith("_proxy")
        }
        return kept | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.home / "cache"),
            **({"HF_TOKEN": token} if token else {}),
            "HF_HUB_DISABLE_XET": "1",  # its protocol has no stand-in
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "OMP_NUM_THREADS": "1",
            **more,
        }

    @contextlib.contextmanager
    def client(self, token=TOKEN, patience=0.01, **environ):
        """A process whose hub this is, that stays for many pieces of code.

        Yields: a function of code. It returns {"result": what the code left in the
        variable of that name, "printed"} and, if it raised, {"error": the type's name,
        "said", "trace": with the values of all variables}.
        """
        with open(self.home / "client.log", "w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", HURRY.format(patience=patience) + WORK],
                env=self.environ(token, **environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
            )

            def ask(code):
                process.stdin.write(json.dumps(code) + "\n")
                process.stdin.flush()
                answer = process.stdout.readline()
                assert answer, (self.home / "client.log").read_text(encoding="utf-8")[
                    -3000:
                ]
                return json.loads(answer)

            try:
                yield ask
            finally:
                process.stdin.close()
                process.wait(timeout=30)
                process.stdout.close()

    def run(self, code, token=TOKEN, patience=0.01, timeout=120, **environ):
        """Run Python code in a process whose hub this is.

        patience: the clients' waits between two tries are cut to so many seconds; None
            leaves them as they are.
        Returns: subprocess.CompletedProcess, with text.
        """
        hurry = HURRY.format(patience=patience) if patience is not None else ""
        return subprocess.run(
            [sys.executable, "-c", hurry + code],
            env=self.environ(token, **environ),
            capture_output=True,
            text=True,
            timeout=timeout,
            encoding="utf-8",
        )


@pytest.fixture
def hub():
    with Hub() as running:
        yield running
