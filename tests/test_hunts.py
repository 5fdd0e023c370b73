"""Hunts: each accepts its solution and two other right repairs."""

import ast
import inspect
import json
import random
import re
import unicodedata
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from scipy import stats
from transformers import AutoModelForCausalLM

from course_utils import chat, evaluation
from course_utils.course import notebooks
from course_utils.data import world
from course_utils.data.world.messages import user
from course_utils.exercises import checks, feedback, mechanism
from course_utils.exercises.hunts import recipes
from course_utils.setup import places

ROOT = places.checkout()
HUNTS = [each for each in checks.EXERCISES.values() if each.recipe]
NUMBERS = [each.number for each in HUNTS]


# --- other right repairs ------------------------------------------------------------


def _same(question):
    return unicodedata.normalize("NFC", " ".join(question.split())).lower()


def split_then_drop(rows, share=0.2):
    """Draw test rows at random, then drop what they ask from the training rows."""
    rows = random.Random(5).sample(rows, len(rows))
    test = rows[: round(share * len(rows) * 0.8)]
    asked = {_same(row["question"]) for row in test}
    return [row for row in rows if _same(row["question"]) not in asked], test


def one_row_per_question(rows, share=0.2):
    """Keep one row per question, then split; compare words alone."""
    seen = {}
    for row in rows:
        text = unicodedata.normalize("NFKC", row["question"])
        seen.setdefault(tuple(re.findall(r"\w+", text.lower())), row)
    kept = list(seen.values())
    return kept[round(share * len(kept)) :], kept[: round(share * len(kept))]


def by_the_smallest_number(rows):
    """Let the data say where each source begins to count."""
    begins = {
        source: min(row["better"] for row in rows if row["source"] == source)
        for source in ("duel", "label")
    }
    pairs = []
    for row in rows:
        answers = row["answers"]
        if row["source"] == "stars":
            if len({*row["stars"]}) == 1:
                continue
            best = int(np.argmax(row["stars"]))
        else:
            best = row["better"] - begins[row["source"]]
        pairs.append(
            {
                "source": row["source"],
                "question": row["question"],
                "chosen": answers[best],
                "rejected": answers[1 - best],
            }
        )
    return pairs


def by_the_verifier(rows):
    """Ask the lab's verifier instead of the column."""
    pairs = []
    for row in rows:
        if row.get("stars") == [4, 4]:
            continue
        prompt = [user(row["question"])]
        good, bad = sorted(row["answers"], key=lambda a: -sum(world.verify(prompt, a)))
        both = {"chosen": good, "rejected": bad}
        pairs.append({"source": row["source"], "question": row["question"], **both})
    return pairs


def implicit_prompt(raw):
    """Leave the prompt out: TRL finds what both dialogues share."""
    return {"chosen": raw["chosen"], "rejected": raw["rejected"]}


def templated_strings(raw):
    """Strings: TRL puts BOS in front, and the end token behind."""
    _, tokenizer = checks.material("4.4")
    prompt = tokenizer.apply_chat_template(
        raw["chosen"][:-1], tokenize=False, add_generation_prompt=True
    )
    sides = {side: raw[side][-1]["content"] for side in ("chosen", "rejected")}
    return {"prompt": prompt, **sides}


def masked_by_attention(rows, tokenizer):
    """The end token still pads; what hides it is the attention mask."""
    tokenizer.pad_token = tokenizer.eos_token
    ids = [{"input_ids": row["input_ids"]} for row in rows]
    batch = tokenizer.pad(ids, return_tensors="pt", padding_side="right")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    for label, row in zip(labels, rows, strict=True):
        label[: row["prompt_length"]] = -100
    batch["labels"] = labels
    return batch


def by_hand_and_rounded_up(rows, tokenizer):
    """No tokenizer.pad at all, and a width that is a multiple of 8."""
    width = -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
    ids = torch.full((len(rows), width), 3)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for at, row in enumerate(rows):
        real, start = torch.tensor(row["input_ids"]), row["prompt_length"]
        ids[at, : len(real)], mask[at, : len(real)] = real, 1
        labels[at, start : len(real)] = real[start:]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def over_seeds_and_prompts(first, second):
    found = evaluation.estimate_over_seeds(second - first)
    return found.value, found.low, found.high


def welch(first, second):
    a, b = first.mean(1), second.mean(1)
    interval = stats.ttest_ind(b, a, equal_var=False).confidence_interval()
    return b.mean() - a.mean(), interval.low, interval.high


def chat_format_again(model, tokenizer, base_folder, folder):
    """Give the base's tokenizer the training's format, and write the end afterwards."""
    recipes.publish(model, tokenizer, base_folder, folder)
    again = type(tokenizer).from_pretrained(base_folder)
    chat.use_llama3_chat(again)
    again.save_pretrained(folder)
    path = Path(folder) / "generation_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["eos_token_id"] = [settings["eos_token_id"], again.eos_token_id]
    path.write_text(json.dumps(settings), encoding="utf-8", newline="\n")


