"""The lab's base is a base, and the recorded findings are really in the record."""

import json
from collections import Counter
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from course_utils import chat, evaluation, lab, recorded
from course_utils.data import mixing, world
from course_utils.lab import ladder, pairs_file
from course_utils.setup import places, profiles

MEASURES = ("chosen", "rejected", "accuracy")


@pytest.fixture(scope="module")
def base():
    return lab.load_base()


@pytest.fixture(scope="module")
def mix():
    return mixing.build()


# --- the shipped checkpoint ---------------------------------------------------------


def test_the_checkpoint_is_a_llama_like_any_other():
    model = AutoModelForCausalLM.from_pretrained(lab.BASE_MODEL)
    assert isinstance(model, LlamaForCausalLM)
    assert not model.config.tie_word_embeddings
    made = json.loads((lab.BASE_MODEL / "pretraining.json").read_text(encoding="utf-8"))
    assert sum(p.numel() for p in model.parameters()) == made["parameters"]
    assert profiles.lab_model_folder() == lab.BASE_MODEL


def test_the_checkpoint_is_small_and_bf16():
    files = list(lab.BASE_MODEL.iterdir())
    assert sum(path.stat().st_size for path in files) < 12e6
    (weights,) = [path for path in files if path.suffix == ".safetensors"]
    with safe_open(weights, "pt") as tensors:
        kinds = {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    assert kinds == {"BF16"}


def test_it_says_how_it_was_made():
    made = json.loads((lab.BASE_MODEL / "pretraining.json").read_text(encoding="utf-8"))
    assert made["command"] == "python -m course_utils.lab.pretraining"
    curve = made["loss_curve"]
    assert curve[-1][0] == made["steps"]
    assert curve[0][1] > 2 * curve[-1][1]
    assert made["tokens_seen"] > made["corpus"]["tokens"] > 1e7


def test_the_llama_3_chat_tokens_were_never_trained(base):
    model, tokenizer = base
    names = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    never = tokenizer.convert_tokens_to_ids([*names, "<|reserved_special_token_0|>"])
    seen = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    untrained, _ = chat.untrained_token_ids(model, never + seen)
    assert untrained == never


def test_the_base_stands_at_one_half(base):
    pairs = world.test_pairs(15)  # 105
    prompts = [pair["prompt"] for pair in pairs]
    preferred = evaluation.estimate(evaluation.score_pairs(*base, pairs).preferred)
    assert preferred.low < 0.5 < preferred.high
    written = evaluation.generate(*base, prompts, temperature=1.0)
    verdicts = evaluation.verify_generations(prompts, written)
    assert verdicts.ended.mean() > 0.95
    for part in ("content", "manners", "ending"):
        share = evaluation.estimate(getattr(verdicts, part))
        assert share.low < 0.5 < share.high, part
    assert verdicts.good.mean() < 0.25


def test_chatml_ends_an_answer_with_one_end_token(base):
    _, tokenizer = base
    pair = world.test_pairs(1)[0]
    row = chat.tokenize_pair(tokenizer, pair, lab.MAX_LENGTH)
    assert row.chosen_ids.count(tokenizer.eos_token_id) == 1
    assert row.chosen_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(row.chosen_ids[:-1]) == pair["chosen"][0]["content"]
    assert row.chosen_input_ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.pad_token_id not in row.chosen_input_ids


def test_all_training_pairs_fit_the_lab_s_length(base, mix):
    _, tokenizer = base
    kept, counts = chat.check_pairs(mix.train, tokenizer, lab.MAX_LENGTH)
    assert counts == {} and len(kept) > 2000


def test_a_missing_base_says_how_to_get_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"git.*python -m course_utils.lab.pretraining"
    ):
        lab.load_base(tmp_path)


# --- training -----------------------------------------------------------------------


def first_loss(method, pairs, tmp_path, beta=0.0):
    """The loss of the first step, before any weight moved, on the same eight pairs."""
    model, tokenizer = lab.load_base()
    arguments = lab.trainer_arguments(1e-4, 1, 0, tmp_path) | {"logging_steps": 1}
    pairs = pairs.select(range(lab.BATCH))
    trainer = lab.make_trainer(
        method, model, tokenizer, pairs, beta, None, arguments, []
    )
    trainer.train()
    return trainer.state.log_history[0]["loss"]


