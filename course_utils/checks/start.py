"""Exercises of notebook 00."""

from course_utils.checks import solutions
from course_utils.checks.mechanism import exercise, expect

_RIGHT = solutions.seen()


@exercise(
    "0.1",
    solutions.seen,
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
def seen(attempt):
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
