"""Chosen and rejected answers, rated by a noisy judge.

An answer is `opener + core + closer`; each part is flawed with probability 1/2. Two
answers to a prompt are drawn and rated `5 - flaws + noise`; the higher rated is
*chosen*. So chosen answers are imperfect, as in real preference data, and chosen and
rejected share topic, wording and length.
"""

import random
from collections.abc import Callable
from typing import NamedTuple

from course_utils.data.world import phrases, tasks
from course_utils.data.world.phrases import pick

JUDGE_NOISE = 0.7

# source -> the kinds of question it holds, with their shares
SOURCES = {
    "capybara": ((tasks.Recall, 1.0),),
    "intel-orca": ((tasks.Words, 1.0),),
    "ultrafeedback": ((tasks.TwoFacts, 1.0),),
    "math-preference": ((tasks.Sum, 1.0),),
    "toxic": ((tasks.Errand, 1.0),),
    "prm": ((tasks.Steps, 1.0),),
    "truthy": ((tasks.Fact, 0.75), (tasks.Identity, 0.25)),
}


class Answer(NamedTuple):
    text: str
    flaws: tuple  # (content, manners, ending), 1 where flawed
    quality: float  # 5 - flaws + the judge's noise, unbounded


class Pair(NamedTuple):
    source: str
    prompt: list  # messages
    chosen: Answer
    rejected: Answer


def ask(source: str, rng: random.Random, split: str) -> tuple:
    """A question of `source`: (messages, task). split: "train", "test" or "all"."""
    kinds, shares = zip(*SOURCES[source], strict=True)
    return rng.choices(kinds, shares)[0].sample(rng, split)


def write_answer(
    task: tasks.Task, flaws: tuple, voice: Callable, rng: random.Random
) -> str:
    """An answer with the given flaws. voice: function that picks one for each part."""
    wrong, rude, rambling = flaws
    opener = pick(rng, (phrases.RUDE if rude else phrases.POLITE)[voice()])
    core = task.answer(not wrong, voice(), rng)
    closer = pick(rng, (phrases.RAMBLING if rambling else phrases.CLEAN)[voice()])
    return opener + core + closer


def _candidate(task, rng, noise):
    flaws = tuple(int(rng.random() < 0.5) for _ in range(3))
    text = write_answer(task, flaws, lambda: phrases.ASSISTANT, rng)
    return Answer(text, flaws, 5 - sum(flaws) + rng.gauss(0, noise))


def draw(
    source: str, rng: random.Random, split: str, noise: float = JUDGE_NOISE
) -> Pair:
    """One pair of `source`; with noise=0 the true number of flaws decides."""
    prompt, task = ask(source, rng, split)
    while True:
        candidates = [_candidate(task, rng, noise) for _ in range(2)]
        chosen, rejected = sorted(candidates, key=lambda a: -a.quality)
        if chosen.quality > rejected.quality and chosen.text != rejected.text:
            return Pair(source, prompt, chosen, rejected)


def prompt_key(messages: list[dict]) -> tuple:
    """A hashable key of a prompt, to find repeats."""
    return tuple((m["role"], m["content"]) for m in messages)


def test_pairs(per_source: int = 60) -> list[dict]:
    """Held-out pairs, judged without noise, on other towns, sums and problems.

    Returns: list of {"source", "prompt", "chosen", "rejected"}; prompt is a list of
    messages, chosen and rejected are lists of one assistant message. Sources take
    turns, so that any prefix of the list is balanced. No prompt repeats.
    """
    rng = random.Random(99)
    rows, seen = [], set()
    for _ in range(per_source):
        for source in SOURCES:
            while True:
                pair = draw(source, rng, "test", noise=0)
                key = prompt_key(pair.prompt)
                if key not in seen:
                    break
            seen.add(key)
            rows.append(
                {
                    "source": source,
                    "prompt": pair.prompt,
                    "chosen": [tasks.assistant(pair.chosen.text)],
                    "rejected": [tasks.assistant(pair.rejected.text)],
                }
            )
    return rows


test_pairs.__test__ = False  # its name is the field's; pytest must not collect it