def both_saved_first(model, tokenizer, base_folder, folder):
    tokenizer.save_pretrained(folder)
    model.generation_config.update(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)


def one_product(x, weight, lora_a, lora_b, scale):
    """[x, A x] times [W, scale · B]: a single sum, rounded once."""
    both = torch.cat([x, x @ lora_a.T], dim=1)
    return both @ torch.cat([weight, scale * lora_b], dim=1).T


def merged_in_float32(x, weight, lora_a, lora_b, scale):
    whole = weight.float() + scale * lora_b.float() @ lora_a.float()
    return torch.nn.functional.linear(x.float(), whole).bfloat16()


def a_copy_each(base_folder, adapter_folders, folder):
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    for adapter in adapter_folders:
        model = PeftModel.from_pretrained(deepcopy(base), adapter)
        model.merge_and_unload().save_pretrained(f"{folder}/{adapter.name}")


def by_hand(base_folder, adapter_folders, folder):
    """alpha / r · B A, added to the weights of a model that is loaded each time."""
    for adapter in adapter_folders:
        model = AutoModelForCausalLM.from_pretrained(base_folder)
        weights = dict(model.named_parameters())
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name, b in tensors.items():
            if "lora_B" in name:
                own = name.removeprefix("base_model.model.").replace(".lora_B", "")
                update = 8 / 4 * b @ tensors[name.replace("lora_B", "lora_A")]
                weights[own].data += update
        model.save_pretrained(Path(folder) / adapter.name)


def first_tokens_masked(sequences):
    packed = recipes.pack(sequences)
    at = 0
    for sequence in sequences:
        packed["labels"][0, at] = -100
        at += len(sequence)
    return packed


def another_order(sequences):
    """Longest first, positions that go on, and a mask of numbers."""
    sequences = sorted(sequences, key=len, reverse=True)
    packed = recipes.pack(sequences)
    packed["labels"] = packed["input_ids"].masked_fill(packed["input_ids"] == 0, -100)
    packed["position_ids"] = torch.arange(packed["input_ids"].shape[1])[None]
    packed["attention_mask"] = torch.zeros(packed["attention_mask"].shape).masked_fill(
        ~packed["attention_mask"], -1e9
    )
    return packed


def difference_of_two(card, steps=10):
    """Time 10 and 10 + steps; the fixed costs go away."""

    def total(count):
        card.synchronize()
        start = card.clock()
        for _ in range(count):
            card.step()
        card.synchronize()
        return card.clock() - start

    total(10)
    short = total(steps)
    return (total(3 * steps) - short) / (2 * steps)


def median_of_many(card, steps=10):
    times = []
    for _ in range(101):
        start = card.clock()
        card.step()
        card.synchronize()
        times.append(card.clock() - start)
    return float(np.median(times))


OTHER_REPAIRS = {
    "2.5": (split_then_drop, one_row_per_question),
    "2.6": (by_the_smallest_number, by_the_verifier),
    "4.3": (implicit_prompt, templated_strings),
    "4.4": (masked_by_attention, by_hand_and_rounded_up),
    "5.5": (over_seeds_and_prompts, welch),
    "5.6": (one_product, merged_in_float32),
    "6.5": (chat_format_again, both_saved_first),
    "6.6": (a_copy_each, by_hand),
    "7.3": (first_tokens_masked, another_order),
    "7.4": (difference_of_two, median_of_many),
}


def test_every_hunt_has_two_other_repairs():
    assert {*OTHER_REPAIRS} == {*NUMBERS}
    notebooks_with = [each.notebook for each in HUNTS]
    with_two = ("02", "04", "05", "06", "07")
    assert all(notebooks_with.count(number) == 2 for number in with_two)


