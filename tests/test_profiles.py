import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import fields
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch

from course_utils.setup import profiles
from course_utils.setup.profiles import Hardware

CPU = Hardware(False, None, None, None, cores=2, ram_gib=8)
HUB = {"offline": lambda: False}


def card(name, capability, memory):
    return Hardware(True, name, capability, memory, cores=8, ram_gib=32)


def never():
    raise AssertionError("the hub was asked")


@pytest.mark.parametrize(
    ("hardware", "name", "reason"),
    [
        (CPU, "cpu", "no CUDA GPU"),
        (card("Tesla T4", (7, 5), 14.7), "t4", "Tesla T4 has 14.7 GiB and no bf16"),
        (card("NVIDIA L4", (8, 9), 22.2), "l4", "NVIDIA L4 has 22.2 GiB"),
        (card("A100-40GB", (8, 0), 39.4), "a100", "A100-40GB"),
        (card("H200", (9, 0), 139.8), "a100", "H200"),
        (card("RTX 4080", (8, 9), 15.6), "t4", "less than the 21"),
        (card("Quadro RTX 8000", (7, 5), 47.0), "t4", "no bf16"),
        (card("RTX 2060", (7, 5), 5.8), "cpu", "less than the 14"),
    ],
)
def test_hardware_decides(hardware, name, reason):
    choice = profiles.choose({}, hardware, **HUB)
    assert choice.profile.name == name
    assert reason in choice.reason


def test_a_choice_unpacks():
    profile, reason = profiles.choose({}, CPU)
    assert (profile.name, reason) == ("cpu", "no CUDA GPU")


def test_course_profile_overrides():
    profile, reason = profiles.choose({"COURSE_PROFILE": "l4"}, CPU, offline=never)
    assert profile.name == "l4" and "COURSE_PROFILE" in reason


def test_what_is_asked_for_wins_over_the_variables(tmp_path):
    environ = {"COURSE_PROFILE": "l4", "COURSE_DATA": "world"}
    chosen, reason = profiles.choose(environ, CPU, profile="cpu", data=str(tmp_path))
    assert (chosen.name, chosen.data) == ("cpu", str(tmp_path))
    assert reason == f"as asked; data from {tmp_path}"


def test_an_unknown_profile_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'h100'.*cpu, t4, l4, a100"):
        profiles.choose({"COURSE_PROFILE": "h100"}, CPU)


def test_bf16_is_not_forced_on_a_card_without_it():
    t4 = card("Tesla T4", (7, 5), 14.7)
    choice = profiles.choose({"COURSE_PROFILE": "l4"}, t4)
    assert choice.profile.dtype == "float16" and "no bf16" in choice.reason


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_emulated_bf16_does_not_count(capability):
    assert not profiles.has_bf16(card("any", capability, 16))
    assert profiles.has_bf16(card("any", (8, 0), 16))
    assert not profiles.has_bf16(CPU)


# ---- local folders ----


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "twin"
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    return folder


def test_local_folders_replace_the_hub(checkpoint, tmp_path):
    environ = {"COURSE_BASE_MODEL": str(checkpoint), "COURSE_DATA": str(tmp_path)}
    a100 = card("A100", (8, 0), 79)
    profile, reason = profiles.choose(environ, a100, offline=never)
    assert (profile.name, profile.base_model) == ("a100", str(checkpoint))
    assert (profile.data, profile.ungated_copy) == (str(tmp_path), None)
    assert "COURSE_BASE_MODEL" in reason and "COURSE_DATA" in reason


def test_a_hub_id_is_allowed_for_the_model_only():
    profile, _ = profiles.choose({"COURSE_BASE_MODEL": "owner/some-8B"}, CPU, **HUB)
    assert profile.base_model == "owner/some-8B"
    with pytest.raises(FileNotFoundError, match="COURSE_DATA"):
        profiles.choose({"COURSE_DATA": "owner/some-data"}, CPU, **HUB)


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "./twin", "twin", "a/b/c", "C:\\x"]
)
def test_a_missing_model_folder_names_the_variable(path):
    with pytest.raises(FileNotFoundError, match=r"COURSE_BASE_MODEL.*hub id"):
        profiles.choose({"COURSE_BASE_MODEL": path}, CPU)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        profiles.choose({"COURSE_BASE_MODEL": str(tmp_path)}, CPU)


def test_empty_variables_are_as_good_as_none():
    names = ("PROFILE", "BASE_MODEL", "DATA", "PAIRS")
    environ = {f"COURSE_{name}": " " for name in names}
    assert profiles.choose(environ, CPU).profile == profiles.all_profiles()["cpu"]


# ---- a rehearsal ----


def test_a_rehearsal_caps_pairs_items_and_steps():
    l4, reason = profiles.choose({"COURSE_PROFILE": "l4", "COURSE_PAIRS": "20"}, CPU)
    assert "20 pairs at most" in reason
    assert (l4.train_pairs, l4.eval_pairs, l4.at_most(105), l4.at_most(6)) == (
        20,
        20,
        20,
        6,
    )
    assert (l4.steps(124), l4.steps(1)) == (2, 1)  # 8 pairs per step


def test_without_it_nothing_is_capped():
    profile = profiles.choose({}, CPU).profile
    assert (profile.at_most(10**6), profile.steps(10**6)) == (10**6, 10**6)
    many = profiles.choose({"COURSE_PAIRS": "100000"}, CPU).profile
    assert many.train_pairs == profile.train_pairs and many.steps(124) == 124


