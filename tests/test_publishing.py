"""Names, cards, licences, and what may be sent; nothing here reaches a network."""

import errno
import json
import re

import pytest
import torch
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
from safetensors.torch import save_file

from course_utils import publishing
from course_utils.data import sources
from course_utils.publishing import gate, licence, model_card
from course_utils.setup import folders, secrets

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


@pytest.mark.parametrize(
    ("base_model", "version"),
    [
        ("meta-llama/Meta-Llama-3-8B", "3"),
        ("Llama.3", "3"),
        ("Llama-v3", "3"),
        ("Llama3", "3"),
        ("someone/LLAMA_3_8B_tuned", "3"),
        ("meta-llama-3", "3"),
        ("folder llama  3", "3"),
        ("meta-llama/Llama-Guard-3-8B", "3"),
        ("Hermes-2-Pro-Llama-3-8B", "3"),
        ("l\u200bl\u2060a\ufeffma\u00ad-3", "3"),  # characters without width
        ("ll\u0430m\u0430-3-8b", "3"),  # Cyrillic a
        ("\u04cf\u04cf\u0430\u043c\u0430 3", "3"),  # all Cyrillic
        ("\u0399\u0399\u0391\u039c\u0391-3", "3"),  # Greek capitals
        ("\uff2c\uff4c\uff41\uff4d\uff41\uff0d\uff13", "3"),  # full width
        ("\U0001d40b\U0001d425\U0001d41a\U0001d426\U0001d41a-\u00b3", "3"),
        ("Ll\u00e1m\u00e4-3", "3"),
        ("IIama-3", "3"),  # capital i
        ("Llama-\u2162-8B", "3"),  # one sign for III
        ("Llama three", "3"),
        ("Llama-3.1-8B", "3.1"),
        ("llama3.2:1b", "3.2"),
        ("unsloth/Llama-3.2-1B", "3.2"),
        ("Llama-3_3-Nemotron-Super-49B-v1", "3.3"),
        ("Llama-3-1-8B", "3.1"),
        ("llama31-8b", "3.1"),
        ("Llama-3.3-70B-Instruct", "3.3"),
        ("Llama-3.7", "3.7"),
        ("huggyllama/llama-30b", None),
        ("llama-33b", None),
        ("llama-3b", None),
        ("openlm-research/open_llama_3b_v2", None),
        ("llama-3.5b", None),
        ("meta-llama/Llama-2-7b-hf", None),
        ("llama-2", None),
        ("llama-65b", None),
        ("meta-llama/Llama-4-Scout-17B", None),
        ("CodeLlama-34b", None),
        ("TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T", None),
        ("mistralai/Mistral-7B-v0.3", None),
        ("lama-3", None),
        ("the course's lab model", None),
    ],
)
@pytest.mark.promise(
    "a base whose name disguises Llama 3", "its licence is asked for all the same"
)
def test_which_names_are_llama_3(base_model, version):
    assert licence.llama_version(base_model) == version
    assert publishing.is_llama3(base_model) is (version is not None)


def test_a_llama_whose_terms_are_not_known_needs_its_agreement():
    with pytest.raises(ValueError, match="Llama 3.7, whose terms this course does not"):
        publishing.check_name("someone/Llama-3.7-orpo", "meta-llama/Llama-3.7-8B")
    later = AGREEMENT.replace("Llama 3", "Llama 3.7").replace("LLAMA 3", "LLAMA 3.7")
    later = later.replace("META ", "")
    assert licence.terms_for("meta-llama/Llama-3.7-8B", later).hub_id == "llama3.7"


def test_the_known_terms_have_the_hub_s_ids():
    assert {v: terms.hub_id for v, terms in licence.KNOWN.items()} == {
        "3": "llama3",
        "3.1": "llama3.1",
        "3.2": "llama3.2",
        "3.3": "llama3.3",
    }


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
    results["license"] = "llama3.2"
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
    size = (folder / "model.safetensors").stat().st_size
    assert f"{size:,} bytes  model.safetensors" in text


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


def keys():
    """{kind: something of its shape}; put together here, so that no file holds one."""
    digits = "0123456789abcdef"
    return {
        "Hugging Face": "hf_" + "aB3" * 12,
        "Hugging Face ": "api_org_" + "aB3" * 12,
        "GitHub": "ghp_" + "a" * 36,
        "GitHub ": "github_pat_" + "a1_" * 12,
        "GitHub  ": "ghs_" + "B2c" * 12,
        "GitLab": "glpat-" + "x1-Y" * 5,
        "OpenAI": "sk-" + "b" * 48,
        "OpenAI ": "sk-proj-" + "b1-_" * 12,
        "Anthropic": "sk-ant-api03-" + "b1-_" * 12,
        "Weights & Biases": "wandb_v1_" + "a1B2" * 8,
        "Weights & Biases (40 digits)": "WANDB_API_KEY=" + digits * 2 + digits[:8],
        "AWS": "AKIA" + "ABCD1234" * 2,
        "AWS ": "aws_secret_access_key = " + "aB3/" * 10,
        "Slack": "xoxb-" + "123456-" * 5 + "abc",
        "Google": "AIza" + "a1_-B" * 7,
        "private": "-----BEGIN OPENSSH " + "PRIVATE KEY-----",
    }


def in_results(folder, key):
    results = {**RESULTS, "run": {"command": f"X={key} run"}}
    publishing.write_card(results, folder)
    return "results.json|README.md"


