"""The package without the extra `course`: trainers and release gate, imported fast."""

import subprocess
import sys
import tomllib

from packaging.requirements import Requirement

from course_utils import lab
from course_utils.data import mixing
from course_utils.setup import places

ROOT = places.checkout()
# What other core dependencies bring along may be imported by them.
BROUGHT_ALONG = {"pandas", "psutil", "pyyaml", "tqdm"}
BLOCKER = """
import importlib.machinery, sys

class Without(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        if fullname.split(".")[0] not in BLOCKED:
            return super().find_spec(fullname, path, target)

sys.meta_path = [
    Without if finder is importlib.machinery.PathFinder else finder
    for finder in sys.meta_path
]
"""


def blocked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    course = {Requirement(r).name for r in project["optional-dependencies"]["course"]}
    core = {Requirement(r).name for r in project["dependencies"]}
    assert not course & core and len(core) <= 14
    return {name.replace("-", "_") for name in course - BROUGHT_ALONG}


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_step_runs_without_what_only_the_course_needs():
    names = blocked()
    assert {"trl", "lm_eval", "matplotlib"} <= names
    code = f"BLOCKED = {names!r}\n" + BLOCKER
    code += f"""
sys.path[:0] = {[str(ROOT), str(ROOT / "tests" / "helpers")]!r}
import tempfile
from datasets import Dataset
from tiny_llama import tiny_model, tiny_tokenizer
import course_utils.publishing.gate
from course_utils.training import ORPOConfig, ORPOTrainer, PackedORPOTrainer

tokenizer = tiny_tokenizer()
tokenizer.pad_token = "<|reserved_special_token_0|>"
rows = [{{"prompt": "What is 47 + 38?", "chosen": " 85", "rejected": " 75"}}] * 8
for kind in (ORPOTrainer, PackedORPOTrainer):
    with tempfile.TemporaryDirectory() as folder:
        args = ORPOConfig(folder, max_steps=1, use_cpu=True, report_to="none")
        data = Dataset.from_list(rows)
        model = tiny_model(len(tokenizer))
        kind(model, args, train_dataset=data, processing_class=tokenizer).train()
assert not {names!r} & set(sys.modules)
print("trained")
"""
    assert run(code).splitlines()[-1] == "trained"


def test_the_trainers_import_within_a_second_of_transformers():
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import datasets, peft
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer
start = time.process_time()
from course_utils.training import ORPOConfig, ORPOTrainer, PackedORPOTrainer
print(time.process_time() - start)
"""
    # 0.1 s on two cores; the bound leaves room for a busy machine.
    assert float(run(code).splitlines()[-1]) < 1


def test_the_package_s_names_come_when_they_are_asked_for():
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import course_utils.training as training
assert not {{"torch", "transformers"}} & set(sys.modules)
assert set(training.__all__) <= set(dir(training))
try:
    training.nothing
except AttributeError as error:
    print(error)
"""
    assert "has no attribute 'nothing'" in run(code)


def test_the_readme_s_ten_lines_train(tmp_path, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    _, _, section = readme.partition("## ORPO on your own pairs")
    code = section.partition("```python\n")[2].partition("```")[0]
    for shown, here in (
        ("pairs = ...", "pairs = mixing.build().train.select(range(8))"),
        ("path/or/name/of/a/chat/model", "chat_model"),
        ("max_length=1024", "max_length=256, max_steps=1, report_to='none'"),
    ):
        assert code.count(shown) == 1
        code = code.replace(shown, here)
    monkeypatch.chdir(tmp_path)
    for part in lab.load_base():
        part.save_pretrained("chat_model")
    namespace = {"mixing": mixing}
    exec(code, namespace)
    assert namespace["trainer"].state.global_step == 1
