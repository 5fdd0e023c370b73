"""The eight kinds of question of the small world, and the right answers to each.

Knows: how to draw a question, how to read one back from its messages, how to answer it
rightly or wrongly. Does not know: manners and endings (`pairs`), columns (`rows`).

Every kind has the same four members: `sample(rng, split)` -> (messages, task);
`parse(messages)` -> task or None; `answer(right, voice, rng)` -> the core sentence(s)
of an answer; `right_answers()` -> every core that counts as right, in either voice.
`parse` undoes `sample`, so a verifier needs nothing but the messages that the model
saw.
"""

import re
from dataclasses import dataclass, replace
from itertools import product

from . import facts, phrases
from .phrases import pick


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


def _pattern(template):
    """A regular expression of exactly what `template.format(...)` can write."""
    parts = re.split(r"\{(\w+)\}", template)
    out, seen = "", set()
    for i, part in enumerate(parts):
        if i % 2 == 0:
            out += re.escape(part)
        elif part in seen:
            out += f"(?P={part})"
        else:
            out += f"(?P<{part}>.+?)"
            seen.add(part)
    return re.compile(out)


def _read(templates, text):
    """The fields of the first template that could have written `text`, or None."""
    for template in templates:
        match = _pattern(template).fullmatch(text)
        if match:
            return match.groupdict()
    return None


def _statement(town, attribute, true, voice, rng):
    value = (facts.TRUTH if true else facts.GOSSIP)[town][attribute]
    return pick(rng, phrases.SAY[attribute][voice]).format(t=town, v=value)


def _true_statements(town, attribute):
    value = facts.TRUTH[town][attribute]
    plain, spoken = phrases.SAY[attribute]
    return [template.format(t=town, v=value) for template in plain + spoken]


@dataclass(frozen=True)
class Fact:
    """One fact of a town: truth against gossip."""

    town: str
    attribute: str

    @classmethod
    def sample(cls, rng, split):
        task = cls(rng.choice(facts.towns(split)), rng.choice(facts.ATTRIBUTES))
        question = rng.choice(phrases.ASK[task.attribute]).format(t=task.town)
        return [user(question)], task

    @classmethod
    def parse(cls, messages):
        for attribute, templates in phrases.ASK.items():
            fields = _read(templates, messages[-1]["content"])
            if fields and fields["t"] in facts.TRUTH:
                return cls(fields["t"], attribute)
        return None

    def answer(self, right, voice, rng):
        return _statement(self.town, self.attribute, right, voice, rng)

    def right_answers(self):
        return set(_true_statements(self.town, self.attribute))


@dataclass(frozen=True)
class TwoFacts:
    """Two facts of a town in one answer: right only if both are."""

    town: str
    first: str
    second: str

    @classmethod
    def sample(cls, rng, split):
        task = cls(rng.choice(facts.towns(split)), *rng.sample(facts.ATTRIBUTES, 2))
        question = rng.choice(phrases.ASK_TWO).format(
            t=task.town, m=phrases.NOUN[task.first], n=phrases.NOUN[task.second]
        )
        return [user(question)], task

    @classmethod
    def parse(cls, messages):
        fields = _read(phrases.ASK_TWO, messages[-1]["content"])
        attributes = {noun: attribute for attribute, noun in phrases.NOUN.items()}
        if not fields or fields["t"] not in facts.TRUTH:
            return None
        if not {fields["m"], fields["n"]} <= set(attributes):
            return None
        return cls(fields["t"], attributes[fields["m"]], attributes[fields["n"]])

    def answer(self, right, voice, rng):
        wrong = None if right else rng.randrange(2)
        return " ".join(
            _statement(self.town, attribute, i != wrong, voice, rng)
            for i, attribute in enumerate((self.first, self.second))
        )

    def right_answers(self):
        first = _true_statements(self.town, self.first)
        second = _true_statements(self.town, self.second)
        pairs = [*product(first, second), *product(second, first)]
        return {" ".join(pair) for pair in pairs}


@dataclass(frozen=True)
class Sum:
    """A sum with a carry; the flaw is to forget it."""

    x: int
    y: int

    @classmethod
    def sample(cls, rng, split):
        while True:
            task = cls(rng.randint(11, 89), rng.randint(11, 89))
            carries = task.x % 10 + task.y % 10 >= 10
            if carries and task.kept_for_test == (split == "test"):
                question = rng.choice(phrases.ASK_SUM).format(x=task.x, y=task.y)
                return [user(question)], task

    @property
    def kept_for_test(self):
        """One sum in six: no training pair and no pretraining document holds it."""
        return (self.x * 7 + self.y) % 6 == 0

    @classmethod
    def parse(cls, messages):
        fields = _read(phrases.ASK_SUM, messages[-1]["content"])
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

    def answer(self, right, voice, rng):
        return self._worked(carry=int(right))[voice]

    def right_answers(self):
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
    def sample(cls, rng, split):
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
    def kept_for_test(self):
        """One set of four numbers in six, kept out as sums are."""
        return (self.boxes * 5 + self.each * 3 + self.found * 7 + self.lost) % 6 == 0

    @classmethod
    def parse(cls, messages):
        fields = _read(phrases.ASK_STEPS, messages[-1]["content"])
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

    def answer(self, right, voice, rng):
        if right:
            return self._worked()[voice]
        return self._worked(rng.randrange(3), rng.choice([-1, 1]))[voice]

    def right_answers(self):
        return set(self._worked())


