"""Loading the gated base as in Colab, against the stand-in for the model hub."""

import json

import pytest
import torch
from hub import Hub
from safetensors.torch import load_file
from tiny_llama import tiny_model, tiny_tokenizer

from course_utils.setup import profiles

L4 = profiles.all_profiles()["l4"]
GATED, COPY = L4.base_model, L4.ungated_copy
START = """
import dataclasses, os
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from course_utils import models
from course_utils.setup import profiles
profile = profiles.all_profiles()["l4"]
profile = dataclasses.replace(profile, nf4=False, dtype="float32")
"""
LOAD = """
model, tokenizer = models.load_base(profile)
result = [float(model.lm_head.weight.sum()), len(tokenizer)]
"""
# Writes a file where it runs; a checkpoint must not be able to.
EVIL = "open({marker!r}, 'w').write('ran')\nclass Evil: pass\n"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny Llama's files, as they lie in a repository."""
    folder = tmp_path_factory.mktemp("checkpoint")
    tokenizer = tiny_tokenizer()
    tiny_model(len(tokenizer), hidden_size=64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def expected(checkpoint):
    weights = load_file(checkpoint["model.safetensors"])
    return [float(weights["lm_head.weight"].sum()), len(tiny_tokenizer())]


def test_gated_granted_and_missing_from_one_client(checkpoint, expected):
    with Hub() as hub, hub.client() as ask:
        ask(START)
        for repo in (GATED, COPY):
            hub.add(repo, checkpoint, repo_type="model")

        hub.fail(GATED, "gated", status=403)  # the account is not on the list
        done = ask(LOAD)
        assert done["result"] == pytest.approx(expected), done
        assert GATED in done["printed"] and "gated" in done["printed"]
        assert f"Using {COPY}" in done["printed"]

        hub.fix()  # access was granted
        done = ask(LOAD)
        assert done["result"] == pytest.approx(expected) and done["printed"] == ""

        with hub.unreachable():  # what was downloaded stays usable
            done = ask(LOAD)
        assert done.get("result") == pytest.approx(expected), done


def test_without_an_account_the_copy_is_taken_and_said(checkpoint, expected):
    with Hub() as hub, hub.client(token=None) as ask:
        for repo in (GATED, COPY):
            hub.add(repo, checkpoint, repo_type="model")
        hub.fail(GATED, "gated", status=401)
        done = ask(START + LOAD)
        assert done["result"] == pytest.approx(expected), done
        assert "gated" in done["printed"] and COPY in done["printed"]

        # The copy is in the cache by now; another name is in neither place.
        done = ask(
            "fresh = dataclasses.replace(profile, ungated_copy='owner/never')\n"
            + LOAD.replace("(profile)", "(fresh)")
        )
        assert done["error"] == "OSError"
        for words in (
            GATED,
            "owner/never",
            "gated",
            "hf auth login",
            "COURSE_BASE_MODEL",
            "COURSE_PROFILE=cpu",
        ):
            assert words in done["said"], done["said"]


def test_code_and_pickles_of_a_checkpoint_are_never_run(checkpoint, tmp_path):
    marker = tmp_path / "ran"
    evil = EVIL.format(marker=str(marker)).encode()
    config = json.loads(checkpoint["config.json"].read_text(encoding="utf-8"))
    classes = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
    classes["AutoTokenizer"] = ["evil.Evil", "evil.Evil"]
    pickled = {n: p for n, p in checkpoint.items() if n != "model.safetensors"}
    weights = tmp_path / "pytorch_model.bin"
    torch.save(load_file(checkpoint["model.safetensors"]), weights)
    with Hub() as hub, hub.client() as ask:
        ask(START)
        for name, kind in (("known", "llama"), ("unknown", "unheard_of")):
            text = json.dumps(config | {"auto_map": classes, "model_type": kind})
            files = checkpoint | {"config.json": text, "evil.py": evil}
            hub.add(f"owner/{name}", files, repo_type="model")
        hub.add("owner/pickled", pickled | {weights.name: weights}, repo_type="model")
        results = {}
        for name in ("known", "unknown", "pickled"):
            results[name] = ask(
                f"asked = dataclasses.replace(profile, base_model='owner/{name}', "
                "ungated_copy=None)\n" + LOAD.replace("(profile)", "(asked)")
            )
        wanted = [name for name in results if "error" not in results[name]]
        assert wanted == ["known"]
        # A known architecture loads, with the library's own code.
        assert results["known"]["result"], results["known"]
        assert "trust_remote_code" in results["unknown"]["said"]
        assert "safetensors" in results["pickled"]["said"]
        assert not [r for r in hub.seen() if "commits" in r.path]  # asks no converter
        got = [request.path for request in hub.seen() if request.method == "GET"]
        assert any("config.json" in path for path in got)  # else this proves nothing
        assert not any("evil.py" in path or weights.name in path for path in got)
    assert not marker.exists()
