"""The seven small sources, each in the columns and with the quirks of the real one.

Ratings saturate, as a lenient judge's do: most answers that get the top mark have a
flaw, so a rule such as "only top-rated answers" leaves imperfect answers in the mix.
"""

import random

from course_utils.data.world import phrases, sampling, tasks

# Rows before selection, train split; the real sources' proportions, about 1 : 20 of the
# original mix after selection.
SIZES = {
    "capybara": 560,
    "intel-orca": 380,
    "ultrafeedback": 1150,
    "math-preference": 220,
    "toxic": 90,
    "prm": 380,
    "truthy": 165,
}
LENIENCY = 1.0  # marks that the judge adds on the 1-5 scale before it rounds
# The larger Capybara set, which version 1.2 of the mix takes, has new names of columns
# and fewer of them.
CAPYBARA_PREFERENCES = {
    "source": "source",
    "chosen": "chosen",
    "rating_chosen": "chosen_rating",
    "chosen_model": "chosen_model",
    "rejected": "rejected",
    "rating_rejected": "rejected_rating",
    "rejected_model": "rejected_model",
}
ULTRAFEEDBACK_SOURCES = ("evol_instruct", "sharegpt", "ultrachat", "flan_v2_niv2")


def _mark(quality, low=1.0, high=5.0, step=1.0):
    """A quality (5 = flawless, 1 less per flaw) as a published rating, low to high."""
    share = (quality + LENIENCY - 1) / 4
    marked = low + round(share * (high - low) / step) * step
    return min(high, max(low, marked))


def _dialogue(pair, answer):
    return [*pair.prompt, tasks.assistant(answer.text)]


def _capybara(pair, rng, index):
    turns = [m["content"] for m in pair.prompt]
    turns.append(pair.chosen.text)
    conversation = [
        {"input": turns[i], "output": turns[i + 1]} for i in range(0, len(turns), 2)
    ]
    return {
        "source": rng.choice(["Dove", "Airoboros", "General-Instruct"]),
        "conversation": conversation,
        "original_response": pair.chosen.text,
        "generation_prompt": [pair.prompt[-1]["content"]],
        "raw_generation_responses": [pair.rejected.text],
        "new_generations": [pair.rejected.text],
        # Only the first turn, as the published mix has it: a trap for multi-turn rows.
        "prompt": pair.prompt[0]["content"],
        "chosen": _dialogue(pair, pair.chosen),
        "rejected": _dialogue(pair, pair.rejected),
        "rating_chosen": int(_mark(pair.chosen.quality)),
        "rating_rejected": int(_mark(pair.rejected.quality)),
        "chosen_model": "pip-a",
        "rejected_model": "pip-b",
    }


def _intel_orca(pair, rng, index):
    chosen, rejected = pair.chosen.text, pair.rejected.text
    marks = [_mark(a.quality, 1.0, 10.0) for a in (pair.chosen, pair.rejected)]
    status = "tie" if marks[0] == marks[1] else rng.choice(["unchanged", "swapped"])
    swapped = status == "swapped"
    unrated = index % 150 == 149  # a few rows never got a rating
    if index % 190 == 189:  # and in a few both answers are the same
        rejected = chosen
    return {
        "system": rng.choice(("", *phrases.SYSTEM_HELPFUL)),
        "input": pair.prompt[-1]["content"],
        "chosen": chosen,
        "rejected": rejected,
        "generations": [rejected, chosen] if swapped else [chosen, rejected],
        "order": ["chosen", "rejected"],
        "labelling_model": "the noisy judge",
        "labelling_prompt": [tasks.user(pair.prompt[-1]["content"])],
        "raw_labelling_response": None if unrated else f"{marks[0]:g} {marks[1]:g}",
        "rating": None if unrated else marks,
        "rationale": None if unrated else "5 minus flaws, plus noise.",
        "status": status,
        "original_chosen": rejected if swapped else chosen,
        "original_rejected": chosen if swapped else rejected,
        "chosen_score": None if unrated else marks[0],
        "in_gsm8k_train": pair.source == "prm",
    }


