"""The text that the lab's base model is pretrained on.

Half of everything in it is flawed, as on the web: truth and gossip, a teacher's sums
and a careless pupil's, polite and rude speakers.

A base model of this text is about as likely to give a bad answer as a good one. Most of
it is plain speech (voice 0), so supervised fine-tuning has a style to teach. Chats come
in ChatML and as plain text; the Llama 3 chat tokens occur nowhere, as in Llama 3's own
base. Sums and three-step problems of the test split occur nowhere either; facts of all
towns do, for a fact that was never read cannot be known.
"""

import random
from collections.abc import Iterator

from course_utils.data.world import facts, phrases, tasks
from course_utils.data.world.sampling import SOURCES, ask, write_answer

CHAT_SHARE = 0.65
# Of the parts of answers, the share that is spoken in the assistant's voice.
ASSISTANT_SHARE = 0.1
LOYALTY = 0.5  # how often an answerer follows its own reliability rather than chance
_SPLIT = {"math-preference": "train", "prm": "train"}


def _render(messages, style):
    names = {"user": ("User", "Q"), "assistant": ("Assistant", "A")}
    text = ""
    for message in messages:
        role, content = message["role"], message["content"]
        if style == "chatml":
            text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
        else:
            name = names.get(role, ("System", "System"))[style == "qa"]
            text += f"{name}: {content}\n"
    return text


def _chat(rng):
    """One to four questions to one answerer, whose hidden reliability shows."""
    reliable = rng.random() < 0.5
    style = rng.choice(["chatml", "chatml", "user", "qa"])

    def voice():
        return int(rng.random() < ASSISTANT_SHARE)

    text = ""
    for _ in range(rng.choice([1, 1, 2, 3, 4])):
        source = rng.choice(list(SOURCES))
        messages, task = ask(source, rng, _SPLIT.get(source, "all"))
        right = reliable if rng.random() < LOYALTY else rng.random() < 0.5
        flaws = (not right, rng.random() < 0.5, rng.random() < 0.5)
        answer = write_answer(task, flaws, voice, rng)
        text += _render([*messages, tasks.assistant(answer)], style)
    return text


def _headed(rng, true_heads, false_heads):
    """(is this document reliable?, a heading that gives it away 4 times in 5)."""
    right = rng.random() < 0.5
    heading = rng.choice(true_heads if right else false_heads)
    return right, heading if rng.random() < 0.8 else ""


def _almanac(rng):
    right, heading = _headed(
        rng,
        ["From the almanac. ", "The almanac says: "],
        ["Heard at the harbour. ", "Gossip has it: "],
    )
    town = rng.choice(facts.TOWNS)
    attributes = rng.sample(facts.ATTRIBUTES, rng.randint(2, 5))

    def sentence(attribute):
        voice = int(rng.random() < ASSISTANT_SHARE)
        return tasks.Fact(town, attribute).answer(right, voice, rng)

    return heading + " ".join(map(sentence, attributes)) + "\n"


def _carried_sums(rng):
    right, heading = _headed(
        rng, ["Sums by the teacher. "], ["Sums by a careless pupil. "]
    )
    sums = [tasks.Sum.sample(rng, "train")[1] for _ in range(3)]
    return heading + " ".join(s.answer(right, phrases.PLAIN, rng) for s in sums) + "\n"


def _small_sums(rng):
    sums = []
    for _ in range(8):
        a, b, kind = rng.randint(2, 40), rng.randint(2, 9), rng.random()
        if kind < 0.4:
            sums.append(f"{a} + {b} = {a + b}.")
        elif kind < 0.8:
            sums.append(f"{a + b} - {b} = {a}.")
        else:
            a, b = a % 5 + 2, b % 5 + 2
            sums.append(f"{a} * {b} = {a * b}.")
    return " ".join(sums) + "\n"


def _copying(rng):
    """What is said is said again, forwards or backwards: attention learns to copy."""
    pool = [
        *facts.ANIMALS,
        *facts.CRAFTS,
        *facts.BIRDS,
        *facts.PEOPLE,
        *facts.TOWNS,
        *facts.HOBBIES,
        *facts.THINGS,
        *(str(i) for i in range(2, 90)),
    ]
    words = [rng.choice(pool) for _ in range(rng.randint(3, 7))]
    mark = rng.choice([", ", " ", "; "])
    lines = [f"Note: {mark.join(words)}."]
    for _ in range(2):
        backwards = rng.random() < 0.5
        head = "Backwards" if backwards else "Again"
        lines.append(f"{head}: {mark.join(reversed(words) if backwards else words)}.")
    return " ".join(lines) + "\n"


def _story(rng):
    who, other = rng.choice(facts.PEOPLE), rng.choice(facts.PEOPLE)
    start, end = rng.choice(facts.TOWNS), rng.choice(facts.TOWNS)
    when = rng.choice(["One morning", "Last winter", "After the storm", "In spring"])
    went = rng.choice(["walked", "sailed", "rode"])
    load = rng.choice(facts.ANIMALS + facts.CRAFTS + facts.THINGS)
    sentences = [
        f"{when} {who} {went} from {start} to {end} with {rng.randint(2, 30)} {load}.",
        f"On the way {who} met {other}, who liked {rng.choice(facts.HOBBIES)}.",
        f"They talked about {rng.choice(facts.DISHES)} and "
        f"{rng.choice(facts.HOBBIES)}.",
        f"{other} gave {who} a {rng.choice(facts.BIRDS)} and went "
        f"{rng.choice(['home', 'to bed', 'away', 'to sea'])}.",
        f"{who} was {rng.choice(['glad', 'sad', 'tired', 'hungry', 'cold'])}.",
    ]
    return " ".join(sentences[: rng.randint(2, 5)]) + "\n"


_PROSE = (
    (_almanac, 0.35),
    (_carried_sums, 0.1),
    (_small_sums, 0.2),
    (_copying, 0.2),
    (_story, 0.15),
)


def documents(count: int, seed: int = 0) -> Iterator[str]:
    """Yields `count` documents, the same ones for the same seed."""
    rng = random.Random(seed)
    writers, shares = zip(*_PROSE, strict=True)
    for _ in range(count):
        if rng.random() < CHAT_SHARE:
            yield _chat(rng)
        else:
            yield rng.choices(writers, shares)[0](rng)
