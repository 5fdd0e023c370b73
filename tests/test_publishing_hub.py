"""Publishing with the hub's real client, against the stand-in, a token planted.

One process does all of it, with every log at DEBUG: the last test looks for the token
in whatever came out of it, tracebacks with all their variables included.
"""

import hashlib
import json
import re

import pytest
from hub import TOKEN, Hub
from publishable import AGREEMENT, CURVES, LLAMA, RESULTS, model_folder, noise

from course_utils import publishing

START = """
import logging
from huggingface_hub import constants, logging as hub_logging
logging.basicConfig(level=logging.DEBUG)
hub_logging.set_verbosity_debug()
from course_utils import publishing
def publish(folder, **options):
    global done
    done = publishing.upload(folder, send=True, **options)
    return str(done)
"""


class Learner:
    """A process that publishes, and all that it said."""

    def __init__(self, ask):
        self._ask, self.heard = ask, []

    def __call__(self, code):
        answer = self._ask(code)
        self.heard.append(json.dumps(answer))
        return answer

    def publish(self, folder, **options):
        return self(f"result = publish({str(folder)!r}, **{options!r})")


@pytest.fixture(scope="module")
def running():
    with Hub() as hub, hub.client(HF_DEBUG="1") as ask:
        learner = Learner(ask)
        assert "error" not in learner(START)
        yield hub, learner


@pytest.fixture
def hub(running):
    running[0].fix()
    running[0].requests.clear()
    return running[0]


@pytest.fixture
def learner(running, hub):
    return running[1]


@pytest.fixture
def folder(tmp_path, request):
    """A folder of its own repository, named as the test."""
    name = "someone/" + re.sub(r"\W|_", "-", request.node.name).strip("-")
    return model_folder(tmp_path / "merged", {**RESULTS, "name": name})


def name_of(folder):
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))["name"]


def kinds(hub):
    return [request.kind for request in hub.seen()]


def test_private_then_equal_byte_by_byte(hub, learner, folder):
    results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    publishing.write_card(results | CURVES, folder)
    (folder / ".env").write_text(f"HF_TOKEN={TOKEN}", encoding="utf-8")
    answer = learner.publish(folder)
    name = name_of(folder)
    assert hub.repos["model", name].private
    plan = publishing.upload(folder)
    local = {file: (folder / file).read_bytes() for file in plan.files}
    assert hub.files(name) == local and ".env" not in local
    assert f"sent to {hub.endpoint}/{name} (private)" in answer["result"]
    assert hub.repos["model", name].commits[-1][0] in answer["result"]
    # The hub judged the card before the weights were sent.
    assert kinds(hub).index("yaml") < kinds(hub).index("put")


def test_a_cut_connection_and_then_only_what_is_missing(hub, learner, folder):
    (folder / "model-2.safetensors").write_bytes(noise("second", 600_000))
    model_folder(
        folder, json.loads((folder / "results.json").read_text(encoding="utf-8"))
    )
    first, second = (
        hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("model.safetensors", "model-2.safetensors")
    )
    # The client itself gives a PUT five more tries; then it is the learner's turn.
    hub.fail(name_of(folder), "cut upload", times=6, path=first)
    answer = learner.publish(folder)
    assert answer["error"] == "ConnectionError"
    assert "into_existing=True, and only what is missing" in answer["said"]
    assert hub.files(name_of(folder)) == {}  # no half model is committed
    arrived = [request.path for request in hub.seen(kind="put", status=200)]
    assert len(arrived) == 1 and second in arrived[0]
    hub.requests.clear()
    assert "exists already" in learner.publish(folder)["said"]
    assert "error" not in learner.publish(folder, into_existing=True)
    (again,) = hub.seen(kind="put")
    assert first in again.path and again.received > 3_000_000  # all of it
    assert len(hub.files(name_of(folder))) == len(publishing.upload(folder).files)


def test_one_cut_is_the_client_s_own_business(hub, learner, folder):
    hub.fail(name_of(folder), "cut upload", times=1)
    assert "error" not in learner.publish(folder)
    assert [r.status for r in hub.seen(kind="put")].count(None) == 1


def test_a_repository_that_exists(hub, learner, folder):
    name = name_of(folder)
    weights = (folder / "model.safetensors").read_bytes()
    old = {"README.md": "another card", "model.safetensors": weights, "notes": "mine"}
    hub.add(name, old, repo_type="model", private=True)
    said = learner.publish(folder)
    assert said["error"] == "FileExistsError", said["trace"]
    assert f"{name} exists already: private, 3 files" in said["said"]
    assert "holds 1 unchanged; it would lose its own README.md" in said["said"]
    assert "into_existing=True" in said["said"]
    assert "commit" not in kinds(hub) and "put" not in kinds(hub)
    assert "error" not in learner.publish(folder, into_existing=True)
    assert "put" not in kinds(hub)  # the weights are there already
    assert hub.files(name)["notes"] == b"mine"
    assert hub.files(name)["README.md"] == (folder / "README.md").read_bytes()


