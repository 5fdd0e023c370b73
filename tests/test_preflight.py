import importlib.metadata
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from test_profiles import CPU, card
from tiny_llama import tiny_model

from course_utils.setup import places, preflight, profiles
from course_utils.setup.preflight import PreflightError


def declared():
    """A version of every declared library that fits: what the specifier names."""
    found = {}
    for requirement in preflight.requirements():
        found[requirement.name] = next(iter(requirement.specifier)).version
    return found


@pytest.fixture
def versions():
    return declared()


@pytest.fixture
def lab(tmp_path_factory, monkeypatch):
    """A stand-in for the model that ships with the course."""
    folder = tmp_path_factory.mktemp("package") / "base_model"
    tiny_model(64).save_pretrained(folder)
    monkeypatch.setattr(profiles, "lab_model_folder", lambda: folder)
    return folder


def run(versions, environ=None, hardware=CPU, **settings):
    def installed_version(name):
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    environ = environ or {}
    return preflight.check(
        environ, hardware, installed_version=installed_version, **settings
    )


def test_a_good_set_up_passes(lab, versions):
    report = run(versions)
    assert report.choice.profile.name == "cpu"
    assert {f.verdict for f in report.findings} <= {"ok", "warning"}
    assert report.choice.reason.startswith("no CUDA GPU")
    for text in (str(report), report._repr_html_()):
        assert f"trl {versions['trl']}" in text and "the course's own" in text.replace(
            "&#x27;", "'"
        )


def test_the_report_shows_no_path_of_this_machine(lab, versions):
    assert str(lab.parent) not in str(run(versions))


def test_the_wrong_trl_is_named_with_the_command(lab, versions):
    versions["trl"] = "1.15.0"
    (trl,) = [each for each in preflight.requirements() if each.name == "trl"]
    with pytest.raises(PreflightError, match=r"trl: is 1\.15\.0.*1\.16") as error:
        run(versions)
    assert f'pip install "trl{trl.specifier}"' in str(error.value)


def test_every_problem_is_listed_at_once(lab, versions):
    shutil.rmtree(lab)
    versions["trl"] = "0.8.6"
    versions["transformers"] = "4.40.0"
    del versions["peft"]
    with pytest.raises(PreflightError) as error:
        run(versions)
    message = str(error.value)
    for part in ("- trl: is 0.8.6", "- transformers: is 4.40.0", "- peft: is not inst"):
        assert part in message
    assert "- base model: is missing" in message and "restore it with git" in message


def test_local_builds_count_as_their_version(lab, versions):
    versions["torch"] = "2.13.0+cpu"
    assert "torch 2.13.0+cpu" in str(run(versions))


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"COURSE_PROFILE": "h100"}, "the profiles are cpu, t4, l4, a100"),
        ({"COURSE_BASE_MODEL": "/no/such"}, "there is no such folder"),
        ({"COURSE_DATA": "/no/such"}, "there is no such folder"),
    ],
)
def test_impossible_variables_are_problems(lab, versions, environ, part):
    with pytest.raises(PreflightError, match="profile: cannot be chosen") as error:
        run(versions, environ)
    assert part in str(error.value)


def test_a_gpu_profile_without_gpu_and_hub_says_both(lab, versions, tmp_path):
    environ = {"COURSE_PROFILE": "l4", "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    with pytest.raises(
        PreflightError, match="hub: not reachable, and its cache has no"
    ):
        run(versions, environ)
    copy = tmp_path / "hub" / "models--NousResearch--Meta-Llama-3-8B"
    copy.mkdir(parents=True)
    report = run(versions, environ)
    warned = {f.name for f in report.findings if f.verdict == "warning"}
    assert {"GPU", "hub"} <= warned
    assert "very slow here" in str(report)


def test_local_folders_need_neither_hub_nor_disk(lab, versions):
    environ = {"COURSE_BASE_MODEL": str(lab), "COURSE_DATA": str(lab)}
    environ["COURSE_PROFILE"] = "l4"
    names = {finding.name for finding in run(versions, environ).findings}
    assert "hub" not in names and "disk" not in names


@pytest.mark.parametrize(
    "capability, installed, words",
    [
        (None, True, "sdpa (no CUDA GPU"),
        ((7, 5), True, "sdpa (FlashAttention 2 needs capability 8.0"),
        ((8, 9), False, "sdpa (flash-attn is not installed"),
        ((8, 9), True, "flash_attention_2 (flash-attn is installed"),
    ],
)
def test_attention_is_named_with_its_reason(monkeypatch, capability, installed, words):
    def find_spec(name):
        assert name == "flash_attn"
        return object() if installed else None

    monkeypatch.setattr(preflight.importlib.util, "find_spec", find_spec)
    found = preflight._attention(replace(CPU, capability=capability))
    assert found.verdict == "ok" and found.value.startswith(words)


def test_little_memory_warns(lab, versions, monkeypatch):
    monkeypatch.setattr(preflight, "free_memory_gib", lambda hardware: 0.5)
    report = run(versions)
    memory = next(f for f in report.findings if f.name == "memory")
    assert memory.verdict == "warning" and "0.5 GiB free, 3 needed" in memory.value


def test_little_disk_warns(lab, versions, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**30)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(profiles, "is_offline", lambda environ: False)
    monkeypatch.setattr(preflight, "free_memory_gib", lambda hardware: 22)
    report = run(versions, hardware=card("NVIDIA L4", (8, 9), 22.2))
    disk = next(f for f in report.findings if f.name == "disk")
    assert disk.verdict == "warning" and "20 needed" in disk.value


def test_an_old_python_is_a_problem(lab, versions, monkeypatch):
    monkeypatch.setattr(preflight.platform, "python_version", lambda: "3.10.12")
    parts = ("3", "10", "12")
    monkeypatch.setattr(preflight.platform, "python_version_tuple", lambda: parts)
    with pytest.raises(PreflightError, match=r"python: 3\.10\.12.*3\.11"):
        run(versions)


def test_a_trl_without_orpo_will_do(lab, versions, monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("trl", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda name: spec)
    assert "recorded" in str(run(versions))


def test_a_trl_whose_orpo_does_not_import_will_do(lab, versions, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl.experimental.orpo", None)
    assert "does not import" not in str(run(versions))
    assert "does not import" in str(run(versions, thorough=True))


def test_minutes_come_from_the_committed_notebooks(
    tmp_path, monkeypatch, lab, versions
):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (tmp_path / "pyproject.toml").write_text(
        (places.PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"),
        encoding="utf-8",
    )
    run_of_01 = {"course": {"seconds": 150, "profile": "cpu"}}
    (folder / "01_sft_vs_preference.ipynb").write_text(
        json.dumps({"metadata": run_of_01}), encoding="utf-8"
    )
    (folder / "02_never_run.ipynb").write_text(
        json.dumps({"metadata": {}}), encoding="utf-8"
    )
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "course_utils")
    assert preflight.recorded_minutes() == {"01_sft_vs_preference": (2.5, "cpu")}
    assert "2.5 min" in str(run(versions))


def test_requirements_leave_extras_out():
    names = {requirement.name for requirement in preflight.requirements()}
    assert {"trl", "transformers", "peft"} <= names
    assert not names & {"pytest", "flash-attn", "jupytext"}


def test_checking_imports_no_hugging_face_library():
    """So that stay_offline can still be called after it."""
    code = (
        "import sys\nfrom course_utils.setup import preflight\n"
        "try:\n    preflight.check()\nexcept preflight.PreflightError:\n    pass\n"
        "print({'transformers', 'huggingface_hub', 'trl'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.stdout.strip() == "set()", done.stderr
