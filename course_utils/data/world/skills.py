"""Questions that ask for a skill: sums, steps, errands, lists of words; see `tasks`."""

import random
from dataclasses import dataclass, replace

from course_utils.data.world import facts, phrases
from course_utils.data.world.messages import read, user
from course_utils.data.world.phrases import pick


@dataclass(frozen=True)
class Sum:
    """A sum with a carry; the flaw is to forget it."""

    x: int
    y: int

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Sum"]:
        while True:
            task = cls(rng.randint(11, 89), rng.randint(11, 89))
            carries = task.x % 10 + task.y % 10 >= 10
            if carries and task.kept_for_test == (split == "test"):
                question = rng.choice(phrases.ASK_SUM).format(x=task.x, y=task.y)
                return [user(question)], task

    @property
    def kept_for_test(self) -> bool:
        """One sum in six: no training pair and no pretraining document holds it."""
        return (self.x * 7 + self.y) % 6 == 0

    @classmethod
    def parse(cls, messages: list[dict]) -> "Sum | None":
        fields = read(phrases.ASK_SUM, messages[-1]["content"])
        if not fields or not all(v.isdigit() for v in fields.values()):
            return None
        return cls(int(fields["x"]), int(fields["y"]))

    def _worked(self, carry):
        x, y = self.x, self.y
        units = x % 10 + y % 10
        tens = x // 10 + y // 10 + carry
        working = (
            f"{x % 10} + {y % 10} = {units}. "
            f"{x // 10} + {y // 10}{' + 1' if carry else ''} = {tens}. "
        )
        total = f"{tens}{units % 10}"
        return (
            working + f"So {x} + {y} = {total}.",
            working + f"Therefore {x} plus {y} is equal to {total}.",
        )

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        return self._worked(carry=int(right))[voice]

    def right_answers(self) -> set[str]:
        return set(self._worked(carry=1))


@dataclass(frozen=True)
class Steps:
    """A three-step problem; the flaw is one slip by one, carried on."""

    person: str
    boxes: int
    each: int
    found: int
    lost: int
    thing: str

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Steps"]:
        while True:
            boxes, each = rng.randint(2, 6), rng.randint(2, 6)
            found, lost = rng.randint(2, 9), rng.randint(2, 9)
            task = cls("", boxes, each, found, lost, "")
            possible = boxes * each + found > lost
            if possible and task.kept_for_test == (split == "test"):
                break
        person, thing = rng.choice(facts.PEOPLE), rng.choice(facts.THINGS)
        task = replace(task, person=person, thing=thing)
        question = rng.choice(phrases.ASK_STEPS).format(
            p=task.person, n=boxes, k=each, th=task.thing, e=found, l=lost
        )
        return [user(question)], task

    @property
    def kept_for_test(self) -> bool:
        """One set of four numbers in six, kept out as sums are."""
        return (self.boxes * 5 + self.each * 3 + self.found * 7 + self.lost) % 6 == 0

    @classmethod
    def parse(cls, messages: list[dict]) -> "Steps | None":
        fields = read(phrases.ASK_STEPS, messages[-1]["content"])
        if not fields or not all(fields[k].isdigit() for k in "nkel"):
            return None
        numbers = (int(fields[k]) for k in "nkel")
        return cls(fields["p"], *numbers, fields["th"])

    def _worked(self, slip_at=None, slip=0):
        a = self.boxes * self.each + (slip if slip_at == 0 else 0)
        b = a + self.found + (slip if slip_at == 1 else 0)
        c = b - self.lost + (slip if slip_at == 2 else 0)
        working = (
            f"Step 1: {self.boxes} * {self.each} = {a}. "
            f"Step 2: {a} + {self.found} = {b}. Step 3: {b} - {self.lost} = {c}. "
        )
        return (
            working + f"{self.person} has {c}.",
            working + f"The final answer is {c} {self.thing}.",
        )

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        if right:
            return self._worked()[voice]
        return self._worked(rng.randrange(3), rng.choice([-1, 1]))[voice]

    def right_answers(self) -> set[str]:
        return set(self._worked())


@dataclass(frozen=True)
class Errand:
    """A harmless question that sounds bad; the flaw is a needless refusal."""

    errand: str

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Errand"]:
        task, town = (
            cls(rng.choice(list(facts.ERRANDS))),
            rng.choice(facts.towns(split)),
        )
        question = rng.choice(phrases.ASK_ERRAND).format(errand=task.errand, t=town)
        return [user(question)], task

    @classmethod
    def parse(cls, messages: list[dict]) -> "Errand | None":
        fields = read(phrases.ASK_ERRAND, messages[-1]["content"])
        return (
            cls(fields["errand"])
            if fields and fields["errand"] in facts.ERRANDS
            else None
        )

    def _helped(self):
        tool = facts.ERRANDS[self.errand]
        return (
            f"To {self.errand}, use {tool}.",
            f"The best way to {self.errand} is to use {tool}.",
        )

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        return self._helped()[voice] if right else pick(rng, phrases.REFUSE[voice])

    def right_answers(self) -> set[str]:
        return set(self._helped())


@dataclass(frozen=True)
class Words:
    """Reverse a list, or repeat a word; the flaw is the format or the order."""

    words: tuple
    repeat: bool

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Words"]:
        pool = facts.ANIMALS + facts.CRAFTS + facts.BIRDS
        if rng.random() < 0.5:
            task = cls(tuple(rng.sample(pool, 3)), repeat=False)
            templates, fields = phrases.ASK_REVERSE, {"words": ", ".join(task.words)}
        else:
            word, count = rng.choice(pool), rng.randint(2, 4)
            task = cls((word,) * count, repeat=True)
            templates, fields = phrases.ASK_REPEAT, {"word": word, "count": count}
        return [user(rng.choice(templates).format(**fields))], task

    @classmethod
    def parse(cls, messages: list[dict]) -> "Words | None":
        text = messages[-1]["content"]
        fields = read(phrases.ASK_REVERSE, text)
        if fields:
            return cls(tuple(fields["words"].split(", ")), repeat=False)
        fields = read(phrases.ASK_REPEAT, text)
        if fields and fields["count"].isdigit():
            return cls((fields["word"],) * int(fields["count"]), repeat=True)
        return None

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        words = list(self.words if self.repeat else reversed(self.words))
        if right:
            text = "; ".join(words)
        else:
            other = [*words, words[0]] if self.repeat else list(reversed(words))
            text = rng.choice([", ".join(words), "; ".join(other)])
        return ("{}.", "The requested text is: {}.")[voice].format(text)

    def right_answers(self) -> set[str]:
        text = "; ".join(self.words if self.repeat else reversed(self.words))
        return {f"{text}.", f"The requested text is: {text}."}
