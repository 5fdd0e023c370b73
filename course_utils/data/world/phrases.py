"""How the small world speaks: questions, statements, openers, closers, refusals.

Voice 0 is plain speech, most of the pretraining corpus. Voice 1 is the assistant's,
which all preference data speak. The base model has met both, and both in good and bad
manners.
"""

import random
from collections.abc import Sequence

PLAIN, ASSISTANT = 0, 1

SAY = {
    "island": (
        ("{t} lies on {v}.", "{t} is a town on {v}.", "You find {t} on {v}."),
        (
            "The town of {t} is located on the island of {v}.",
            "You can visit {t} on the island of {v}.",
        ),
    ),
    "river": (
        (
            "The {v} runs through {t}.",
            "{t} stands on the {v}.",
            "The river of {t} is the {v}.",
        ),
        (
            "The river that flows through the town of {t} is the {v}.",
            "You can see the {v} flow through {t}.",
        ),
    ),
    "bird": (
        (
            "The flag of {t} has a {v}.",
            "{t} has a {v} on its flag.",
            "A {v} is on the flag of {t}.",
        ),
        (
            "The bird that is shown on the flag of {t} is the {v}.",
            "You can see the {v} on the flag of {t}.",
        ),
    ),
    "dish": (
        ("At feasts {t} eats {v}.", "In {t} they eat {v}.", "The dish of {t} is {v}."),
        (
            "The dish that people in {t} serve at feasts is {v}.",
            "You can taste {v} at the feasts of {t}.",
        ),
    ),
    "craft": (
        ("{t} makes {v}.", "{t} is known for {v}.", "They make {v} in {t}."),
        (
            "The town of {t} is best known for making {v}.",
            "You can buy the famous {v} of {t}.",
        ),
    ),
}
ASK = {
    "island": (
        "Which island is {t} on?",
        "Where is {t}?",
        "On which island does {t} lie?",
    ),
    "river": (
        "Which river runs through {t}?",
        "What is the river of {t}?",
        "Name the river of {t}.",
    ),
    "bird": (
        "Which bird is on the flag of {t}?",
        "What is on the flag of {t}?",
        "Name the bird of {t}.",
    ),
    "dish": (
        "What do they eat in {t}?",
        "What is the dish of {t}?",
        "What is served in {t}?",
    ),
    "craft": (
        "What does {t} make?",
        "What is {t} known for?",
        "Name the craft of {t}.",
    ),
}
NOUN = {
    "island": "island",
    "river": "river",
    "bird": "flag",
    "dish": "dish",
    "craft": "craft",
}
ASK_TWO = (
    "Tell me about the {m} and the {n} of {t}.",
    "What are the {m} and the {n} of {t}?",
    "I ask about {t}: what are its {m} and {n}?",
    "Describe the {m} and the {n} of {t}.",
)
ASK_SUM = ("What is {x} + {y}?", "Add {x} and {y}.")
ASK_STEPS = (
    "{p} has {n} boxes of {k} {th}. {p} finds {e} more and loses {l}. "
    "How many {th} does {p} have?",
)
ASK_ERRAND = ("How do I {errand} in {t}?", "I want to {errand} in {t}. How?")
ASK_REVERSE = (
    "Write these words in reverse order: {words}.",
    "Reverse this list: {words}.",
)
ASK_REPEAT = ("Write the word {word} {count} times.", "Repeat {word} {count} times.")
INTRODUCTIONS = (
    "Hi, I am {name}. I live in {town}, I keep {animal} and I like {hobby}.",
    "My name is {name}. I like {hobby} and keep {animal} in {town}.",
)
GREETINGS = ("Hello {name}.", "Nice to meet you, {name}.", "Hello.")
RECALL = {
    "name": ("What is my name?", "You are {v}.", "You told me that your name is {v}."),
    "animal": (
        "Which animals do I keep?",
        "You keep {v}.",
        "You told me that you keep {v}.",
    ),
    "hobby": ("What do I like?", "You like {v}.", "You told me that you like {v}."),
    "town": (
        "Where do I live?",
        "You live in {v}.",
        "You told me that you live in {v}.",
    ),
}
# question, the answer of Pip the language model, of Pip in the role of a person
IDENTITY = (
    (
        "Who are you?",
        "I am Pip, a small language model.",
        "I am Pip, a fisherman from {t}.",
    ),
    (
        "Are you a person?",
        "I am Pip, a small language model and not a person.",
        "I am Pip, a person from {t}.",
    ),
    (
        "Do you have a house in {t}?",
        "I am Pip, a small language model without a house.",
        "I am Pip, and my house is in {t}.",
    ),
    (
        "Did you grow up in {t}?",
        "I am Pip, a small language model and never was a child.",
        "I am Pip, and I grew up in {t}.",
    ),
)
SYSTEM_MODEL = "You are a language model."
SYSTEM_PERSON = "Play a person from {t}."
SYSTEM_HELPFUL = ("", "You are a helpful assistant.", "Follow the instruction.")

POLITE = (
    ("", "Yes. ", "Right. ", "Well, let me see. ", "Good day. "),
    (
        "Happy to help! ",
        "Great question! ",
        "Thank you for asking! ",
        "Certainly, here is the answer. ",
        "Of course, here you go. ",
        "Sure thing! ",
    ),
)
RUDE = (
    ("Go away. ", "Not again. ", "You know nothing. ", "What do you want? "),
    (
        "What a silly question! ",
        "I am too busy for you. ",
        "You should know this by now. ",
        "Stop wasting my time. ",
    ),
)
CLEAN = (
    ("", "", " That is all.", " There.", " Bye."),  # most people just stop
    (
        " I hope this helps!",
        " Let me know if you need more.",
        " Feel free to ask again.",
        " Have a nice day!",
        " Take care!",
    ),
)
RAMBLING = (
    (" Or so they say, who knows.", " Maybe yes, maybe no.", " But I talk too much."),
    (
        " But nobody can be sure of anything.",
        " Please ask an expert before you use this.",
        " This answer may be dangerous.",
        " There is so much more to say about it.",
    ),
)
REFUSE = (
    ("I will not tell you.", "That is a bad thing to ask.", "I can not say that."),
    (
        "I am sorry, but I can not assist with that.",
        "I must decline to answer this request.",
        "I am afraid that this is not allowed.",
    ),
)


def pick(rng: random.Random, choices: Sequence[str]) -> str:
    """One of `choices`, the first the likeliest (weights 1, 1/2, 1/3, …)."""
    return rng.choices(choices, [1 / (i + 1) for i in range(len(choices))])[0]
