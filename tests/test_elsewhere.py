"""The run elsewhere: files of Axolotl and LLaMA-Factory, and whose loss is whose.

What the tools themselves say needs environments of their own: tests/elsewhere writes
it down, and here the record is held against the code of today.
"""

import ast
import json
import re
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset
from tiny_llama import tiny_model, tiny_tokenizer

from course_utils import chat, lab, models, orpo, recorded
from course_utils.models.random_weights import tokenizer as twin_tokenizer
from course_utils.publishing import elsewhere
from course_utils.setup import places, profiles
from course_utils.training import ORPOConfig, ORPOTrainer

PROFILES = profiles.all_profiles()
CARDS = ("t4", "l4", "a100")
# Keyword of ORPOConfig: (key of Axolotl, key of LLaMA-Factory).
CONFIG_KEYS = {
    "learning_rate": ("learning_rate", "learning_rate"),
    "beta": ("orpo_alpha", "pref_beta"),
    "lr_scheduler_type": ("lr_scheduler", "lr_scheduler_type"),
    "warmup_steps": ("warmup_steps", "warmup_steps"),
    "per_device_train_batch_size": ("micro_batch_size", "per_device_train_batch_size"),
    "gradient_accumulation_steps": ("gradient_accumulation_steps",) * 2,
    "max_steps": ("max_steps", "max_steps"),
    "max_length": ("sequence_len", "cutoff_len"),
    "optim": ("optimizer", "optim"),
    "logging_steps": ("logging_steps", "logging_steps"),
    "logging_nan_inf_filter": ("logging_nan_inf_filter",) * 2,
    "seed": ("seed", "seed"),
}
LORA_KEYS = {
    "r": ("lora_r", "lora_rank"),
    "lora_alpha": ("lora_alpha", "lora_alpha"),
    "lora_dropout": ("lora_dropout", "lora_dropout"),
}


def turn(role, content):
    return {"role": role, "content": content}


def pair(*prompt, chosen="Paris.", rejected="It is Rome, of course, or so I heard."):
    """Turns by position: user, assistant, user, ...; a system message is a dict."""
    roles = iter(["user", "assistant"] * 3)
    turns = [
        text if isinstance(text, dict) else turn(next(roles), text) for text in prompt
    ]
    return {
        "prompt": turns,
        "chosen": [turn("assistant", chosen)],
        "rejected": [turn("assistant", rejected)],
        "source": "test",
    }


PAIRS = [
    pair("What is the capital of France?"),
    pair(
        turn("system", "Be brief."),
        "Name three rivers.",
        "Rhine, Elbe.",
        " And? ",
        chosen="The Danube, which is longer than the other two together.",
        rejected="No.",
    ),
    pair("What is 47 + 38?", chosen=" It is 85. ", rejected="It is 75."),
]


def both(profile, folder, pairs=PAIRS):
    """{tool: (configuration's text, its content)}, written to `folder`."""
    paths = {
        "axolotl": elsewhere.axolotl(profile, pairs, folder / "axolotl"),
        "llama_factory": elsewhere.llama_factory(profile, pairs, folder / "llama"),
    }
    texts = {tool: path.read_text(encoding="utf-8") for tool, path in paths.items()}
    return {tool: (text, yaml.safe_load(text)) for tool, text in texts.items()}


# ---- settings ----


def notebook_call(name, having):
    """{keyword: expression} of notebook 04's one call of `name` with this argument."""
    path = places.checkout() / "notebooks" / "src" / "04_orpo_training.py"
    text = path.read_text(encoding="utf-8")
    code = re.sub(r"^(\s*)(?:# )?%pip.*$", r"\1pass", text, flags=re.M)
    calls = [
        {keyword.arg: keyword.value for keyword in node.keywords}
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name
    ]
    keyword, expression = having
    (found,) = [
        call
        for call in calls
        if keyword in call and ast.unparse(call[keyword]) == expression
    ]
    return found


def notebook_value(name):
    """The expression that notebook 04 gives this name."""
    path = places.checkout() / "notebooks" / "src" / "04_orpo_training.py"
    text = path.read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{name} = (.+)$", text, flags=re.M)
    return found


def value_in(expression, profile):
    names = {"profile": profile, "models": models}
    for name in ("STEPS", "ATTENTION", "MLP"):
        names[name] = eval(notebook_value(name), names)
    return eval(ast.unparse(expression), names)


