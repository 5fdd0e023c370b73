"""Names, cards and uploads; nothing here reaches a network."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError

from course_utils import publishing

PROOF = {"n": 60, "kl": 1.3e-06, "greedy_agreement": 1.0, "failures": []}
RESULTS = {
    "name": "someone/orpo-lab",
    "base_model": "the course's lab model",
    "license": "apache-2.0",
    "data": {"description": "Seven sources.", "sources": {"sums": 300, "towns": 280}},
    "settings": {"learning_rate": 0.003, "beta": 0.5},
    "evaluation": [
        {
            "model": model,
            "metric": "preference accuracy",
            "value": value,
            "low": value - 0.04,
            "high": value + 0.03,
            "n": 210,
            "seeds": 1,
        }
        for model, value in (("base", 0.4476), ("merged", 0.7857))
    ],
    "proof": PROOF,
    "run": {"date": "2026-11-22", "minutes": 1.5},
    "limits": "A small model of a small world.",
}
LLAMA = {
    **RESULTS,
    "name": "someone/Llama-3-8B-ORPO",
    "base_model": "meta-llama/Meta-Llama-3-8B",
    "license": "llama3",
}


# ---- names ----


@pytest.mark.parametrize(
    ("name", "base_model"),
    [
        ("someone/Llama-3-8B-ORPO", "meta-llama/Meta-Llama-3-8B"),
        ("Llama-3-ORPO", "NousResearch/Meta-Llama-3-8B"),
        ("someone/Llama-3.2-1B-ORPO", "unsloth/Llama-3.2-1B"),
        ("someone/orpo-lab", "the course's lab model"),
        ("someone/OrpoMistral", "mistralai/Mistral-7B-v0.1"),
    ],
)
def test_allowed_names(name, base_model):
    assert publishing.check_name(name, base_model) == name


@pytest.mark.parametrize(
    "name",
    [
        "someone/OrpoLlama-3-8B",  # as the article named its model
        "OrpoLlama-3-8B",
        "someone/my-orpo",
        "Llama-3/orpo",  # the owner's name is not the model's
        "someone/Llama-31B",
        "someone/Meta-Llama-3-8B-ORPO",
    ],
)
def test_a_derivative_of_llama_3_must_begin_with_it(name):
    with pytest.raises(ValueError, match='begins with "Llama 3"'):
        publishing.check_name(name, "meta-llama/Meta-Llama-3-8B")


def test_a_name_that_the_hub_rejects():
    with pytest.raises(HFValidationError):
        publishing.check_name("someone/Llama 3 8B", "meta-llama/Meta-Llama-3-8B")


# ---- the card ----


def numbers(text):
    return {float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?", text)}


def test_every_number_in_the_card_was_measured():
    text = publishing.card(RESULTS).text
    tables = text[text.index("## Data") :]
    measured = numbers(json.dumps(RESULTS))
    rounded = {float(f"{number:.4g}") for number in measured}
    assert numbers(tables) - {95.0} <= measured | rounded  # 95 % names the interval
    assert {280.0, 0.4476, 0.7857, 210.0, 1.3e-06} <= numbers(tables)


def test_the_card_s_metadata_is_read_back_by_the_hub_s_own_parser(tmp_path):
    publishing.card(LLAMA).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license) == (LLAMA["base_model"], "llama3")
    (score,) = data.eval_results  # the merged model's only
    assert (score.metric_type, score.metric_value) == ("preference accuracy", 0.7857)


def test_a_card_without_scores_of_the_merged_model_claims_none():
    results = {**RESULTS, "evaluation": RESULTS["evaluation"][:1]}
    assert publishing.card(results).data.eval_results is None


@pytest.mark.parametrize("missing", publishing.REQUIRED)
def test_what_was_not_measured_cannot_be_published(missing):
    results = {key: value for key, value in RESULTS.items() if key != missing}
    with pytest.raises(ValueError, match=f"needs {missing}"):
        publishing.card(results)


def test_a_base_that_is_not_on_the_hub_is_named_in_the_text_only():
    made = publishing.card(RESULTS)
    assert made.data.base_model is None
    assert RESULTS["base_model"] in made.text


def test_a_wrong_name_gets_no_card():
    with pytest.raises(ValueError, match='begins with "Llama 3"'):
        publishing.card({**LLAMA, "name": "someone/my-orpo"})


def test_a_pipe_does_not_break_a_table():
    results = {**RESULTS, "settings": {"token": "<|eot_id|>"}}
    assert r"| token | <\|eot_id\|> |" in publishing.card(results).text


def test_nothing_false_and_zero_are_told_apart():
    settings = {"seed": 0, "dropout": False, "failures": (), "limit": None}
    text = publishing.card({**RESULTS, "settings": settings}).text
    for row in ("seed | 0", "dropout | False", "failures | none", "limit | none"):
        assert f"| {row} |" in text


def test_llama_3_gets_its_banner_and_notice(tmp_path):
    publishing.write_card(LLAMA, tmp_path)
    assert "Built with Meta Llama 3" in (tmp_path / "README.md").read_text()
    assert "Meta Llama 3 Community License" in (tmp_path / "NOTICE").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == LLAMA


def test_others_do_not(tmp_path):
    publishing.write_card(RESULTS, tmp_path)
    assert "Llama 3" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "NOTICE").exists()


# ---- the upload ----


class Hub:
    """Stands in for HfApi and notes what it is asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, token):
        self.calls.append(("token", token))
        return self

    def create_repo(self, repo_id, **options):
        self.calls.append(("create_repo", repo_id, options))

    def upload_folder(self, **options):
        self.calls.append(("upload_folder", options))


