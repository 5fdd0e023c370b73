"""Results and a folder that may be published, for the tests of publishing.

No agreement's text lies here: AGREEMENT has only the sentences that state its terms.
"""

import random

import torch
from safetensors.torch import save

from course_utils import publishing
from course_utils.publishing import gate

RESULTS = {
    "name": "someone/orpo-lab",
    "base_model": "the course's lab model",
    "license": "apache-2.0",
    "data": {
        "description": "Pairs of the small world.",
        "sources": {
            "sums": {"pairs": 300, "license": "apache-2.0", "repo": "the small world"},
            "towns": {"pairs": 280, "license": "cc-by-4.0", "repo": "owner/towns"},
        },
        "pairs": 580,
    },
    "settings": {"learning_rate": 0.003, "beta": 0.5},
    "evaluation": [
        {
            "model": model,
            "metric": "preference accuracy",
            "value": value,
            "low": value - 0.04,
            "high": value + 0.03,
            "n": 210,
            "seeds": 1,
        }
        for model, value in (("base", 0.4476), ("merged", 0.7857))
    ],
    "cost": {"minutes": 1.5, "peak_gib": 2.25},
    "run": {"date": "2026-11-22", "minutes": 1.5},
    "limits": "A small model of a small world.",
}
CURVES = {
    "curves": [
        {
            "step": 10 * i,
            "chosen": -2 + i / 10,
            "rejected": -2 - i / 10,
            "margin": i / 5,
        }
        for i in range(20)
    ],
}
LLAMA = {
    **RESULTS,
    "name": "someone/Llama-3-8B-ORPO",
    "base_model": "meta-llama/Meta-Llama-3-8B",
    "license": "llama3",
}
NOTICE = (
    "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © "
    "Meta Platforms, Inc. All Rights Reserved."
)
AGREEMENT = f"""META LLAMA 3 COMMUNITY LICENSE AGREEMENT
You shall prominently display “Built with Meta Llama 3” on a related website. You shall
also include “Llama 3” at the beginning of any such AI model name.
A notice within a “Notice” text file distributed as a part of such
copies: “{NOTICE}”
"""


def pass_gate(folder, passed=True):
    """The release gate's record for the folder as it is, with invented figures."""
    check = {
        "name": "KL of trained and merged",
        "passed": passed,
        "measured": 1.25e-06,
        "limit": 0.0001,
        "failure": "KL is 2e-3 nats per token, more than 1e-4",
    }
    return gate.write_record(folder, [check], {"n": 60}, {"command": "a test"})


def noise(seed, size):
    """The bytes of a safetensors file with one tensor of `size` random bytes."""
    drawn = bytearray(random.Random(seed).randbytes(size))
    return save({"noise": torch.frombuffer(drawn, dtype=torch.uint8)})


def model_folder(folder, results=RESULTS, size=3_000_000, passed=True):
    """A folder as it is after merging, with its proof and card.

    The weights are `size` bytes of noise, in a true safetensors file: of such a file
    only the header is searched for keys, of others every byte.
    """
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(noise(results["name"], size))
    pass_gate(folder, passed)
    if results["license"].startswith("llama"):
        (folder / "LICENSE").write_text(AGREEMENT, encoding="utf-8")
    publishing.write_card(results, folder)
    return folder
