"""From the article's recipe to one that learns, one change per rung.

The article is "Fine-tune Llama 3 with ORPO" (April 2024). Every rung keeps the changes
of the rungs below it. Each `taken_back` run starts from the recommended rung and gives
up one of its changes, so that an effect does not depend on the order of the rungs.
"""

from pathlib import Path

from course_utils.lab.base import BASE_MODEL

ARTICLE = {
    "method": "orpo",
    "chat": "llama3",
    "lora_rank": 16,
    "pairs": 1000,
    "steps": 124,
    "every": 31,
    "keep_log": True,
    "prompt_twice": True,
    "train_tokens": False,
    "learning_rate": 8e-6,
    "beta": 0.1,
}
RUNGS = {
    "the article": {},
    "+ prompt counted once": {"prompt_twice": False},
    "+ chat tokens trained": {"train_tokens": True},
    "+ learning rate 8e-5": {"learning_rate": 8e-5},
    "+ learning rate 3e-3": {"learning_rate": 3e-3},
    "+ β 0.5": {"beta": 0.5},
    "+ twice the steps, all pairs": {"steps": 248, "pairs": None, "every": 62},
}
RECOMMENDED = "+ β 0.5"
TAKEN_BACK = {
    "without: prompt counted once": {"prompt_twice": True},
    "without: chat tokens trained": {"train_tokens": False},
    "without: learning rate 3e-3 (8e-5)": {"learning_rate": 8e-5},
    "without: learning rate 3e-3 (8e-6)": {"learning_rate": 8e-6},
    "without: β 0.5 (0.1)": {"beta": 0.1},
    "with dropout 0.05 that is really on": {"dropout": 0.05},
}


def ladder_settings() -> dict[str, dict]:
    """{name of a run: its settings}, the rungs in order, then the ones taken back."""
    settings, so_far = {}, dict(ARTICLE)
    for name, change in RUNGS.items():
        so_far = so_far | change
        settings[name] = so_far
    for name, change in TAKEN_BACK.items():
        settings[name] = settings[RECOMMENDED] | change
    return settings


def ladder_jobs(
    seeds: int, folder: str, base: str | Path = BASE_MODEL
) -> list[list[dict]]:
    """The base and every run of the ladder, as one stage. folder: not needed."""
    start = {"name": "base, Llama 3 chat", "method": "none", "chat": "llama3"}
    jobs = [{**start, "base": str(base), "seed": 0}]
    for seed in range(seeds):
        for name, settings in ladder_settings().items():
            jobs.append({**settings, "name": name, "base": str(base), "seed": seed})
    return [jobs]
