"""Names, cards, licences, and what may be sent; nothing here reaches a network."""

import errno
import json
import re

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from publishable import (
    AGREEMENT,
    CURVES,
    LLAMA,
    NOTICE,
    RESULTS,
    model_folder,
    pass_gate,
)

from course_utils import publishing
from course_utils.data import sources
from course_utils.publishing import licence, model_card

FULL = RESULTS | CURVES

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
    return {float(n) for n in re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", text)}


def test_every_number_in_the_card_was_measured(tmp_path):
    gate = pass_gate(tmp_path)
    text = publishing.card(FULL, gate).text
    measured = numbers(json.dumps([FULL, gate]))
    rounded = {float(f"{number:.4g}") for number in measured}
    assert numbers(text) - {95.0} <= measured | rounded  # 95 % names the interval
    shown = {280.0, 580.0, 0.4476, 0.7857, 210.0, 1.25e-06, 2.25, -0.1}
    assert shown <= numbers(text)


def test_each_figure_of_the_results_changes_the_card():
    """No number in the card stands there by itself."""
    for path in [
        ("data", "pairs"),
        ("settings", "beta"),
        ("evaluation", 0, "low"),
        ("evaluation", 1, "n"),
        ("curves", 19, "margin"),
        ("cost", "peak_gib"),
        ("run", "minutes"),
    ]:
        changed = json.loads(json.dumps(FULL))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = 777
        if path == ("data", "pairs"):
            changed["data"]["sources"]["sums"]["pairs"] = 777 - 280
        assert 777 in numbers(publishing.card(changed).text), path


@pytest.mark.parametrize("part", ["evaluation", "curves", "cost", "gate"])
def test_what_was_not_measured_says_so(tmp_path, part):
    gate = None if part == "gate" else pass_gate(tmp_path)
    results = {key: value for key, value in FULL.items() if key != part}
    whole = publishing.card(FULL, pass_gate(tmp_path)).text.count("not measured")
    assert whole == 1  # the energy
    assert publishing.card(results, gate).text.count("not measured") > whole


def test_a_score_without_an_interval_says_so():
    row = {"model": "merged", "metric": "accuracy", "value": 0.5, "n": 10}
    text = publishing.card({**RESULTS, "evaluation": [row]}).text
    bounds = "not measured | not measured"
    assert f"| merged | accuracy | 0.5 | {bounds} | 10 | not measured |" in text


def test_licences_of_the_sources_stand_beside_their_counts():
    text = publishing.card(RESULTS).text
    assert "| towns | 280 | cc-by-4.0 | owner/towns |" in text
    assert publishing.card(RESULTS).data.datasets == ["owner/towns"]
    plain = {"description": "Pairs.", "sources": {"sums": 3}}
    text = publishing.card({**RESULTS, "data": plain}).text
    assert "| sums | 3 | not stated | not stated |" in text


def test_the_data_cards_say_under_which_licence_a_pair_is():
    pairs = [{"source": "toxic"}, {"source": "toxic"}, {"source": "prm"}]
    card = sources.cards()["toxic"]
    real = publishing.describe_sources(pairs, "hub")
    toxic = {"pairs": 2, "license": card.license, "repo": card.repo}
    assert real["toxic"] == toxic and real["prm"]["pairs"] == 1
    lab = publishing.describe_sources(pairs, "world")["toxic"]
    assert (lab["pairs"], lab["license"]) == (2, "apache-2.0")


def test_counts_that_do_not_sum_are_refused():
    data = {**RESULTS["data"], "pairs": 581}
    with pytest.raises(ValueError, match="sum to 580, but the data say 581"):
        publishing.card({**RESULTS, "data": data})


def test_a_figure_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"results\['cost'\]\['minutes'\] is nan"):
        publishing.card({**RESULTS, "cost": {"minutes": float("nan")}})