def _ultrafeedback(pair, rng, index):
    # Grouped by origin, so that a slice is not a sample.
    share = index / SIZES["ultrafeedback"]
    origin = ULTRAFEEDBACK_SOURCES[min(3, int(4 * share))]
    return {
        "source": origin,
        "prompt": pair.prompt[-1]["content"],
        "chosen": _dialogue(pair, pair.chosen),
        "chosen-rating": _mark(pair.chosen.quality, step=0.25),
        "chosen-model": "pip-a",
        "rejected": _dialogue(pair, pair.rejected),
        "rejected-rating": _mark(pair.rejected.quality, step=0.25),
        "rejected-model": "pip-b",
    }


def _math_preference(pair, rng, index):
    return {
        "metadata": "{}",
        "instruction": pair.prompt[-1]["content"],
        "chosen_response": pair.chosen.text,
        "chosen_rating": _mark(pair.chosen.quality, 1.0, 10.0),
        "rejected_response": pair.rejected.text,
        "rejected_rating": _mark(pair.rejected.quality, 1.0, 10.0),
    }


def _strings(pair):
    return {
        "prompt": pair.prompt[-1]["content"],
        "chosen": pair.chosen.text,
        "rejected": pair.rejected.text,
    }


def _toxic(pair, rng, index):
    return _strings(pair)


def _prm(pair, rng, index):
    return {**_strings(pair), "is_chosen_correct": not pair.chosen.flaws[0]}


def _truthy(pair, rng, index):
    system = pair.prompt[0]["content"] if pair.prompt[0]["role"] == "system" else ""
    return {
        "id": f"truthy-{index:04d}",
        "source": "truthy_dpo",
        "system": system,
        **_strings(pair),
    }


_WRITERS = {
    "capybara": _capybara,
    "intel-orca": _intel_orca,
    "ultrafeedback": _ultrafeedback,
    "math-preference": _math_preference,
    "toxic": _toxic,
    "prm": _prm,
    "truthy": _truthy,
}


def rows(
    source: str, count: int | None = None, seed: int = 11, version: str = "v1.0"
) -> list[dict]:
    """The rows of one small source, train split, in the real source's columns.

    source: a name in `SIZES`. count: rows, by default `SIZES[source]`. version: of the
    mix; in "v1.2" capybara has the columns of the set that took its place.
    Returns: list of dicts. No prompt repeats. 1 in 40 rows of intel-orca is a
    three-step problem with numbers that are kept for the tests, under other names, and
    is flagged in `in_gsm8k_train`: the small world's contamination. (That some repeat
    a word which a test repeats too is contamination that no column confesses.)
    Raises: ValueError if the source is unknown or has too few distinct prompts.
    """
    if source not in _WRITERS:
        raise ValueError(f"Unknown source {source!r}. Known: {', '.join(_WRITERS)}.")
    count = SIZES[source] if count is None else count
    rng = random.Random(f"{source}-{seed}")
    out, seen, repeats = [], set(), 0
    while len(out) < count:
        leaked = source == "intel-orca" and len(out) % 40 == 39
        pair = sampling.draw(
            "prm" if leaked else source, rng, "test" if leaked else "train"
        )
        # "extensively cleaned": the real prm set keeps only pairs with a correct chosen
        if source == "prm" and pair.chosen.flaws[0]:
            continue
        key = sampling.prompt_key(pair.prompt)
        if key in seen:
            repeats += 1
            if repeats > 20 * count:
                raise ValueError(
                    f"{source} has only about {len(seen)} distinct prompts, "
                    f"{count} asked."
                )
            continue
        seen.add(key)
        out.append(_WRITERS[source](pair, rng, len(out)))
    if source == "capybara" and version == "v1.2":
        names = CAPYBARA_PREFERENCES.items()
        return [{new: row[old] for old, new in names} for row in out]
    return out