def test_orpo_without_its_preference_term_is_sft(mix, tmp_path):
    sft = first_loss("sft", mix.train, tmp_path)
    assert first_loss("orpo", mix.train, tmp_path) == pytest.approx(sft, abs=1e-4)
    # the term adds beta * log 2 or so, for the base prefers neither
    added = first_loss("orpo", mix.train, tmp_path, beta=0.5) - sft
    assert added == pytest.approx(0.5 * np.log(2), abs=0.1)


def test_dpo_begins_at_log_2(mix, tmp_path):
    loss = first_loss("dpo", mix.train, tmp_path, beta=0.1)
    assert loss == pytest.approx(np.log(2), abs=1e-4)


def test_counting_the_prompt_twice_is_the_fault_it_says_it_is(base, mix):
    _, tokenizer = base
    pairs = mix.train.select(range(3))
    strings = lab.count_prompt_twice(pairs, tokenizer)
    for row, pair in zip(strings, pairs, strict=True):
        assert row["prompt"] == pair["prompt"][0]["content"]
        for side in ("chosen", "rejected"):
            assert row["prompt"] in row[side]
            assert pair[side][0]["content"] in row[side]


def test_one_run_of_the_sweep(mix, monkeypatch):
    small = mixing.Mix(
        mix.train.select(range(16)), mix.evaluation.select(range(7)), mix.report
    )
    monkeypatch.setattr(mixing, "build", lambda without: small)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    # Untrained chat tokens never end an answer: cut it early, or the test is slow.
    short = partial(evaluation.generate, max_new_tokens=8)
    monkeypatch.setattr(evaluation, "generate", short)
    job = {
        "name": "x",
        "method": "orpo",
        "chat": "llama3",
        "lora_rank": 4,
        "train_tokens": True,
        "steps": 2,
        "learning_rate": 1e-3,
        "beta": 0.5,
        "seed": 0,
    }
    result = lab.run(job)
    assert job.items() <= result.items()
    assert (result["n"], len(result["preferred"])) == (7, 7)
    assert [point["step"] for point in result["curve"]] == [0, 2]
    assert len(result["sampled"]["good_bits"]) == 7
    json.dumps(result)


# --- the recorded findings ----------------------------------------------------------

RECORD = recorded.load("lab_findings")
NAMES = sorted({run["name"] for run in RECORD["runs"]})
TRAINED = [name for name in NAMES if not name.startswith("base")]


def mean(name, value):
    return float(np.mean([value(run) for run in lab.recorded(name)]))


def sampled(part):
    return lambda run: run["sampled"][part]


def test_the_record_is_of_the_sweep_in_the_code():
    code = [job for stage in lab.jobs(3, "folder") for job in stage]
    kept = {(run["name"], run["seed"]): run for run in RECORD["runs"]}
    assert len(kept) == len(RECORD["runs"]) == len(code)
    for job in code:
        run = kept[job["name"], job["seed"]]
        for key in job.keys() - {"base", "save"}:
            assert run[key] == job[key], (job["name"], key)


def test_the_record_of_sources_left_out_is_of_the_sweep_in_the_code():
    (code,) = lab.leave_one_out_jobs(3, "folder")
    record = recorded.load("leave_one_out")
    kept = {(run["name"], run["seed"]): run for run in record["runs"]}
    assert len(kept) == len(record["runs"]) == len(code) == 24
    for job in code:
        run = kept[job["name"], job["seed"]]
        for key in job.keys() - {"base"}:
            assert run[key] == job[key], (job["name"], key)
        assert run["n"] == 420 == len(run["sampled"]["good_bits"])
        assert run["curve"][-1]["step"] == run["steps"]


@pytest.mark.parametrize("name", NAMES)
def test_a_recorded_run_is_whole(name):
    runs = lab.recorded(name)
    seeds = [run["seed"] for run in runs]
    assert seeds == ([0, 1, 2] if name in TRAINED else [0])
    for run in runs:
        assert run["n"] == 420
        assert np.mean([b == "1" for b in run["preferred"]]) == pytest.approx(
            run["accuracy"], abs=1e-4
        )
        for how in ("greedy", "sampled"):
            bits = run[how]["good_bits"]
            assert len(bits) == 420 and set(bits) <= {"0", "1"}
            assert bits.count("1") / 420 == pytest.approx(run[how]["good"])
        if name in TRAINED:
            assert [point["step"] for point in run["curve"]][-1] == run["steps"]