@pytest.fixture
def hub(monkeypatch):
    hub = Hub()
    monkeypatch.setattr(publishing, "HfApi", hub)
    return hub


def finished(folder, results):
    publishing.write_card(results, folder)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"x" * 3_000_000)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / ".env").write_text("HF_TOKEN=secret")
    (folder / "runs").mkdir()
    (folder / "runs" / "events.log").write_text("x")
    return folder


def test_a_dry_run_says_what_would_be_sent_and_asks_nobody(tmp_path, hub):
    plan = publishing.upload(finished(tmp_path, RESULTS), environ={"HF_TOKEN": "x"})
    assert hub.calls == [] and plan.sent is False
    assert sorted(plan.files) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "results.json",
    ]
    assert plan.left == (".env", "optimizer.pt", "runs/events.log")
    assert plan.files["model.safetensors"] == 3_000_000
    text = str(plan)
    assert text.startswith("dry run, would be sent to someone/orpo-lab (private)")
    assert "3,000.0 kB  model.safetensors" in text


def test_sending_needs_the_flag_and_a_token(tmp_path, hub):
    folder = finished(tmp_path, RESULTS)
    with pytest.raises(PermissionError, match="HF_TOKEN"):
        publishing.upload(folder, send=True, environ={"HF_TOKEN": " "})
    assert hub.calls == []


def test_sending_makes_a_private_repository_and_sends_the_planned_files(tmp_path, hub):
    folder = finished(tmp_path, RESULTS)
    plan = publishing.upload(folder, send=True, environ={"HF_TOKEN": "secret"})
    token, create, send = hub.calls
    assert token == ("token", "secret")
    assert create[1:] == ("someone/orpo-lab", {"private": True, "exist_ok": True})
    assert send[1]["allow_patterns"] == list(plan.files)
    assert send[1]["folder_path"] == folder
    assert "secret" not in str(plan) + repr(plan)


def test_a_failed_proof_is_not_published(tmp_path, hub):
    proof = {**PROOF, "failures": ["KL is 2e-3 nats a token, more than 5e-05"]}
    folder = finished(tmp_path, {**RESULTS, "proof": proof})
    for send in (False, True):
        with pytest.raises(ValueError, match="proof failed.*KL is 2e-3"):
            publishing.upload(folder, send=send, environ={"HF_TOKEN": "x"})
    assert hub.calls == []


def test_a_derivative_of_llama_3_carries_its_licence(tmp_path, hub):
    folder = finished(tmp_path, LLAMA)
    with pytest.raises(FileNotFoundError, match="copy of its licence"):
        publishing.upload(folder)
    (folder / "LICENSE").write_text("the agreement")
    assert {"LICENSE", "NOTICE"} <= set(publishing.upload(folder).files)


@pytest.mark.parametrize("missing", ["README.md", "results.json", "config.json"])
def test_an_unfinished_folder_says_what_is_missing(tmp_path, missing):
    folder = finished(tmp_path, RESULTS)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        publishing.upload(folder)
