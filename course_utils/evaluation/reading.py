"""Answers of several models side by side, for a person to read and to judge."""

import html
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats

from course_utils.evaluation.generating import Generation


@dataclass(frozen=True, repr=False)
class SideBySide:
    """A table of answers, one row per prompt, one column per letter.

    prompts: str each. answers: per row a tuple of str, in the order of the letters A,
    B, …  key: per row a tuple of names in the same order; do not look at it before you
    vote. blind: are the names hidden in the table?
    """

    prompts: tuple[str, ...]
    answers: tuple[tuple[str, ...], ...]
    key: tuple[tuple[str, ...], ...]
    blind: bool

    def _heads(self, row):
        letters = [chr(ord("A") + i) for i in range(len(self.key[row]))]
        return letters if self.blind else list(self.key[row])

    def __repr__(self) -> str:
        lines = []
        for row, prompt in enumerate(self.prompts):
            lines.append(f"{row + 1}. {prompt}")
            for head, answer in zip(self._heads(row), self.answers[row], strict=True):
                lines.append(f"   {head}: {answer}")
        return "\n".join(lines)

    def _repr_html_(self):
        def cells(tag, texts):
            left = ' style="text-align: left; vertical-align: top"'
            # Line breaks of an answer are part of it; everything else is shown as is.
            shown = [html.escape(text).replace("\n", "<br>") for text in texts]
            return "".join(f"<{tag}{left}>{text}</{tag}>" for text in shown)

        rows = "".join(
            f"<tr>{cells('td', [str(i + 1), prompt, *self.answers[i]])}</tr>"
            for i, prompt in enumerate(self.prompts)
        )
        head = cells("th", ["", "prompt", *self._heads(0)])
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def unblind(self, votes: Sequence[str]) -> tuple[Counter, float]:
        """{name: rows it won, "tie": rows}, and the sign test's p-value of two models.

        votes: one letter per row, or "=" for a tie.
        Returns: (Counter, p). p is nan for more than two models, or if all are ties.
        Raises: ValueError naming the first vote that is no letter of its row.
        """
        if len(votes) != len(self.prompts):
            raise ValueError(f"{len(self.prompts)} rows need as many votes.")
        wins = Counter(dict.fromkeys(self.key[0], 0))
        for row, vote in enumerate(votes):
            known = [chr(ord("A") + i) for i in range(len(self.key[row]))]
            if vote not in (*known, "="):
                raise ValueError(
                    f"Row {row + 1}: {vote!r} is none of {', '.join(known)}, =."
                )
            wins["tie" if vote == "=" else self.key[row][known.index(vote)]] += 1
        names = list(self.key[0])
        decided = sum(wins[name] for name in names)
        if len(names) != 2 or not decided:
            return wins, float("nan")
        return wins, float(stats.binomtest(wins[names[0]], decided).pvalue)


def side_by_side(
    prompts: list[list[dict]],
    generations: dict[str, list[Generation]],
    blind: bool = True,
    seed: int = 0,
    longest: int = 600,
) -> SideBySide:
    """SideBySide of what several models wrote after the same prompts.

    prompts: N lists of messages. generations: {model's name: N Generations}.
    blind: shuffle the models anew in every row, with `seed`, and show letters.
    longest: characters shown of an answer; "[…]" marks what was cut here, "…" an answer
    whose turn the model did not end by itself.
    Raises: ValueError if a model's answers are not as many as the prompts.
    """
    for name, written in generations.items():
        if len(written) != len(prompts):
            raise ValueError(
                f"{name}: {len(written)} answers to {len(prompts)} prompts."
            )
    rng, answers, key = random.Random(seed), [], []
    for row in range(len(prompts)):
        names = list(generations)
        if blind:
            rng.shuffle(names)
        written = [generations[name][row] for name in names]
        answers.append(tuple(_shown(g, longest) for g in written))
        key.append(tuple(names))
    return SideBySide(
        tuple(_as_text(p) for p in prompts), tuple(answers), tuple(key), blind
    )


def _shown(generation, longest):
    text = generation.text
    cut = text if len(text) <= longest else text[:longest].rstrip() + " […]"
    return cut + ("" if generation.ended else " …")


def _as_text(messages):
    """A lone question as it is; of a dialogue, who said what."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n".join(f"{m['role']}: {m['content']}" for m in messages)
