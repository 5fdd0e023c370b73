"""On the `cpu` profile nothing touches the network: not model, data, nor trainer."""

import os
import subprocess
import sys
import textwrap

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
    STAY_OFFLINE

    from course_utils import chat, lab, models
    from course_utils.data import mixing
    from course_utils.training import ORPOConfig, ORPOTrainer

    model, tokenizer = models.load_base(profile)
    chat.use_llama3_chat(tokenizer)
    pairs = mixing.build(profile.data).train.select(range(8))
    pairs = pairs.select_columns(["prompt", "chosen", "rejected"])
    arguments = lab.trainer_arguments(1e-4, 1, 0, OUT)
    config = ORPOConfig(**arguments)
    trainer = ORPOTrainer(
        model, config, train_dataset=pairs, processing_class=tokenizer
    )
    trainer.train()
    print("trained one step")
"""


def run(tmp_path, stay_offline):
    script = textwrap.dedent(SCRIPT).replace("OUT", repr(str(tmp_path)))
    script = script.replace("STAY_OFFLINE", stay_offline)
    # conftest.py keeps the tests offline by environment; here the code has to do it.
    environ = {k: v for k, v in os.environ.items() if not k.startswith("HF_HUB")}
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environ,
        encoding="utf-8",
    )


def test_a_run_on_the_cpu_profile_opens_no_connection(tmp_path):
    done = run(tmp_path, "profiles.stay_offline()")
    assert "NETWORK" not in done.stderr + done.stdout, done.stderr[-2000:]
    assert "trained one step" in done.stdout, done.stderr[-2000:]


def test_the_check_above_notices_a_connection(tmp_path):
    done = run(tmp_path, "import socket; socket.create_connection(('hub.test', 443))")
    assert "NETWORK hub.test" in done.stderr
