"""Exercises of notebook 00: who sees which token, which machine gets which profile."""

from course_utils.exercises import solutions
from course_utils.exercises.feedback import expect
from course_utils.exercises.mechanism import exercise
from course_utils.setup import profiles

_RIGHT = solutions.seen()
_FITTING = solutions.profile_of()
_LAPTOP, _RTX_2080, _V100, _RTX_4090, _H100 = _FITTING
# Name, compute capability and memory in GiB, as torch reports them.
_CARDS = {
    _LAPTOP: None,
    _RTX_2080: ("NVIDIA GeForce RTX 2080 Ti", (7, 5), 10.7),
    _V100: ("Tesla V100-SXM2-32GB", (7, 0), 31.7),
    _RTX_4090: ("NVIDIA GeForce RTX 4090", (8, 9), 23.5),
    _H100: ("NVIDIA H100 80GB HBM3", (9, 0), 79.2),
}


@exercise(
    "0.1",
    solutions.seen,
    minutes=5,
    difficulty=1,
    trains="which loss term reads which token",
    hints=(
        "Ask of each part: does the model learn to write it (NLL)? Is it compared "
        "with another answer (odds ratio)?",
        "Look at section 3's view of a pair: it labels all four parts. The NLL reads "
        "the chosen row only, and in TRL it reads the prompt of that row too.",
    ),
    value=True,
    mistakes={
        "NLL covers the prompt too": _RIGHT | {"prompt of the chosen row": "none"},
        "never learned by the NLL": _RIGHT | {"rejected answer": "NLL + odds"},
        "odds ratio compares answers": _RIGHT
        | {"prompt of the chosen row": "NLL + odds"},
        "no term": _RIGHT | {"prompt of the rejected row": "NLL"},
        "both terms": _RIGHT | {"chosen answer": "odds"},
        "one of": _RIGHT | {"chosen answer": "SFT"},
        "missing": {"chosen answer": "NLL + odds"},
    },
)
def seen(attempt: object) -> None:
    """{part of a pair: which loss term sees it}, terms as in chat.loss_view."""
    known = ("none", "NLL", "odds", "NLL + odds")
    expect(isinstance(attempt, dict), "fill in the table", attempt, "{part: terms}")
    missing = sorted(set(_RIGHT) - set(attempt))
    expect(not missing, "parts are missing", missing, "none missing")
    for part, terms in attempt.items():
        why = f"{part}: one of the four terms"
        expect(terms in known, why, terms, " | ".join(known))
    prompt = attempt["prompt of the chosen row"]
    why = "the odds ratio compares answers; the prompt is the condition"
    expect("odds" not in prompt, why, prompt, "NLL")
    why = "TRL's NLL covers the prompt too: its labels are all tokens of the chosen row"
    expect(prompt == "NLL", why, prompt, "NLL")
    chosen = attempt["chosen answer"]
    why = "the chosen answer is in both terms: imitated, and compared with the other"
    expect(chosen == "NLL + odds", why, chosen, "NLL + odds")
    other = attempt["prompt of the rejected row"]
    why = "no term scores this prompt: the NLL reads the chosen row only"
    expect(other == "none", why, other, "none")
    rejected = attempt["rejected answer"]
    why = "the rejected answer is compared, and never learned by the NLL"
    expect(rejected == "odds", why, rejected, "odds")


@exercise(
    "0.2",
    solutions.profile_of,
    minutes=5,
    difficulty=1,
    trains="what decides the profile: memory and bf16",
    hints=(
        "Two things decide: how much memory the card has, and whether it computes "
        "bf16 (compute capability 8.0 or more).",
        "No GPU, or less memory than a T4 (about 14 GiB): cpu. No bf16: t4. With "
        "bf16: l4, and from about 38 GiB on a100.",
    ),
    value=True,
    mistakes={
        "one of the four profiles": _FITTING | {_LAPTOP: "CPU"},
        "without a CUDA GPU": _FITTING | {_LAPTOP: "t4"},
        "less than the 14": _FITTING | {_RTX_2080: "t4"},
        "no bf16": _FITTING | {_V100: "l4"},
        "and bf16": _FITTING | {_RTX_4090: "a100"},
        "has 79.2 GiB": _FITTING | {_H100: "l4"},
        "missing": {_LAPTOP: "cpu"},
    },
)
def profile_of(attempt: object) -> None:
    """{machine: profile}, as profiles.choose decides without any override."""
    expect(isinstance(attempt, dict), "fill in the table", attempt, "{machine: name}")
    missing = sorted(set(_FITTING) - set(attempt))
    expect(not missing, "machines are missing", missing, "none missing")
    known = list(profiles.all_profiles())
    for machine, card in _CARDS.items():
        got = attempt[machine]
        expect(got in known, f"{machine}: one of the four profiles", got, known)
        profile, why = profiles.choose(
            environ={}, hardware=_hardware(card), offline=lambda: False
        )
        why = why if card else f"{why}, and without a CUDA GPU only cpu fits"
        expect(got == profile.name, f"{machine}: {why}", got, profile.name)


def _hardware(card):
    if card is None:
        return profiles.Hardware(False, None, None, None, cores=8, ram_gib=16)
    gpu, capability, memory = card
    return profiles.Hardware(True, gpu, capability, memory, cores=8, ram_gib=32)