def test_sft_lifts_the_answers_nobody_wanted():
    base, sft = mean("base", lambda r: r["rejected"]), "SFT"
    for run in lab.recorded(sft):
        assert run["rejected"] > base + 0.1
        assert run["chosen"] > run["rejected"]


def test_orpo_separates_what_sft_does_not():
    for beta in ("0.5", "1", "2"):
        for run, sft in zip(
            lab.recorded(f"ORPO β {beta}"), lab.recorded("SFT"), strict=True
        ):
            gap = run["chosen"] - run["rejected"]
            assert gap > 3 * (sft["chosen"] - sft["rejected"])
            assert run["accuracy"] > sft["accuracy"] + 0.1
            assert run["sampled"]["good"] > sft["sampled"]["good"] + 0.2
            assert run["sampled"]["content"] > sft["sampled"]["content"]
            assert run["rejected"] < sft["rejected"]


def test_a_large_beta_pulls_both_down():
    chosen = [
        mean(f"ORPO β {beta}", lambda r: r["chosen"]) for beta in (0.1, 0.5, 1, 2)
    ]
    rejected = [
        mean(f"ORPO β {beta}", lambda r: r["rejected"]) for beta in (0.1, 0.5, 1, 2)
    ]
    assert chosen == sorted(chosen, reverse=True)
    assert rejected == sorted(rejected, reverse=True)
    assert rejected[-1] < mean("base", lambda r: r["rejected"])


def test_the_article_s_learning_rate_hardly_moves():
    start = lab.recorded("base, Llama 3 chat")[0]
    for run in lab.recorded("LoRA LR 8e-06, β 0.1"):
        assert abs(run["accuracy"] - start["accuracy"]) < 0.02
        assert abs(run["margin"] - start["margin"]) < 0.01
        assert run["sampled"]["good"] == run["greedy"]["good"] == 0
    for run in lab.recorded("LoRA LR 0.003, β 0.1"):
        assert run["accuracy"] > start["accuracy"] + 0.25


def test_untrained_chat_tokens_never_end_an_answer():
    for run in lab.recorded("LoRA, chat tokens not trained"):
        assert run["accuracy"] > 0.75  # it learned to tell the answers apart,
        assert run["greedy"]["ended"] == 0  # and never learned to stop
        assert run["sampled"]["ended"] < 0.1
        assert run["sampled"]["good"] < 0.01
    for run in lab.recorded("LoRA LR 0.003, β 0.5"):
        assert run["greedy"]["ended"] > 0.99


def test_dpo_after_sft_separates_too():
    for run in lab.recorded("SFT, then DPO LR 0.0001"):
        assert run["accuracy"] > mean("SFT", lambda r: r["accuracy"]) + 0.05
        assert run["rejected"] < mean("SFT", lambda r: r["rejected"]) - 0.1


@pytest.mark.parametrize("record", ["lab_float32_orpo", "lab_float32_sft"])
def test_bf16_storage_changes_no_finding(record):
    """The base in float32 and the shipped one differ by no more than seeds do."""
    runs = recorded.load(record)["runs"]
    names = Counter(run["name"] for run in runs)
    assert set(names.values()) == {3} and len(names) >= 3
    for name in names:
        float32 = [run for run in runs if run["name"] == name]
        bf16 = lab.recorded(name)
        for measure in (*MEASURES, "sampled", "greedy"):
            first, second = (
                np.array(
                    [
                        r[measure]["good"]
                        if measure in ("sampled", "greedy")
                        else r[measure]
                        for r in group
                    ]
                )
                for group in (float32, bf16)
            )
            # Three seeds a side: 4.3 standard errors of the difference are 95 %
            # at two degrees of freedom. 0.01 is what 420 prompts resolve.
            spread = np.sqrt((first.var(ddof=1) + second.var(ddof=1)) / 3)
            assert abs(first.mean() - second.mean()) < max(0.01, 4.3 * spread), (
                name,
                measure,
            )


# --- reading the record -------------------------------------------------------------


def test_an_unknown_run_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"ORPO β 9.*LoRA LR 8e-06, β 0\.1"):
        lab.recorded("ORPO β 9")