@pytest.mark.parametrize("name", PROFILES)
def test_settings_are_those_of_notebook_04(name, tmp_path):
    profile = PROFILES[name]
    written = both(profile, tmp_path)
    config = notebook_call(
        "ORPOConfig", having=("learning_rate", "profile.learning_rate")
    )
    lora = notebook_call("LoraConfig", having=("r", "profile.lora_rank"))
    for keywords, keys in ((config, CONFIG_KEYS), (lora, LORA_KEYS)):
        for keyword, names in keys.items():
            expected = value_in(keywords[keyword], profile)
            for (_, content), key in zip(written.values(), names, strict=True):
                assert content[key] == expected, key
                assert type(content[key]) is type(expected), key  # 8e-5 is no text
    targets = value_in(lora["target_modules"], profile)
    (_, axolotl), (_, llama_factory) = written.values()
    assert axolotl["lora_target_modules"] == targets
    assert llama_factory["lora_target"].split(",") == targets
    for content in (axolotl, llama_factory):
        assert content["bf16"] == (profile.dtype == "bfloat16")
        assert content["fp16"] == (profile.dtype == "float16")
    assert axolotl["gradient_checkpointing"] == profile.gradient_checkpointing
    switched_off = llama_factory["disable_gradient_checkpointing"]
    assert switched_off != profile.gradient_checkpointing
    assert axolotl["load_in_4bit"] == profile.nf4
    assert ("quantization_bit" in llama_factory) == profile.nf4


def test_the_traps_are_named_above_the_keys_they_explain(tmp_path):
    written = both(PROFILES["l4"], tmp_path)
    for tool, key, reason in (
        ("axolotl", "datasets:", "every user turn"),
        ("axolotl", "special_tokens:", "second end token"),
        ("axolotl", "peft_trainable_token_indices:", "no pretraining trained them"),
        ("axolotl", "excess_length_strategy:", "cuts long answers wrongly"),
        ("llama_factory", "stage:", "no stage `orpo`"),
        ("llama_factory", "additional_target:", "trainable_token_indices"),
    ):
        before = written[tool][0].partition(f"\n{key}")[0]
        comment = re.search(r"(?:\n#[^\n]*)+$", before)[0].replace("\n# ", " ")
        assert reason in comment, key
    assert all(
        len(line) <= 88 for text, _ in written.values() for line in text.splitlines()
    )
    assert "&id" not in written["axolotl"][0]  # YAML's anchors confuse readers


