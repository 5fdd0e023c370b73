"""The Space's folder is what the hub wants, and its app answers."""

import ast
import importlib.util
import json

import pytest
import torch
import yaml
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, AutoTokenizer

from course_utils import lab
from course_utils.publishing import merging, space
from course_utils.publishing.space import folder as space_folder
from course_utils.setup import places


def write(target, model="someone/orpo-lab", base="the course's lab model"):
    return space.write(target, model, base, "apache-2.0", ["What is 47 + 38?"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("spaces") / "space"
    write(target)
    return target


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    base, tokenizer = lab.load_base()
    target = tmp_path_factory.mktemp("models") / "lab"
    merging.save(base, tokenizer, target)
    return target


@pytest.fixture
def app(folder, model, monkeypatch):
    """app.py as it lies in the Space, answering from a local model."""
    monkeypatch.setenv("MODEL_ID", str(model))
    spec = importlib.util.spec_from_file_location("space_app", folder / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_is_ready_to_push(folder):
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["README.md", "app.py", "requirements.txt", "space.json"]
    head = (folder / "README.md").read_text(encoding="utf-8").split("---")[1]
    front = yaml.safe_load(head)
    assert front["sdk"] == "gradio" and front["app_file"] == "app.py"
    assert front["models"] == ["someone/orpo-lab"]
    assert front["license"] == "apache-2.0" and front["title"] == "orpo-lab"
    assert json.loads((folder / "space.json").read_text(encoding="utf-8"))["model"] == (
        "someone/orpo-lab"
    )


def test_gradios_version_is_the_pinned_one(folder):
    pins = (places.checkout() / "constraints.txt").read_text(encoding="utf-8")
    assert f"\ngradio=={space_folder.GRADIO}\n" in pins
    assert f"sdk_version: {space_folder.GRADIO}" in (folder / "README.md").read_text(
        encoding="utf-8"
    )


def test_requirements_are_what_the_app_imports(folder):
    lines = (folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    assert not any("+" in str(pin.specifier) for pin in pins)  # no build of one machine
    tree = ast.parse((folder / "app.py").read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    brought = {pin.name for pin in pins} | {"gradio"}
    assert imported - {"functools", "json", "os", "pathlib"} <= brought


def test_llama_3_is_named_on_the_page(tmp_path):
    write(tmp_path / "s", "someone/Llama-3-8B-ORPO", "meta-llama/Meta-Llama-3-8B")
    text = (tmp_path / "s" / "README.md").read_text(encoding="utf-8")
    assert "Built with Meta Llama 3" in text
    settings = json.loads((tmp_path / "s" / "space.json").read_text(encoding="utf-8"))
    assert settings["description"].startswith("Built with Meta Llama 3. ")
    with pytest.raises(ValueError, match="begins with"):
        write(tmp_path / "t", "someone/OrpoLlama-3-8B", "meta-llama/Meta-Llama-3-8B")
    assert not (tmp_path / "t").exists()


def test_the_app_answers_as_the_model_does(app, model):
    question = "What is 47 + 38?"
    said = app.answer(question, [], max_new_tokens=20)
    loaded = AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        out = loaded.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
    want = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert said and said == want.strip()


def test_history_is_read_and_temperature_samples(app):
    turns = [
        {"role": "user", "content": "Write the word pigs 3 times."},
        {"role": "assistant", "content": [{"type": "text", "text": "pigs; pigs."}]},
    ]
    alone = app.answer("And again?", [], max_new_tokens=12)
    assert app.answer("And again?", turns, max_new_tokens=12) != alone
    torch.manual_seed(0)
    drawn = {app.answer("And 47 + 38?", [], 1.5, 12) for _ in range(4)}
    assert len(drawn) > 1


def test_a_conversation_that_fills_the_model_is_refused(app):
    with pytest.raises(ValueError, match="tokens: start a new one"):
        app.answer("word " * 600, [])


def test_the_page_builds_where_gradio_is(app):
    pytest.importorskip("gradio", reason="gradio is an extra: pip install .[demo]")
    page = app.build()
    assert page.title == "orpo-lab"
