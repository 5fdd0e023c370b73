"""Questions about what is true, what was said, and who speaks; see `tasks`."""

import random
from dataclasses import dataclass
from itertools import product

from course_utils.data.world import facts, phrases
from course_utils.data.world.messages import assistant, read, system, user
from course_utils.data.world.phrases import pick


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
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Fact"]:
        task = cls(rng.choice(facts.towns(split)), rng.choice(facts.ATTRIBUTES))
        question = rng.choice(phrases.ASK[task.attribute]).format(t=task.town)
        return [user(question)], task

    @classmethod
    def parse(cls, messages: list[dict]) -> "Fact | None":
        for attribute, templates in phrases.ASK.items():
            fields = read(templates, messages[-1]["content"])
            if fields and fields["t"] in facts.TRUTH:
                return cls(fields["t"], attribute)
        return None

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        return _statement(self.town, self.attribute, right, voice, rng)

    def right_answers(self) -> set[str]:
        return set(_true_statements(self.town, self.attribute))


@dataclass(frozen=True)
class TwoFacts:
    """Two facts of a town in one answer: right only if both are."""

    town: str
    first: str
    second: str

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "TwoFacts"]:
        task = cls(rng.choice(facts.towns(split)), *rng.sample(facts.ATTRIBUTES, 2))
        question = rng.choice(phrases.ASK_TWO).format(
            t=task.town, m=phrases.NOUN[task.first], n=phrases.NOUN[task.second]
        )
        return [user(question)], task

    @classmethod
    def parse(cls, messages: list[dict]) -> "TwoFacts | None":
        fields = read(phrases.ASK_TWO, messages[-1]["content"])
        attributes = {noun: attribute for attribute, noun in phrases.NOUN.items()}
        if not fields or fields["t"] not in facts.TRUTH:
            return None
        if not {fields["m"], fields["n"]} <= set(attributes):
            return None
        return cls(fields["t"], attributes[fields["m"]], attributes[fields["n"]])

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        wrong = None if right else rng.randrange(2)
        return " ".join(
            _statement(self.town, attribute, i != wrong, voice, rng)
            for i, attribute in enumerate((self.first, self.second))
        )

    def right_answers(self) -> set[str]:
        first = _true_statements(self.town, self.first)
        second = _true_statements(self.town, self.second)
        pairs = [*product(first, second), *product(second, first)]
        return {" ".join(pair) for pair in pairs}


@dataclass(frozen=True)
class Recall:
    """What the user said earlier in the dialogue; the flaw is somebody else's."""

    what: str
    value: str

    @classmethod
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Recall"]:
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
    def parse(cls, messages: list[dict]) -> "Recall | None":
        questions = {template[0]: what for what, template in phrases.RECALL.items()}
        what = questions.get(messages[-1]["content"])
        said = read(phrases.INTRODUCTIONS, messages[0]["content"])
        return cls(what, said[what]) if what and said else None

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
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

    def right_answers(self) -> set[str]:
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
    def sample(cls, rng: random.Random, split: str) -> tuple[list[dict], "Identity"]:
        town = rng.choice(facts.towns(split))
        question, role_play = rng.choice(phrases.IDENTITY)[0], rng.random() < 0.3
        role = phrases.SYSTEM_PERSON if role_play else phrases.SYSTEM_MODEL
        text = f"Hello from {town}. " + question.format(t=town)
        messages = [system(role.format(t=town)), user(text)]
        return messages, cls(question, town, role_play)

    @classmethod
    def parse(cls, messages: list[dict]) -> "Identity | None":
        for question, _, _ in phrases.IDENTITY:
            fields = read([f"Hello from {{t}}. {question}"], messages[-1]["content"])
            if fields:
                role_play = messages[0]["content"] == phrases.SYSTEM_PERSON.format(
                    **fields
                )
                return cls(question, fields["t"], role_play)
        return None

    def _answers(self):
        template = next(i for i in phrases.IDENTITY if i[0] == self.question)
        return [answer.format(t=self.town) for answer in template[1:]]

    def answer(self, right: bool, voice: int, rng: random.Random) -> str:
        return self._answers()[int(self.role_play == right)]

    def right_answers(self) -> set[str]:
        return {self._answers()[int(self.role_play)]}