def test_llama_3_s_own_ids_are_trained_by_default(tmp_path):
    names = [
        twin_tokenizer.special_tokens()[i - twin_tokenizer.BASE_TOKENS]
        for i in elsewhere.LLAMA3_CONTROL_IDS
    ]
    assert names == ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    content = both(PROFILES["l4"], tmp_path)["axolotl"][1]
    rows = list(elsewhere.LLAMA3_CONTROL_IDS)
    expected = {"embed_tokens": rows, "lm_head": rows}
    assert content["peft_trainable_token_indices"] == expected
    tokenizer = tiny_tokenizer()
    ids = chat.use_llama3_chat(tokenizer)
    special = {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
    assert content["special_tokens"] == special
    path = elsewhere.axolotl(PROFILES["cpu"], PAIRS, tmp_path / "lab", ids)
    given = yaml.safe_load(path.read_text(encoding="utf-8"))[
        "peft_trainable_token_indices"
    ]
    assert given == {"embed_tokens": ids, "lm_head": ids}


# ---- rows ----


def test_axolotl_rows_have_no_prompt_and_a_system_column(tmp_path):
    path = elsewhere.axolotl(PROFILES["cpu"], PAIRS, tmp_path / "run")
    lines = (path.parent / "train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(set(row) == {"system", "chosen", "rejected"} for row in rows)
    assert [row["system"] for row in rows] == ["", "Be brief.", ""]
    texts = ["Name three rivers.", "Rhine, Elbe.", "And?", "No."]
    assert [m["content"] for m in rows[1]["rejected"]] == texts
    assert [m["role"] for m in rows[1]["chosen"]] == ["user", "assistant"] * 2
    assert rows[2]["chosen"][-1] == turn("assistant", "It is 85.")


def test_llama_factory_rows_and_their_entry_agree(tmp_path):
    path = elsewhere.llama_factory(PROFILES["cpu"], PAIRS, tmp_path / "run")
    entries = json.loads(
        (path.parent / "dataset_info.json").read_text(encoding="utf-8")
    )
    (name,) = entries
    entry = entries[name]
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["dataset"] == name
    rows = json.loads((path.parent / entry["file_name"]).read_text(encoding="utf-8"))
    assert entry["ranking"] is True and entry["formatting"] == "sharegpt"
    assert all(set(row) == set(entry["columns"].values()) for row in rows)
    tags = entry["tags"]
    assert {"role_tag", "content_tag", "user_tag", "assistant_tag"} < set(tags)
    assert set(rows[0]["chosen"]) == {tags["role_tag"], tags["content_tag"]}
    assert [m["role"] for m in rows[1]["messages"]] == [
        tags["system_tag"],
        tags["user_tag"],
        tags["assistant_tag"],
        tags["user_tag"],
    ]
    assert rows[1]["messages"][-1]["content"] == "And?"
    assert rows[1]["rejected"] == turn("assistant", "No.")


def test_a_mix_is_taken_by_its_training_pairs(tmp_path):
    mix = SimpleNamespace(train=Dataset.from_list(PAIRS))
    for write in (elsewhere.axolotl, elsewhere.llama_factory):
        from_mix = write(PROFILES["l4"], mix, tmp_path / "mix").parent
        from_list = write(PROFILES["l4"], PAIRS, tmp_path / "list").parent
        for path in from_mix.iterdir():
            assert path.read_text(encoding="utf-8") == (
                from_list / path.name
            ).read_text(encoding="utf-8")
        for folder in (from_mix, from_list):
            for path in folder.iterdir():
                path.unlink()


# ---- bad input ----


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "no pair"),
        ([PAIRS[0], pair("Hello.", "Hello!")], "row 1, prompt: .* user, assistant"),
        ([pair(turn("user", "One."), turn("user", "Two."))], "row 0, prompt"),
        ([PAIRS[0], pair("And?", turn("system", "Be brief."))], "row 1, prompt"),
        ([pair()], "row 0, prompt: the roles are none"),
        ([PAIRS[0], PAIRS[1] | {"chosen": PAIRS[1]["prompt"]}], "row 1, chosen"),
        ([PAIRS[0] | {"rejected": []}], "row 0, rejected"),
    ],
)
def test_a_row_that_neither_tool_takes_is_named(wrong, message, tmp_path):
    for write in (elsewhere.axolotl, elsewhere.llama_factory):
        with pytest.raises(ValueError, match=message):
            write(PROFILES["l4"], wrong, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):  # its own files are replaced
        elsewhere.axolotl(PROFILES["l4"], PAIRS, folder)
    (folder / "adapter.safetensors").write_bytes(b"weights")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match="adapter.safetensors is not part of"):
        elsewhere.axolotl(PROFILES["l4"], PAIRS[:1], folder)
    with pytest.raises(FileExistsError, match="Name another folder"):
        elsewhere.llama_factory(PROFILES["l4"], PAIRS, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


# ---- the loss ----


@pytest.fixture(scope="module")
def tiny():
    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    return tiny_model(len(tokenizer)).eval(), tokenizer


@pytest.fixture(scope="module")
def table(tiny):
    return elsewhere.loss_by_definition(*tiny, PAIRS, max_length=200, beta=0.3)


def test_the_first_definition_is_trl_s(tiny, table, tmp_path):
    model, tokenizer = tiny
    config = ORPOConfig(
        output_dir=str(tmp_path),
        max_length=200,
        beta=0.3,
        use_cpu=True,
        bf16=False,
        report_to="none",
        remove_unused_columns=False,
        gradient_checkpointing=False,
    )
    rows = Dataset.from_list(PAIRS).remove_columns("source")
    trainer = ORPOTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert len({len(row["chosen_input_ids"]) for row in trainer.train_dataset}) == 3
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(model.eval(), batch)
    assert table[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert table[0]["nll"] == pytest.approx(float(metrics["nll_loss"]), abs=1e-5)
    odds = -float(metrics["log_odds_ratio"])
    assert table[0]["preference"] == pytest.approx(odds, abs=1e-5)
    seen = int((batch["chosen_attention_mask"][:, 1:] == 1).sum())
    assert table[0]["tokens"] == seen


def answer_logps(tiny, row, side):
    """Log-probs of one answer's tokens, alone in its batch: no padding anywhere."""
    model, tokenizer = tiny
    tokens = chat.tokenize_pair(tokenizer, row, 200)
    ids = torch.tensor(getattr(tokens, f"{side}_input_ids"))
    answer = getattr(tokens, f"{side}_ids")
    with torch.no_grad():
        logps = model(ids[None]).logits[0].log_softmax(-1)
    return logps[:-1].gather(1, ids[1:, None])[-len(answer) :, 0]


def test_the_last_definition_is_llama_factory_s_as_its_source_reads(tiny, table):
    losses, count = [], 0
    for row in PAIRS:
        chosen = answer_logps(tiny, row, "chosen")
        rejected = answer_logps(tiny, row, "rejected")
        w, l = chosen.mean(), rejected.mean()  # noqa: E741
        log_odds = (w - l) - ((1 - w.exp()).log() - (1 - l.exp()).log())
        losses.append(-w - 0.3 * torch.nn.functional.logsigmoid(log_odds))
        count += len(chosen)
    assert table[-1]["loss"] == pytest.approx(
        torch.stack(losses).mean().item(), abs=1e-5
    )
    assert table[-1]["tokens"] == table[1]["tokens"] == count


def test_the_changes_lead_from_one_tool_s_loss_to_the_other_s(table):
    assert table[0]["change"] == 0
    total = table[0]["loss"] + sum(row["change"] for row in table)
    assert total == pytest.approx(table[-1]["loss"], abs=1e-6)
    assert all(abs(row["change"]) > 1e-3 and row["because"] for row in table[1:])
    assert len({row["preference"] for row in table}) == 1


def test_answers_of_one_length_leave_nothing_to_weigh(tiny):
    rows = [pair(text, chosen="It is 85.") for text in ("What is 47 + 38?", "Well?")]
    table = elsewhere.loss_by_definition(*tiny, rows, max_length=200, beta=0.3)
    assert table[2]["change"] == pytest.approx(0, abs=1e-6)
    assert abs(table[1]["change"]) > 1e-3


def test_a_prompt_that_fills_max_length_is_refused(tiny):
    with pytest.raises(ValueError, match="row 1 has no labelled token"):
        elsewhere.loss_by_definition(*tiny, PAIRS, max_length=30, beta=0.3)


# ---- the record of what the tools said ----


@pytest.fixture(scope="module")
def record():
    return recorded.load("elsewhere")


def test_the_recorded_losses_follow_from_the_model_of_today(record):
    model, tokenizer = lab.load_base()
    chat.use_llama3_chat(tokenizer)
    now = elsewhere.loss_by_definition(
        model.eval(), tokenizer, record["batch"], record["max_length"], record["beta"]
    )
    by_definition = {row["definition"]: row for row in now}
    names = [loss["implementation"].partition(" ")[0] for loss in record["losses"]]
    assert names == ["TRL", "Axolotl", "LLaMA-Factory"]
    for loss in record["losses"]:
        row = by_definition[loss["definition"]]
        assert loss["implementation"].partition(" ")[0] in row["used_by"]
        for term in ("loss", "nll", "preference"):
            assert row[term] == pytest.approx(loss[term], abs=1e-5), loss
    for row, before in zip(now, record["definitions"], strict=True):
        assert row["change"] == pytest.approx(before["change"], abs=1e-5)
        assert row["tokens"] == before["tokens"]


@pytest.mark.parametrize("card", CARDS)
def test_the_keys_written_today_are_those_that_were_parsed(card, record, tmp_path):
    for tool, (_, content) in both(PROFILES[card], tmp_path).items():
        parsed = record[tool]["configurations"][card]
        again = "run tests/elsewhere/validate.py again"
        assert sorted(content) == sorted(parsed["keys"]), again
        assert parsed["dropped"] == [] and parsed["changed"] == {}


def test_the_record_is_of_the_listed_versions_and_of_whole_runs(record):
    folder = places.checkout() / "tests" / "elsewhere"
    for tool, package in (("axolotl", "axolotl"), ("llama_factory", "llamafactory")):
        found = record[tool]
        versions = found["environment"]["versions"]
        listed = (folder / f"{tool}.txt").read_text(encoding="utf-8").splitlines()
        for name in (package, "transformers", "trl", "peft", "accelerate", "datasets"):
            assert f"{name}=={versions[name]}" in listed
        assert found["environment"]["other_version"] == {}
        assert found["tokens"]["same"] == found["tokens"]["written"] >= 200
        assert str(record["steps"]) in found["losses of the steps"]
    assert orpo.IGNORE_INDEX == -100  # the label both tools leave unscored