def in_config(folder, key):
    (folder / "config.json").write_text(json.dumps({"note": key}), encoding="utf-8")
    return "config.json"


def escaped(folder, key):
    written = "".join(f"\\u{ord(character):04x}" for character in key)
    (folder / "tokenizer.json").write_text(f'{{"note": "{written}"}}', encoding="utf-8")
    return "tokenizer.json"


def in_utf_16(folder, key):
    (folder / "chat_template.jinja").write_text(key, encoding="utf-16")
    return "chat_template.jinja"


def in_a_header(folder, key):
    weights = {"a": torch.zeros(2)}
    save_file(weights, folder / "model.safetensors", metadata={"command": key})
    return "model.safetensors"


def as_a_tensors_name(folder, key):
    save_file({key: torch.zeros(2)}, folder / "model.safetensors")
    return "model.safetensors"


def in_a_picture(folder, key):
    publishing.write_card(FULL, folder)
    picture = folder / "curves.png"
    picture.write_bytes(picture.read_bytes() + b"tEXtComment\0" + key.encode())
    return "curves.png"


def through_a_link(folder, key):
    (folder / "kept.txt").write_text(json.dumps({"note": key}), encoding="utf-8")
    (folder / "tokenizer.json").symlink_to(folder / "kept.txt")
    return "tokenizer.json"


PLACES = [
    in_results,
    in_config,
    escaped,
    in_utf_16,
    in_a_header,
    as_a_tensors_name,
    in_a_picture,
    through_a_link,
]


# Files are read before keys are sought, so each place is tried with one kind of key,
# one with spaces in it, and each kind in one place.
@pytest.mark.parametrize(
    ("kind", "put"),
    [(kind, in_config) for kind in keys()]
    + [(kind, put) for put in PLACES for kind in ("Hugging Face", "AWS ")],
)
@pytest.mark.promise(
    "an access key of any known kind in a file that would be uploaded",
    "nothing is sent; the file and the kind are named, and the key is not",
)
def test_a_key_in_any_file_does_not_go(tmp_path, kind, put):
    key = keys()[kind]
    folder = model_folder(tmp_path, size=1000)
    file = put(folder, key)
    pass_gate(folder)
    if put is not in_a_picture:  # it would be drawn again
        publishing.write_card(
            json.loads((folder / "results.json").read_text(encoding="utf-8")), folder
        )
    else:
        card = publishing.card(FULL, gate.read_record(folder))
        (folder / "README.md").write_text(str(card), encoding="utf-8")
    with pytest.raises(ValueError, match=f"(?:{file}) holds what looks") as raised:
        publishing.upload(folder)
    said = str(raised.value)
    assert kind.strip() in said and key not in said


@pytest.mark.parametrize(
    "text",
    [
        "revision 0123456789abcdef0123456789abcdef01234567",
        '{"commit": "0123456789abcdef0123456789abcdef01234567"}',
        "sha256 " + "0123456789abcdef" * 4,
        "a risk-averse-and-otherwise-harmless-hyphenated-word",
        "sk-learn, hf_hub and ghp_ alone are words",
        "task-specific_training_of_the_reward_model_and_more",
    ],
)
def test_what_is_no_key(text):
    assert secrets.find(text) == []


def test_a_file_named_like_a_key(tmp_path):
    folder = model_folder(tmp_path)
    key = "hf_" + "aB3" * 12
    (folder / f"{key}.safetensors").write_bytes(b"x")
    pass_gate(folder)
    publishing.write_card(RESULTS, folder)
    with pytest.raises(ValueError, match="<Hugging Face key>.safetensors hold") as said:
        publishing.upload(folder)
    assert key not in str(said.value)
    (folder / f"{key}.safetensors").rename(folder / f"{key}.txt")
    pass_gate(folder)
    publishing.write_card(RESULTS, folder)
    assert key not in str(publishing.upload(folder))


@pytest.mark.promise(
    "a link that leads out of the folder to be uploaded", "nothing is sent"
)
def test_a_link_that_leads_out_does_not_go(tmp_path):
    (tmp_path / "secret.json").write_text("{}", encoding="utf-8")
    folder = model_folder(tmp_path / "merged")
    (folder / "tokenizer.json").symlink_to(tmp_path / "secret.json")
    pass_gate(folder)
    publishing.write_card(RESULTS, folder)
    with pytest.raises(ValueError, match="tokenizer.json .* leads out of the folder"):
        publishing.upload(folder)


def test_the_course_s_own_marker_neither_goes_nor_is_listed(tmp_path):
    folder = model_folder(tmp_path)
    assert (folder / folders.MARKER).is_file()
    plan = publishing.upload(folder)
    assert folders.MARKER not in str(plan)
    assert folders.MARKER not in json.dumps(gate.read_record(folder)["files"])


@pytest.mark.parametrize("name", ["README.md", "results.json", "NOTICE", "curves.png"])
@pytest.mark.promise(
    "a model card would replace a file that the course did not write",
    "nothing is written",
)
def test_a_card_replaces_nobodys_file(tmp_path, name):
    (tmp_path / "LICENSE").write_text(AGREEMENT, encoding="utf-8")
    (tmp_path / name).write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=f"holds {name}, and this course did not"):
        publishing.write_card({**LLAMA, **CURVES}, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["LICENSE", name])
    assert (tmp_path / name).read_text(encoding="utf-8") == "mine"


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