def test_a_public_repository_is_left_alone(hub, learner, folder):
    hub.add(name_of(folder), {}, repo_type="model", private=False)
    for into_existing in (False, True):
        said = learner.publish(folder, into_existing=into_existing)
        assert said["error"] == "FileExistsError" and "PUBLIC" in said["said"]
    assert "commit" not in kinds(hub)


@pytest.mark.parametrize(
    ("right", "error", "said"),
    [
        (None, "PermissionError", "does not accept the token (401)"),
        ("read", "PermissionError", "may not write to someone/"),
    ],
    ids=["401", "403"],
)
def test_a_token_that_is_refused(hub, learner, folder, right, error, said):
    before = dict(hub.tokens)
    hub.tokens = {TOKEN: right} if right else {}
    answer = learner.publish(folder)
    hub.tokens = before
    assert answer["error"] == error and said in answer["said"]
    assert "settings/tokens" in answer["said"]
    assert ("model", name_of(folder)) not in hub.repos


def test_an_owner_who_is_someone_else(hub, learner, tmp_path):
    folder = model_folder(tmp_path, {**RESULTS, "name": "your-name/orpo-lab"})
    answer = learner.publish(folder)
    assert answer["error"] == "PermissionError"
    assert "must begin with your own user name" in answer["said"]
    folder = model_folder(tmp_path, {**RESULTS, "name": "orpo-lab"})
    assert "names no owner" in learner.publish(folder)["said"]


@pytest.mark.parametrize(
    ("fault", "options", "said"),
    [
        ("busy", {"retry_after": 7}, "slow down (429)"),
        ("broken", {"message": f"cannot serve {TOKEN}"}, "error of its own (500)"),
        ("dropped", {}, "connection to the hub failed"),
    ],
    ids=["429", "500", "dropped"],
)
def test_a_hub_in_trouble(hub, learner, folder, fault, options, said):
    hub.fail(name_of(folder), fault, on=["create"], **options)
    answer = learner.publish(folder)
    assert answer["error"] == "ConnectionError" and said in answer["said"]
    if "retry_after" in options:
        assert "again in 7 s" in answer["said"]
    if "message" in options:
        assert "cannot serve <token>" in answer["said"]


def test_no_network(hub, learner, folder):
    with hub.unreachable():
        answer = learner.publish(folder)
    assert answer["error"] == "ConnectionError"
    assert "Check the network" in answer["said"]
    offline = "constants.HF_HUB_OFFLINE = True"
    answer = learner(f"{offline}\nresult = publish({str(folder)!r})")
    learner("constants.HF_HUB_OFFLINE = False")
    assert "HF_HUB_OFFLINE is set" in answer["said"]


def test_no_token(hub, learner, folder):
    learner("import os; os.environ.pop('HF_TOKEN')")
    answer = learner.publish(folder)
    learner(f"os.environ['HF_TOKEN'] = {TOKEN!r}")
    assert answer["error"] == "PermissionError" and "Set HF_TOKEN" in answer["said"]
    assert kinds(hub) == []


def test_a_dry_run_asks_nobody(hub, learner, folder):
    answer = learner(f"print(publishing.upload({str(folder)!r}))")
    assert f"dry run, would be sent to {hub.endpoint}" in answer["printed"]
    assert kinds(hub) == []


def test_the_agreement_comes_from_the_base_s_repository(hub, learner, tmp_path):
    base = LLAMA["base_model"]
    hub.add(base, {"LICENSE": AGREEMENT, "USE_POLICY.md": "p"}, repo_type="model")
    folder = model_folder(tmp_path / "merged")
    write = f"publishing.write_card({LLAMA!r}, {str(folder)!r}, base={base!r})"
    hub.fail(base, "gated")
    answer = learner(write)
    assert answer["error"] == "PermissionError"
    assert "accept its licence on its page" in answer["said"]
    hub.fix()
    assert "error" not in learner(write)
    assert (folder / "LICENSE").read_text(encoding="utf-8") == AGREEMENT
    assert "error" not in learner.publish(folder)
    assert {"LICENSE", "NOTICE"} <= set(hub.files(LLAMA["name"]))


def test_the_token_is_nowhere(running, tmp_path):
    hub, learner = running
    assert len(learner.heard) > 20
    assert not [said for said in learner.heard if TOKEN in said]
    log = (hub.home / "client.log").read_text(encoding="utf-8")
    assert "authenticated: True" in log and "<TOKEN>" in log  # it was really on DEBUG
    assert TOKEN not in log
    cached = [path for path in hub.home.rglob("*") if path.is_file()]
    assert len(cached) > 1
    assert not [path for path in cached if TOKEN.encode() in path.read_bytes()]
    for repo in hub.repos.values():
        for _, files in repo.commits:
            assert not [p for p, f in files.items() if TOKEN.encode() in f.content]
