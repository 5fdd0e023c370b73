"""The harness, run for real and offline: the lab's tasks, the suite on made-up rows.

What the harness measures is measured again by the course's own functions.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import nous_rows
import numpy as np
import pytest
import torch
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.tasks import TaskManager
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from scipy import stats
from transformers import AutoModelForCausalLM

from course_utils import chat, evaluation, lab, models
from course_utils.data import mixing
from course_utils.data.world import tasks as world_tasks
from course_utils.evaluation import Generation
from course_utils.evaluation.benchmarks import __main__ as command
from course_utils.evaluation.benchmarks import harness, nous
from course_utils.evaluation.benchmarks import lab as lab_tasks

ITEMS = lab_tasks.rows(per_source=2)
QUESTIONS = [[world_tasks.user(item["question"])] for item in ITEMS]
CHOICE = ["lab_choice", "lab_choice_framed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return lab_tasks.write_tasks(tmp_path_factory.mktemp("tasks"), ITEMS)


@pytest.fixture(scope="module")
def base():
    """The base, ready for Llama 3's chat format, whose tokens it does not know."""
    model, tokenizer = lab.load_base()
    chat.use_llama3_chat(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


@pytest.fixture(scope="module")
def tuned():
    """The base after a few steps on chosen answers: it writes, and ends its turns."""
    model, tokenizer = lab.load_base()
    chat.use_llama3_chat(tokenizer)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    pairs = list(mixing.build().train.select(range(128)))
    rows = [chat.tokenize_pair(tokenizer, pair, 256) for pair in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model.train()
    for at in range(0, len(rows), 8):
        batch = [torch.tensor(row.chosen_input_ids) for row in rows[at : at + 8]]
        ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
        labels = torch.nn.utils.rnn.pad_sequence(batch, True, -100)
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


@pytest.fixture(params=["base", "tuned"], scope="module")
def pair(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def plain(pair, folder):
    return harness.run(*pair, CHOICE, [folder]).tasks


@pytest.fixture(scope="module")
def chatty(pair, folder):
    names = ["lab_choice", "lab_write"]
    return harness.run(*pair, names, [folder], chat_template=True).tasks


# --- the same numbers as our own ----------------------------------------------------


def own_contexts(tokenizer, frame, chat_template):
    texts = [frame.format(item["question"]) for item in ITEMS]
    if not chat_template:
        return texts
    return [
        tokenizer.apply_chat_template(
            [world_tasks.user(text)], add_generation_prompt=True, tokenize=False
        )
        for text in texts
    ]


def own_scores(model, tokenizer, contexts, lead):
    """(items, 4) log-likelihoods of `lead` + choice after each context."""
    contexts = [context for context in contexts for _ in range(4)]
    answers = [lead + choice for item in ITEMS for choice in item["choices"]]
    scores = evaluation.score_answers(model, tokenizer, contexts, answers)
    return scores.total.reshape(-1, 4)


def of(result, scores):
    """The rows of `scores` that are a limited result's items."""
    asked = [item["question"] for item in ITEMS]
    return scores[[asked.index(d["question"]) for d in result.documents]]


def check_metrics(result, scores):
    gold = np.array([item["gold"] for item in ITEMS])
    lengths = np.array([[len(c) for c in item["choices"]] for item in ITEMS])
    np.testing.assert_array_equal(result.metrics["acc"], scores.argmax(1) == gold)
    by_length = (scores / lengths).argmax(1) == gold
    np.testing.assert_array_equal(result.metrics["acc_norm"], by_length)


@pytest.mark.parametrize(
    ("task", "frame"), [("lab_choice", "{}"), ("lab_choice_framed", "Q: {}\nA:")]
)
def test_plain_text_scores_are_our_own(pair, plain, task, frame):
    result = plain[task]
    scores = own_scores(*pair, own_contexts(pair[1], frame, False), " ")
    np.testing.assert_allclose(np.stack(result.answers), scores, atol=1e-4)
    check_metrics(result, scores)


def test_in_chat_format_the_harness_also_scores_the_header_s_line_breaks(pair, chatty):
    result = chatty["lab_choice"]
    contexts = own_contexts(pair[1], "{}", True)
    assert [context for context, _ in (item[0] for item in result.requests)] == contexts
    stripped = [context.rstrip() for context in contexts]
    with_breaks = own_scores(*pair, stripped, "\n\n")
    np.testing.assert_allclose(np.stack(result.answers), with_breaks, atol=1e-4)
    answer_only = own_scores(*pair, contexts, "")
    breaks = with_breaks - answer_only
    np.testing.assert_allclose(breaks, np.repeat(breaks[:, :1], 4, 1), atol=1e-4)
    np.testing.assert_array_equal(with_breaks.argmax(1), answer_only.argmax(1))
    check_metrics(result, with_breaks)


def test_written_answers_are_our_own(pair, chatty):
    result = chatty["lab_write"]
    own = evaluation.generate(*pair, QUESTIONS, temperature=0)
    assert list(result.answers) == [answer.text for answer in own]
    verdicts = evaluation.verify_generations(
        QUESTIONS, [Generation(answer.text, True) for answer in own]
    )
    np.testing.assert_array_equal(result.metrics["good"], verdicts.good)
    np.testing.assert_array_equal(result.metrics["content"], verdicts.content)


def test_the_tuned_model_is_another_one(tuned, base):
    own = [evaluation.generate(*each, QUESTIONS, 0) for each in (base, tuned)]
    assert [sum(a.ended for a in answers) > len(ITEMS) / 2 for answers in own] == [
        False,
        True,
    ]


def test_a_model_that_does_not_stop_at_the_turn_s_end_is_refused(
    tuned, folder, monkeypatch
):
    model, tokenizer = tuned
    monkeypatch.setattr(model.generation_config, "eos_token_id", 1)
    with pytest.raises(ValueError, match="lab_write: the turn's end token is '<.eot"):
        harness.run(model, tokenizer, ["lab_write"], [folder], chat_template=True)
    # The fault itself: what stands behind the end is read as answer.
    monkeypatch.setattr(harness, "_check_end_of_turn", lambda *ignored: None)
    result = harness.run(model, tokenizer, ["lab_write"], [folder], chat_template=True)
    own = evaluation.generate(model, tokenizer, QUESTIONS, 0)
    pairs = list(zip(own, result.tasks["lab_write"].answers, strict=True))
    assert any(theirs != ours.text for ours, theirs in pairs)


def test_an_adapter_with_trained_tokens_scores_as_before(base, folder):
    model, tokenizer = lab.load_base()
    ids = chat.use_llama3_chat(tokenizer)
    adapter = LoraConfig(
        r=4,
        target_modules=models.LINEAR_LAYERS,
        init_lora_weights=False,
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    )
    model = get_peft_model(model, adapter).train()
    for name, weights in model.named_parameters():
        if "trainable_tokens_delta" in name:
            weights.data += 0.1 * torch.randn(
                weights.shape, generator=torch.Generator().manual_seed(0)
            )
    contexts = own_contexts(tokenizer, "{}", True)
    before = own_scores(model, tokenizer, [c.rstrip() for c in contexts], "\n\n")
    result = harness.run(
        model, tokenizer, ["lab_choice"], [folder], chat_template=True, limit=6
    )
    result = result.tasks["lab_choice"]
    np.testing.assert_allclose(np.stack(result.answers), of(result, before), atol=1e-4)
    assert model.training
    assert np.abs(before - own_scores(*base, contexts, "")).max() > 1


def test_a_model_in_4_bit_is_scored_in_its_16_bit_and_summed_in_32(folder):
    _, tokenizer = lab.load_base()
    model = AutoModelForCausalLM.from_pretrained(
        lab.BASE_MODEL,
        dtype=torch.bfloat16,
        quantization_config=models.nf4_config(torch.bfloat16),
    )
    model = prepare_model_for_kbit_training(model)
    result = harness.run(model, tokenizer, ["lab_choice"], [folder], limit=2)
    result = result.tasks["lab_choice"]
    own = own_scores(model, tokenizer, own_contexts(tokenizer, "{}", False), " ")
    # The harness's own sums of such a model come in steps of an eighth.
    np.testing.assert_allclose(np.stack(result.answers), of(result, own), atol=1e-3)


def test_beginning_of_text_is_ours_to_choose(base, folder):
    contexts = own_contexts(base[1], "{}", False)
    begun = own_scores(*base, contexts, " ")
    without = harness.run(*base, ["lab_choice"], [folder], bos=False, limit=4)
    without = without.tasks["lab_choice"]
    assert np.abs(np.stack(without.answers) - of(without, begun)).max() > 0.01
    # In chat format the template has written it, so there is one either way.
    without = harness.run(
        *base, ["lab_choice"], [folder], chat_template=True, bos=False, limit=4
    )
    contexts = [text.rstrip() for text in own_contexts(base[1], "{}", True)]
    begun = own_scores(*base, contexts, "\n\n")
    without = without.tasks["lab_choice"]
    np.testing.assert_allclose(np.stack(without.answers), of(without, begun), atol=1e-4)


# --- our call -----------------------------------------------------------------------


def test_limit_passes_and_global_randomness(base, folder):
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = random.random(), np.random.random(), torch.rand(1).item()
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    found = harness.run(*base, CHOICE, [folder], limit=3)
    assert (random.random(), np.random.random(), torch.rand(1).item()) == expected
    assert found.passes == 2 * 3 * 4 and found.seconds > 0
    drawn = [found.tasks[name].documents for name in CHOICE]
    assert len(drawn[0]) == 3 and drawn[0] == drawn[1]
    places = [
        [item["question"] for item in ITEMS].index(each["question"])
        for each in drawn[0]
    ]
    assert places == sorted(places) != [0, 1, 2]
    assert found.warnings == {}


@pytest.mark.parametrize(
    "limit", [0, 0.0, -1, -0.5, float("nan"), float("inf"), True, False, "3", [2]]
)
@pytest.mark.promise(
    "a limit of no items, or of fewer", "the evaluation is refused before it begins"
)
def test_a_limit_that_is_no_number_of_items_is_refused(base, folder, limit):
    with pytest.raises(ValueError, match="limit is .*: give a number of items from 1"):
        harness.run(*base, ["lab_choice"], [folder], limit=limit)


@pytest.mark.parametrize("limit", [1, 3, 2.5, 0.5, 0.01, 0.999, 1.0, 1e-9, 100])
@pytest.mark.parametrize("count", [1, 7, 10])
def test_a_limit_draws_as_many_as_the_harness_takes(limit, count):
    task = SimpleNamespace(eval_docs=range(count))
    drawn = harness._drawn({"task": task}, limit)["task"]
    assert len(drawn) == min(get_sample_size(task, limit), count) > 0
    assert drawn == sorted(set(drawn)) and set(drawn) <= set(range(count))


@pytest.mark.parametrize("limit", ["0", "-3", "nan", "abc"])
def test_the_command_refuses_a_limit_before_it_loads(limit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", str(lab.BASE_MODEL), "--out", "x.json", f"--limit={limit}"]
    with pytest.raises(SystemExit) as ended:
        command.main(["lab", *arguments])
    assert "limit" in str(ended.value) or (limit, ended.value.code) == ("abc", 2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.promise(
    "benchmark results written over another file", "the file stays as it was"
)
def test_another_file_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.json").write_text('{"years": 4}', encoding="utf-8")
    (tmp_path / "folder.json").mkdir()
    model = shutil.copytree(lab.BASE_MODEL, tmp_path / "model")
    for out, words in (
        ("thesis.json", "this command did not write it"),
        ("folder.json", "is a folder"),
        ("model/x.json", "lie in each other"),
        ("model/config.json", "lie in each other"),
    ):
        with pytest.raises(SystemExit, match=words):
            command.main(["lab", "--model", str(model), "--out", out])
    assert (tmp_path / "thesis.json").read_text(encoding="utf-8") == '{"years": 4}'
    (tmp_path / "earlier.json").write_text(
        '{"command": "' + command.__package__ + '"}', encoding="utf-8"
    )
    options = SimpleNamespace(out=tmp_path / "earlier.json", model=str(model))
    command._write(options, {"command": command.__package__, "items": {"a": [1]}})
    assert json.loads((tmp_path / "earlier.json").read_text(encoding="utf-8"))[
        "items"
    ] == {"a": [1]}


def test_the_lab_s_tasks_replace_only_themselves(tmp_path):
    for _ in range(2):
        lab_tasks.write_tasks(tmp_path / "tasks", ITEMS)
    (tmp_path / "items.jsonl").write_text("years", encoding="utf-8")
    with pytest.raises(FileExistsError, match="holds items.jsonl, and this course"):
        lab_tasks.write_tasks(tmp_path, ITEMS)
    assert (tmp_path / "items.jsonl").read_text(encoding="utf-8") == "years"


def test_too_long_texts_are_counted_not_printed(base, folder, capfd, monkeypatch):
    choices = [choice for item in ITEMS for choice in item["choices"]]
    longest = max(len(base[1](f" {choice}")["input_ids"]) for choice in choices)
    monkeypatch.setattr(base[0].config, "max_position_embeddings", longest)
    found = harness.run(*base, ["lab_choice"], [folder])
    ((message, times),) = found.warnings.items()
    assert "Truncating N tokens from the left" in message and times > 1
    assert "Truncating" not in "".join(capfd.readouterr())


def test_unknown_tasks_and_missing_templates_are_named(base, folder):
    with pytest.raises(ValueError, match="no task hellaswag, mmlu in the folders"):
        harness.run(*base, ["lab_choice", "hellaswag", "mmlu"], [folder])
    model, tokenizer = lab.load_base()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template to apply"):
        harness.run(model, tokenizer, ["lab_choice"], [folder], chat_template=True)


# --- the lab's tasks ----------------------------------------------------------------


def test_one_choice_is_flawless_and_each_other_has_its_flaw():
    assert {item["source"] for item in ITEMS} >= {"prm", "truthy", "toxic"}
    for item, question in zip(ITEMS, QUESTIONS, strict=True):
        assert len(set(item["choices"])) == 4
        for flaw, choice in zip(item["flaws"], item["choices"], strict=True):
            verdict = evaluation.verify_generations(
                [question], [Generation(choice, True)]
            )
            wrong = [
                part for part in lab_tasks.FLAWS[1:] if not getattr(verdict, part).all()
            ]
            assert wrong == ([] if flaw == "none" else [flaw])
        assert item["flaws"][item["gold"]] == "none"
    places = [item["gold"] for item in lab_tasks.rows()]
    assert stats.chisquare(np.bincount(places)).pvalue > 0.001


def test_the_items_are_the_same_every_time():
    assert lab_tasks.rows(per_source=2) == ITEMS
    assert lab_tasks.rows(per_source=2, seed=1) != ITEMS


# --- the suite ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def index():
    return TaskManager(include_path=nous.folders(), include_defaults=False).task_index


def test_every_task_and_metric_is_in_the_installed_harness(index):
    missing = [task for task in nous.TASKS if task not in index]
    assert missing == []
    for row in nous.ROWS:
        config = index[row.task].cfg
        metrics = [each["metric"] for each in config["metric_list"]]
        assert row.metric in metrics, row
        # "acc_norm where present, else acc", as LLM AutoEval's table.py reads it.
        if row.group in ("AGIEval", "GPT4All"):
            assert (row.metric == "acc") == ("acc_norm" not in metrics), row
        assert config.get("num_fewshot", 0) == 0


def test_what_is_said_of_the_installed_tasks_holds(index):
    group = index["agieval_nous"].cfg
    assert sorted(group["task"]) == sorted(
        row.task for row in nous.ROWS if row.group == "AGIEval"
    )
    (aggregate,) = group["aggregate_metric_list"]
    assert aggregate["weight_by_size"] is True
    bigbench = {row.task for row in nous.ROWS if row.group == "Bigbench"}
    assert len(bigbench) == 14
    for task in bigbench:
        assert index[task].cfg["dataset_path"] == "hails/bigbench"
        assert index[task].cfg["doc_to_text"] == "inputs"


def test_the_groups_have_the_published_sizes():
    groups = [row.group for row in nous.ROWS]
    assert [groups.count(name) for name in nous.GROUPS] == [8, 7, 1, 18]
    for as_published in (False, True):
        for shares in nous.weights(as_published).values():
            assert sum(shares.values()) == pytest.approx(1)


def test_published_averages_are_means_of_their_groups():
    found = nous.published()
    assert found["columns"] == [*nous.GROUPS, "average"]
    for row in found["rows"]:
        *groups, average = row["scores"]
        assert np.mean(groups) == pytest.approx(average, abs=0.0051)
        assert row["source"] in found["sources"]


def test_the_cards_remarks_on_benchmarks_are_found_whole():
    found = nous.contamination()
    said = {(name, each["source"]) for each in found for name in each["benchmarks"]}
    expected = {
        ("TruthfulQA", "ultrafeedback"),
        ("TruthfulQA", "truthy"),
        ("MATH", "prm"),
        ("GSM8K", "intel-orca"),
        ("TheoremQA", "capybara"),
        ("GSM8K", "math-preference"),
    }
    assert expected <= said
    for each in found:
        assert each["in the suite"] == ("TruthfulQA" in each["benchmarks"])
        assert each["remark"].endswith(".") and "\n" not in each["remark"]
        assert each["card"].endswith(".md")


def made_up(seed, n=400):
    rng = np.random.default_rng(seed)
    return {row.name: (rng.random(n) < 0.4).astype(float) for row in nous.ROWS}


def test_the_average_is_the_mean_of_the_groups_and_its_interval_a_bootstrap_s():
    scores = made_up(0)
    found = nous.summary(scores)
    by_group = [
        np.mean([scores[row.name].mean() for row in nous.ROWS if row.group == group])
        for group in nous.GROUPS
    ]
    assert [found[group].value for group in nous.GROUPS] == pytest.approx(by_group)
    assert found["average"].value == pytest.approx(np.mean(by_group))
    rng = np.random.default_rng(1)
    resampled = [
        nous.summary({n: rng.choice(v, len(v)) for n, v in scores.items()})["average"]
        for _ in range(200)
    ]
    spread = np.std([each.value for each in resampled])
    half = (found["average"].high - found["average"].low) / 2
    assert half == pytest.approx(1.96 * spread, rel=0.2)


def test_as_published_counts_one_row_twice():
    scores = {name: np.zeros(4) for name in made_up(0)}
    scores["bigbench_logical_deduction_three_objects"] = np.ones(4)
    scores["bigbench_tracking_shuffled_objects_three_objects"] = np.array([0, 1, 0, 1])
    assert nous.summary(scores)["Bigbench"].value == pytest.approx(1.5 / 18)
    published = nous.summary(scores, as_published=True)
    assert published["Bigbench"].value == pytest.approx(2 / 18)


def test_a_paired_difference_is_surer_than_two_runs():
    first = made_up(0)
    rng = np.random.default_rng(1)
    second = {
        name: np.where(rng.random(len(v)) < 0.1, 1.0, v) for name, v in first.items()
    }
    found = nous.difference(first, second)["average"]
    assert found.low > 0
    alone = [nous.summary(each)["average"] for each in (first, second)]
    unpaired = np.hypot(*((each.high - each.low) / 2 for each in alone))
    assert (found.high - found.low) / 2 < 0.5 * unpaired
    shorter = first | {"piqa": first["piqa"][:-1]}
    with pytest.raises(ValueError, match="piqa: 400 and 399 items.*same --limit"):
        nous.difference(first, shorter)


def bigbench_result(counts):
    documents = tuple({"multiple_choice_targets": ["x"] * count} for count in counts)
    metrics = {"acc": np.arange(len(counts), dtype=float), "acc_norm": np.zeros(3)}
    return harness.TaskResult(metrics, documents, (), ())


def test_sizes_are_told_apart_by_their_choices():
    tasks = {task: bigbench_result([3, 7, 5]) for task in nous.TASKS}
    found = nous.items(tasks)
    by_size = {
        size: found[f"bigbench_tracking_shuffled_objects_{size}_objects"].tolist()
        for size in ("three", "five", "seven")
    }
    assert by_size == {"three": [0], "five": [2], "seven": [1]}
    tasks["bigbench_logical_deduction_multiple_choice"] = bigbench_result([3, 3, 5])
    with pytest.raises(ValueError, match="seven_objects: none of the 3.*Raise --limit"):
        nous.items(tasks)
    tasks["bigbench_logical_deduction_multiple_choice"] = bigbench_result([3, 4, 5])
    with pytest.raises(ValueError, match=r"items with \[4\] choices.*has changed"):
        nous.items(tasks)


# --- the command, without network ---------------------------------------------------

SCRIPT = """
    import socket

    def refuse(self, address):
        raise SystemExit(f"NETWORK {address}")

    def refuse_name(host, *rest, **more):
        raise SystemExit(f"NETWORK {host}")

    socket.socket.connect = refuse
    socket.socket.connect_ex = refuse
    socket.getaddrinfo = refuse_name

    from course_utils.setup import profiles

    profile, reason = profiles.choose({"COURSE_PROFILE": "cpu"})
    profiles.stay_offline()
    from course_utils.evaluation.benchmarks import __main__ as command

    model = ["--model", str(profile.base_model)]
    command.main(["lab", *model, "--out", "lab.json", "--limit", "2"])
    command.main(["nous", *model, "--out", "nous.json", "--data", "rows"])
    print("measured both")
"""


@pytest.fixture(scope="module")
def offline(tmp_path_factory):
    """Both commands in a process that may open no connection: (folder, what it said)"""
    at = tmp_path_factory.mktemp("offline")
    (at / "rows").mkdir()
    nous_rows.write(at / "rows", nous.TASKS, 6)
    # conftest.py keeps the tests offline by environment; here the code has to do it.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HF_HUB")}
    environ["PYTHONPATH"] = str(command.__file__).rsplit("course_utils", 1)[0]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)],
        capture_output=True,
        text=True,
        env=environ,
        cwd=at,
        encoding="utf-8",
    )
    return at, done


def test_the_harness_opens_no_connection(offline):
    _, done = offline
    assert "NETWORK" not in done.stderr + done.stdout, done.stderr[-2000:]
    assert "measured both" in done.stdout, done.stderr[-2000:]


def test_the_suite_s_file_says_what_was_measured_and_no_path(offline):
    at, done = offline
    text = (at / "nous.json").read_text(encoding="utf-8")
    assert str(at) not in text and "/" + "tmp" not in text
    found = json.loads(text)
    assert found["model"] == "base_model"
    assert found["settings"] == {
        "examples": 0,
        "beginning of text": False,
        "chat template": False,
        "dtype": "float32",
        "limit": None,
        "rows": "a local folder",
    }
    assert found["versions"]["lm-eval"]
    assert list(found["scores"]) == [*nous.GROUPS, "average"]
    assert [found["rows"][row.name]["n"] for row in nous.ROWS][-6:] == [2] * 6
    scores = {name: np.array(values) for name, values in found["items"].items()}
    again = nous.summary(scores)["average"]
    assert found["scores"]["average"]["value"] == pytest.approx(again.value, abs=1e-4)
    assert "Meta-Llama-3-8B (published)" in done.stdout
    assert "45.42" in done.stdout and "46.76" in done.stdout


def test_two_files_are_compared_item_by_item(offline, capsys, tmp_path):
    at, _ = offline
    record = json.loads((at / "nous.json").read_text(encoding="utf-8"))
    better = record | {"items": {n: [1] * len(v) for n, v in record["items"].items()}}
    (tmp_path / "better.json").write_text(json.dumps(better), encoding="utf-8")
    command.main(["compare", str(at / "nous.json"), str(tmp_path / "better.json")])
    lines = capsys.readouterr().out.splitlines()
    gained = 100 * (1 - record["scores"]["average"]["value"])
    assert lines[-1].startswith("average") and f"{gained:+.2f}" in lines[-1]
    better["settings"] = record["settings"] | {"chat template": True}
    (tmp_path / "better.json").write_text(json.dumps(better), encoding="utf-8")
    with pytest.raises(SystemExit, match="differ in chat template: False and True"):
        command.main(["compare", str(at / "nous.json"), str(tmp_path / "better.json")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--model": "nowhere"}, "no folder nowhere"),
        ({"--out": "nowhere/x.json"}, "there is no folder nowhere"),
        ({"--data": "."}, r"lacks agieval_aqua_rat.jsonl, and 30 files of 30"),
    ],
)
def test_what_cannot_be_run_is_said_at_once(change, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {"--model": str(lab.BASE_MODEL), "--out": "x.json", "--data": "."}
    arguments = [part for option in (options | change).items() for part in option]
    with pytest.raises(SystemExit, match=words):
        command.main(["nous", *arguments])
    assert not (tmp_path / "x.json").exists()