@pytest.mark.parametrize("value", ["7", "0", "-8", "many", "8.5"])
def test_an_impossible_rehearsal_is_refused(value):
    with pytest.raises(ValueError, match="COURSE_PAIRS.*at least 8"):
        profiles.choose({"COURSE_PAIRS": value}, CPU)


def test_a_rehearsal_stays_one_where_the_hub_is_out_of_reach():
    l4 = card("NVIDIA L4", (8, 9), 22.2)
    choice = profiles.choose({"COURSE_PAIRS": "8"}, l4, offline=lambda: True)
    assert (choice.profile.name, choice.profile.max_pairs) == ("cpu", 8)
    assert "rehearsal" in choice.reason


def test_random_weights_are_named_in_the_reason(checkpoint):
    environ = {"COURSE_BASE_MODEL": str(checkpoint)}
    assert "RANDOM" not in profiles.choose(environ, CPU).reason
    (checkpoint / "config.json").write_text(
        '{"random_weights": "drawn"}', encoding="utf-8"
    )
    assert "RANDOM" in profiles.choose(environ, CPU).reason


# ---- the hub ----


def test_the_cpu_profile_never_asks_the_hub(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert not profiles.choose({}, CPU, offline=never).profile.needs_hub


def test_a_gpu_without_the_hub_falls_back_to_cpu_and_says_what_to_do():
    l4 = card("NVIDIA L4", (8, 9), 22.2)
    profile, reason = profiles.choose({}, l4, offline=lambda: True)
    assert profile.name == "cpu"
    assert "not reachable" in reason and "COURSE_BASE_MODEL" in reason


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_being_told_is_enough(variable, monkeypatch):
    monkeypatch.setattr(threading, "Thread", None)
    assert profiles.is_offline({variable: "1"})


@pytest.fixture
def server():
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(int(self.path.strip("/") or 200))
            self.end_headers()

        def log_message(self, *_):
            pass

    http = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}"
    http.shutdown()
    http.server_close()


@pytest.mark.parametrize(
    ("status", "offline"), [(200, False), (404, False), (403, True), (503, True)]
)
def test_an_answer_counts_unless_a_proxy_gave_it(server, status, offline, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert profiles.is_offline({"HF_ENDPOINT": f"{server}/{status}"}) == offline


def test_nobody_there_is_offline():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert profiles.is_offline({"HF_ENDPOINT": address})


def test_a_name_look_up_that_hangs_does_not_hold_the_notebook_up(monkeypatch):
    released = threading.Event()

    def hang(*_, **__):
        released.wait(30)
        raise OSError("released by the test")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.perf_counter()
    assert profiles.is_offline({"HF_ENDPOINT": "http://hub.invalid"}, timeout=0.3)
    assert time.perf_counter() - start < 2
    released.set()


def in_a_new_process(code):
    bare = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "COURSE_"))}
    command = [sys.executable, "-c", "from course_utils.setup import profiles\n" + code]
    return subprocess.run(
        command, env=bare, capture_output=True, text=True, encoding="utf-8"
    )


def test_stay_offline_reaches_the_hub_library():
    done = in_a_new_process(
        "profiles.stay_offline()\n"
        "from huggingface_hub import constants as c\n"
        "print(c.HF_HUB_OFFLINE, c.HF_HUB_DISABLE_TELEMETRY)\n"
        "profiles.stay_offline()  # a second call does no harm"
    )
    assert done.stdout.split() == ["True", "True"], done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", ["huggingface_hub", "datasets", "transformers"])
def test_stay_offline_reaches_libraries_that_are_imported_already(library):
    done = in_a_new_process(
        f"import {library}, huggingface_hub\nprofiles.stay_offline()\n"
        "from huggingface_hub import constants as c, is_offline_mode\n"
        "print(is_offline_mode(), c.HF_HUB_DISABLE_TELEMETRY)\n"
        "from datasets import config\nprint(config.HF_HUB_OFFLINE)\n"
    )
    assert done.stdout.split() == ["True"] * 3, done.stderr


def test_importing_profiles_imports_nothing_heavy_and_changes_nothing():
    done = in_a_new_process(
        "import os, sys\n"
        "print({'torch', 'huggingface_hub', 'numpy'} & set(sys.modules))\n"
        "print([name for name in os.environ if name.startswith(('HF_', 'COURSE_'))])"
    )
    assert done.stdout.split("\n")[:2] == ["set()", "[]"], done.stderr


# ---- the table itself ----


def test_profiles_are_consistent():
    known = profiles.all_profiles()
    assert list(known) == ["cpu", "t4", "l4", "a100"]
    for name, profile in known.items():
        assert profile.name == name
        assert isinstance(getattr(torch, profile.dtype), torch.dtype)
        # Fewer could not tell 0.5 from 0.6.
        assert profile.eval_pairs >= 194
        assert all(getattr(profile, field.name) != "" for field in fields(profile))
    assert known["cpu"].base_model == str(profiles.lab_model_folder())


def test_profiles_cannot_be_changed_by_accident():
    with pytest.raises(AttributeError):
        profiles.all_profiles()["cpu"].beta = 1


def test_probe_describes_this_machine():
    hardware = profiles.probe()
    assert hardware.cores >= 1 and hardware.ram_gib > 0.5
    assert hardware.cuda == torch.cuda.is_available()
    assert f"{hardware.cores} CPU cores" in str(hardware)
    assert "compute capability 7.5" in str(card("Tesla T4", (7, 5), 14.7))