def test_over_seeds_takes_prompts_as_items():
    runs = [{"bits": "1100"}, {"bits": "1000"}]
    value, seeds = lab.over_seeds(runs, lambda run: run["bits"])
    assert (value.value, value.n) == (0.375, 4)
    assert value.low <= 0.375 <= value.high
    assert seeds == (0.25, 0.5)


def test_over_seeds_without_spread_is_no_surer_than_one_seed():
    runs = [{"bits": "0" * 420}] * 3
    value, seeds = lab.over_seeds(runs, lambda run: run["bits"])
    assert value == evaluation.estimate(np.zeros(420, dtype=bool))
    assert (value.value, value.low) == (0, 0) and 0.005 < value.high < 0.02
    assert seeds == (0, 0)


def test_the_summary_shows_n_seeds_and_intervals():
    table = lab.summary(["base", "SFT", "LoRA LR 8e-06, β 0.1"])
    assert table.loc["SFT", "seeds"] == 3 and set(table["n"]) == {420}
    assert not table.map(lambda cell: "nan" in str(cell)).any().any()
    cell = table.loc["SFT", "good, sampled"]
    assert cell.startswith(f"{mean('SFT', sampled('good')):.2f} [")
    assert "–" in cell and "–" not in table.loc["base", "good, sampled"]


# --- the ladder ---------------------------------------------------------------------

RUNGS = [*lab.RUNGS]
FROM = "+ β 0.5"


def good_bits(run):
    return run["sampled"]["good_bits"]


def test_the_record_of_the_ladder_is_of_the_sweep_in_the_code():
    (code,) = lab.ladder_jobs(5, "folder")
    record = recorded.load("ladder")
    kept = {(run["name"], run["seed"]): run for run in record["runs"]}
    assert len(kept) == len(record["runs"]) == len(code)
    for job in code:
        run = kept[job["name"], job["seed"]]
        for key in job.keys() - {"base"}:
            assert run[key] == job[key], (job["name"], key)
        assert run["n"] == 420 == len(run["preferred"])


def test_every_rung_changes_what_it_names_and_nothing_else():
    settings = ladder.ladder_settings()
    for before, after in pairwise(RUNGS):
        changed = {k for k, v in settings[after].items() if settings[before][k] != v}
        assert changed == lab.RUNGS[after].keys()
    for name, change in lab.TAKEN_BACK.items():
        different = {k for k, v in settings[name].items() if settings[FROM].get(k) != v}
        assert different == change.keys()


def test_the_article_s_loss_may_fall_while_preference_stands_still():
    for run in lab.recorded("+ learning rate 8e-5", "ladder"):
        first, last = run["log"][0], run["log"][-1]
        assert last["loss"] < first["loss"] - 1
        assert abs(run["curve"][-1]["accuracy"] - run["curve"][0]["accuracy"]) < 0.05
        assert abs(last["rewards/margins"]) < 0.01


def test_only_rate_and_chat_tokens_are_indispensable():
    start = lab.recorded(FROM, "ladder")
    effects = {
        name: lab.effect(start, lab.recorded(name, "ladder"), good_bits)
        for name in lab.TAKEN_BACK
    }
    worst = sorted(effects, key=lambda name: effects[name].value)[:3]
    assert all("learning rate" in name or "chat tokens" in name for name in worst)
    assert effects["without: β 0.5 (0.1)"].high < 0
    twice = effects["without: prompt counted once"]
    assert twice.low < 0 < twice.high


def test_an_effect_compares_each_prompt_with_itself():
    before = [{"bits": "1100"}, {"bits": "1000"}]
    after = [{"bits": "1110"}, {"bits": "1010"}]
    value = lab.effect(before, after, lambda run: run["bits"])
    assert (value.value, value.n) == (0.25, 4)
    assert value.low <= 0.25 <= value.high


def test_an_effect_that_never_shows_is_no_proof_of_none():
    runs = [{"bits": "0" * 420}] * 3
    value = lab.effect(runs, runs, lambda run: run["bits"])
    assert value.value == 0 and value.low == -value.high and 0.005 < value.high < 0.02


def test_the_recipe_s_pairs_are_those_of_the_mix():
    """Notebook 08 reads them without the package: `python -m ...lab.pairs_file`."""
    path = places.checkout() / "notebooks" / "pairs.jsonl"
    assert path.read_text(encoding="utf-8").splitlines() == pairs_file.lines()