def test_the_card_s_metadata_is_read_back_by_the_hub_s_own_parser(tmp_path):
    (tmp_path / "README.md").write_text(str(publishing.card(LLAMA)), encoding="utf-8")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.license) == (LLAMA["base_model"], "llama3")
    (score,) = data.eval_results  # the merged model's only
    assert (score.metric_type, score.metric_value) == ("preference accuracy", 0.7857)


def test_a_card_without_scores_of_the_merged_model_claims_none():
    results = {**RESULTS, "evaluation": RESULTS["evaluation"][:1]}
    assert publishing.card(results).data.eval_results is None


@pytest.mark.parametrize("missing", model_card.REQUIRED)
def test_a_card_needs_its_facts(missing):
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


# ---- the licence ----


def test_the_terms_are_read_from_the_agreement():
    assert licence.read_terms(AGREEMENT) == licence.LLAMA_3
    with pytest.raises(ValueError, match="does not state the mark, banner, notice"):
        licence.read_terms("Apache License")


def test_llama_3_gets_its_banner_notice_and_a_copy_of_the_agreement(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    folder.mkdir()
    (base / "LICENSE.txt").write_text(AGREEMENT, encoding="utf-8")
    (base / "USE_POLICY.md").write_text("be nice", encoding="utf-8")
    publishing.write_card(LLAMA, folder, base=base)
    assert "**Built with Meta Llama 3.**" in (folder / "README.md").read_text(
        encoding="utf-8"
    )
    assert (folder / "NOTICE").read_text(encoding="utf-8") == NOTICE + "\n"
    assert (folder / "LICENSE").read_text(encoding="utf-8") == AGREEMENT
    assert (folder / "USE_POLICY.md").read_text(encoding="utf-8") == "be nice"
    assert json.loads((folder / "results.json").read_text(encoding="utf-8")) == LLAMA


def test_a_base_without_its_agreement(tmp_path):
    base, folder = tmp_path / "base", tmp_path / "merged"
    base.mkdir()
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="holds no LICENSE.*Put that file into"):
        publishing.write_card(LLAMA, folder, base=base)
    assert list(folder.iterdir()) == []


def test_a_later_llama_is_under_its_own_agreement(tmp_path):
    later = AGREEMENT.replace("Meta Llama 3", "Llama 3.2").replace(
        "“Built with Llama 3.2”", "“Built with Llama”"
    )
    later = later.replace("META LLAMA 3", "LLAMA 3.2").replace("“Llama 3”", "“Llama”")
    results = LLAMA | {"base_model": "x/Llama-3.2-1B", "name": "someone/Llama-orpo"}
    folder = model_folder(tmp_path, LLAMA)
    (folder / "LICENSE").write_text(later, encoding="utf-8")
    publishing.write_card(results, folder)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "**Built with Llama.**" in card and "Built with Meta" not in card
    notice = (folder / "NOTICE").read_text(encoding="utf-8")
    assert notice.startswith("Llama 3.2 is licensed under the Llama 3.2 Community")
    publishing.ready(folder)


def test_others_need_none_of_it(tmp_path):
    folder = model_folder(tmp_path)
    assert "Llama 3" not in (folder / "README.md").read_text(encoding="utf-8")
    assert not (folder / "NOTICE").exists() and not (folder / "LICENSE").exists()
    publishing.ready(folder)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda f: (f / "LICENSE").unlink(), "copy of its agreement"),
        (
            lambda f: (f / "LICENSE").write_text("MIT", encoding="utf-8"),
            "does not state",
        ),
        (lambda f: (f / "NOTICE").unlink(), "does not hold the sentence"),
        (
            lambda f: (f / "NOTICE").write_text("Meta", encoding="utf-8"),
            "does not hold the sentence",
        ),
        (lambda f: edit(f / "README.md", "Built with Meta", "With"), "does not say"),
        (lambda f: edit(f / "results.json", "Llama-3-8B", "8B"), "begins with"),
        (lambda f: edit(f / "results.json", '"llama3"', '"mit"'), "say llama3"),
    ],
)
def test_the_gate_enforces_the_licence(tmp_path, spoil, error):
    folder = model_folder(tmp_path, LLAMA)
    assert {"LICENSE", "NOTICE"} <= set(publishing.upload(folder).files)
    spoil(folder)
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        publishing.upload(folder)


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_an_agreement_in_the_folder_binds_whatever_the_base_is_called(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "LICENSE").write_text(AGREEMENT, encoding="utf-8")
    with pytest.raises(ValueError, match='begins with "Llama 3"'):
        publishing.upload(folder)