@pytest.mark.parametrize(
    ("number", "repair"),
    [(number, each) for number, both in OTHER_REPAIRS.items() for each in both],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_another_right_repair_passes(number, repair, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checks.EXERCISES[number].check(repair)
    assert f"{number}: correct\n" in capsys.readouterr().out


# --- wrong repairs ------------------------------------------------------------------


@pytest.mark.parametrize("hunt", HUNTS, ids=NUMBERS)
def test_the_recipe_rewritten_keeps_its_symptom(hunt):
    """In other words the same recipe: the feedback says so, and names no cause."""

    def rewritten(*arguments):
        return hunt.recipe(*arguments)

    assert not mechanism.same_code(rewritten, hunt.recipe)
    with pytest.raises(feedback.Feedback, match=feedback.STILL):
        hunt.check(rewritten)


@pytest.mark.parametrize("hunt", HUNTS, ids=NUMBERS)
def test_the_recipe_as_given_is_not_run(hunt, capsys):
    """Comments, docstrings' place and line numbers make no new recipe."""
    hunt.check(hunt.recipe)
    source = "\n\n\n# A comment.\n" + inspect.getsource(hunt.recipe)
    imported = "import random\nimport torch\nfrom peft import PeftModel\n"
    imported += "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    for cell in (source, imported + source):  # the cell may import, or an earlier one
        namespace = dict(vars(recipes))
        exec(cell, namespace)
        hunt.check(namespace[hunt.recipe.__name__])
    assert capsys.readouterr().out == 3 * f"{hunt.number}: not attempted yet\n"


@pytest.mark.parametrize("hunt", HUNTS, ids=NUMBERS)
def test_wrong_repairs_get_messages_of_their_own(hunt):
    assert len({*hunt.mistakes} - {"symptom is still there"}) >= 3
    assert "symptom is still there" in hunt.mistakes


def test_material_is_for_hunts_only():
    assert checks.material("2.5", seed=3) != checks.material("2.5")
    with pytest.raises(ValueError, match="exercise 1.1 has no material"):
        checks.material("1.1")


# --- the notebooks ------------------------------------------------------------------

TEXTS = {path.stem[:2]: path.read_text("utf-8") for path in notebooks.text_files(ROOT)}
ALL = list(checks.EXERCISES.values())
WITH_STUB = [each for each in ALL if callable(each.answer) and not each.recipe]


def functions_in(text):
    """{name: its syntax tree as text} of all functions of a notebook's code cells."""
    found = {}
    for cell in notebooks.from_text(text).cells:
        magic = re.search(r"^ *%", cell.source, re.MULTILINE)
        if cell.cell_type == "code" and not magic:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.FunctionDef):
                    found[node.name] = ast.dump(node)
    return found


@pytest.mark.parametrize("hunt", HUNTS, ids=NUMBERS)
def test_a_notebook_gives_the_recipe_that_is_tested(hunt):
    (recipe,) = ast.parse(inspect.getsource(hunt.recipe)).body
    assert functions_in(TEXTS[hunt.notebook])[recipe.name] == ast.dump(recipe)


@pytest.mark.parametrize("exercise", ALL, ids=lambda each: each.number)
def test_a_notebook_has_its_card_stub_and_solution(exercise):
    text = TEXTS[exercise.notebook]
    assert f"# {exercise.card} " in text
    assert f"\nchecks.{exercise.check.__name__}(" in text
    assert f'\nchecks.solution("{exercise.number}")' in text


@pytest.mark.parametrize("exercise", WITH_STUB, ids=lambda each: each.number)
def test_a_stub_has_the_solutions_arguments(exercise):
    name = exercise.check.__name__
    cells = notebooks.from_text(TEXTS[exercise.notebook]).cells
    (cell,) = [c.source for c in cells if f"checks.{name}({name})" in c.source]
    (stub,) = [n for n in ast.parse(cell).body if isinstance(n, ast.FunctionDef)]
    assert ast.get_docstring(stub) and stub.returns
    assert all(argument.annotation for argument in stub.args.args)
    names = [argument.arg for argument in stub.args.args]
    required = [
        p.name
        for p in inspect.signature(exercise.answer).parameters.values()
        if p.default is p.empty
    ]
    assert names == required


@pytest.mark.parametrize("number", sorted(set(TEXTS) - {"08"}))  # 08 has none
def test_the_exercises_of_a_notebook_run_untouched(
    number, capsys, tmp_path, monkeypatch
):
    from transformers import LlamaConfig

    from course_utils.models import memory

    monkeypatch.chdir(tmp_path)
    text = TEXTS[number]
    names = {"LlamaConfig": LlamaConfig, "memory": memory, "torch": torch}
    names |= {"checks": checks, "Path": Path}
    heading = "## The exercises and hunts" if number == "00" else "## Exercises"
    cells = notebooks.from_text(text[: text.index("# ## References")] + "# x\n").cells
    begin = next(i for i, c in enumerate(cells) if heading in c.source)
    for cell in cells[begin:]:
        if cell.cell_type == "code":
            exec(cell.source, names)
    out = capsys.readouterr().out
    for exercise in ALL:
        if exercise.notebook == number:
            assert f"{exercise.number}: not attempted yet\n" in out


@pytest.mark.parametrize("number", sorted(TEXTS))
def test_cells_of_the_exercises_are_short_and_narrow(number):
    cells = notebooks.from_text(TEXTS[number]).cells
    for cell in cells:
        if cell.cell_type == "code" and "checks." in cell.source:
            lines = cell.source.splitlines()
            assert len(lines) <= 40 and max(map(len, lines)) <= 88


def test_the_map_has_every_exercise():
    table = checks.exercise_map()
    assert list(table.index) == sorted(checks.EXERCISES)
    assert table["kind"].value_counts().to_dict() == {"exercise": 25, "hunt": 10}
    assert table.loc["7.4", "notebook"] == "07" and table["minutes"].min() >= 5
    assert table["what it trains"].str.len().max() <= 50, "pandas would cut it"