@dataclass(frozen=True)
class Errand:
    """A harmless question that sounds bad; the flaw is a needless refusal."""

    errand: str

    @classmethod
    def sample(cls, rng, split):
        task, town = (
            cls(rng.choice(list(facts.ERRANDS))),
            rng.choice(facts.towns(split)),
        )
        question = rng.choice(phrases.ASK_ERRAND).format(errand=task.errand, t=town)
        return [user(question)], task

    @classmethod
    def parse(cls, messages):
        fields = _read(phrases.ASK_ERRAND, messages[-1]["content"])
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

    def answer(self, right, voice, rng):
        return self._helped()[voice] if right else pick(rng, phrases.REFUSE[voice])

    def right_answers(self):
        return set(self._helped())


@dataclass(frozen=True)
class Words:
    """Reverse a list, or repeat a word; the flaw is the format or the order."""

    words: tuple
    repeat: bool

    @classmethod
    def sample(cls, rng, split):
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
    def parse(cls, messages):
        text = messages[-1]["content"]
        fields = _read(phrases.ASK_REVERSE, text)
        if fields:
            return cls(tuple(fields["words"].split(", ")), repeat=False)
        fields = _read(phrases.ASK_REPEAT, text)
        if fields and fields["count"].isdigit():
            return cls((fields["word"],) * int(fields["count"]), repeat=True)
        return None

    def answer(self, right, voice, rng):
        words = list(self.words if self.repeat else reversed(self.words))
        if right:
            text = "; ".join(words)
        else:
            other = [*words, words[0]] if self.repeat else list(reversed(words))
            text = rng.choice([", ".join(words), "; ".join(other)])
        return ("{}.", "The requested text is: {}.")[voice].format(text)

    def right_answers(self):
        text = "; ".join(self.words if self.repeat else reversed(self.words))
        return {f"{text}.", f"The requested text is: {text}."}


@dataclass(frozen=True)
class Recall:
    """What the user said earlier in the dialogue; the flaw is somebody else's."""

    what: str
    value: str

    @classmethod
    def sample(cls, rng, split):
        said = {
            "name": rng.choice(facts.PEOPLE),
            "animal": rng.choice(facts.ANIMALS),
            "hobby": rng.choice(facts.HOBBIES),
            "town": rng.choice(facts.towns(split)),
        }
        messages = [
            user(rng.choice(phrases.INTRODUCTIONS).format(**said)),
            assistant(rng.choice(phrases.GREETINGS).format(**said)),
        ]
        if rng.random() < 0.4:
            aside, fact = Fact.sample(rng, split)
            messages += [*aside, assistant(fact.answer(True, phrases.PLAIN, rng))]
        what = rng.choice(list(phrases.RECALL))
        return [*messages, user(phrases.RECALL[what][0])], cls(what, said[what])

    @classmethod
    def parse(cls, messages):
        questions = {template[0]: what for what, template in phrases.RECALL.items()}
        what = questions.get(messages[-1]["content"])
        said = _read(phrases.INTRODUCTIONS, messages[0]["content"])
        return cls(what, said[what]) if what and said else None

    def answer(self, right, voice, rng):
        value = self.value
        if not right:
            pool = {
                "name": facts.PEOPLE,
                "animal": facts.ANIMALS,
                "hobby": facts.HOBBIES,
                "town": facts.TOWNS,
            }[self.what]
            value = rng.choice([v for v in pool if v != value])
        return phrases.RECALL[self.what][1 + voice].format(v=value)

    def right_answers(self):
        return {
            template.format(v=self.value) for template in phrases.RECALL[self.what][1:]
        }


@dataclass(frozen=True)
class Identity:
    """Who the assistant is: a language model, unless the system prompt gives a role."""

    question: str
    town: str
    role_play: bool

    @classmethod
    def sample(cls, rng, split):
        town = rng.choice(facts.towns(split))
        question, role_play = rng.choice(phrases.IDENTITY)[0], rng.random() < 0.3
        role = phrases.SYSTEM_PERSON if role_play else phrases.SYSTEM_MODEL
        text = f"Hello from {town}. " + question.format(t=town)
        messages = [system(role.format(t=town)), user(text)]
        return messages, cls(question, town, role_play)

    @classmethod
    def parse(cls, messages):
        for question, _, _ in phrases.IDENTITY:
            fields = _read([f"Hello from {{t}}. {question}"], messages[-1]["content"])
            if fields:
                role_play = messages[0]["content"] == phrases.SYSTEM_PERSON.format(
                    **fields
                )
                return cls(question, fields["t"], role_play)
        return None

    def _answers(self):
        template = next(i for i in phrases.IDENTITY if i[0] == self.question)
        return [answer.format(t=self.town) for answer in template[1:]]

    def answer(self, right, voice, rng):
        return self._answers()[int(self.role_play == right)]

    def right_answers(self):
        return {self._answers()[int(self.role_play)]}


KINDS = (Recall, Identity, Steps, Sum, Words, Errand, TwoFacts, Fact)


def parse(messages):
    """The task that these messages ask.

    messages: list of {"role", "content"}, the last one the user's.
    Raises: ValueError if no kind of question of the world is worded like this.
    """
    for kind in KINDS:
        task = kind.parse(messages)
        if task is not None:
            return task
    raise ValueError(
        f"No question of the small world reads {messages[-1]['content']!r}. The "
        "verifier judges only prompts that `course_utils.world` wrote."
    )