# ---- what may be sent ----


def test_a_dry_run_says_what_would_be_sent_and_where(tmp_path):
    folder = model_folder(tmp_path, FULL)
    (folder / "optimizer.pt").write_bytes(b"x")
    (folder / ".env").write_text("HF_TOKEN=secret", encoding="utf-8")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"x")
    (folder / "checkpoint-10" / "config.json").write_text("{}", encoding="utf-8")
    plan = publishing.upload(folder)
    assert not plan.sent
    assert set(plan.files) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "curves.png",
        "model.safetensors",
        "release_gate.json",
        "results.json",
    }
    assert plan.total_bytes == sum((folder / n).stat().st_size for n in plan.files)
    text = str(plan)
    assert "dry run, would be sent to" in text and "someone/orpo-lab (private)" in text
    for name in (".env", "optimizer.pt", "checkpoint-10/model.safetensors"):
        assert f"stays here  {name}" in text
    assert "3,000,000 bytes  model.safetensors" in text


def test_without_the_gate_s_record_nothing_goes(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "release_gate.json").unlink()
    with pytest.raises(FileNotFoundError, match="release_gate"):
        publishing.upload(folder)


def test_what_the_gate_refused_does_not_go(tmp_path):
    folder = model_folder(tmp_path, passed=False)
    for send in (False, True):
        with pytest.raises(ValueError, match="KL is 2e-3"):
            publishing.upload(folder, send=send)


def test_what_changed_after_the_gate_does_not_go(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="model.safetensors changed since"):
        publishing.upload(folder)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("README.md", "0.7857", "0.9857"),
        ("results.json", "0.7857", "0.9857"),
        ("release_gate.json", "1.25e-06", "1.25e-08"),
    ],
)
def test_a_card_that_is_not_the_results_does_not_go(tmp_path, file, old, new):
    folder = model_folder(tmp_path)
    edit(folder / file, old, new)
    with pytest.raises(ValueError, match="is not the card of results.json"):
        publishing.upload(folder)


@pytest.mark.parametrize(
    "missing", ["README.md", "results.json", "config.json", "curves.png"]
)
def test_an_unfinished_folder_says_what_is_missing(tmp_path, missing):
    folder = model_folder(tmp_path, FULL)
    (folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        publishing.upload(folder)


def test_curves_of_an_earlier_card_do_not_go(tmp_path):
    folder = model_folder(tmp_path, FULL)
    publishing.write_card(RESULTS, folder)
    assert "curves.png" in publishing.upload(folder).left


def test_a_token_in_a_file_does_not_go(tmp_path):
    secret = "hf_" + "Planted" * 5
    folder = model_folder(tmp_path, {**RESULTS, "run": {"command": f"X={secret} run"}})
    with pytest.raises(ValueError, match="results.json|README.md") as raised:
        publishing.upload(folder)
    assert secret not in str(raised.value) and "access token" in str(raised.value)


def test_a_full_disk_leaves_no_half_card(tmp_path, monkeypatch):
    folder = model_folder(tmp_path)
    before = (folder / "README.md").read_bytes()
    names = sorted(folder.iterdir())
    full = OSError(errno.ENOSPC, "No space left on device")

    def write_half(path, text, **_):
        path.write_bytes(text.encode()[:10])
        raise full

    monkeypatch.setattr(type(folder), "write_text", write_half)
    with pytest.raises(OSError, match="No space left"):
        publishing.write_card({**RESULTS, "limits": "Others."}, folder)
    assert (folder / "README.md").read_bytes() == before
    assert sorted(folder.iterdir()) == names
