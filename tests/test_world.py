"""The small world: the same everywhere, true to itself, and not to be fooled."""

import hashlib
import json
import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from course_utils.data import world
from course_utils.data.world import corpus, facts, phrases, sampling, tasks

KINDS = tasks.KINDS
SPLITS = ("train", "test", "all")


def digest(value):
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def draw_answers(count, seed, voice):
    """Yields (messages, task, flaws, text) of answers with known flaws."""
    rng = random.Random(seed)
    for i in range(count):
        messages, task = sampling.ask(
            rng.choice(list(sampling.SOURCES)), rng, SPLITS[i % len(SPLITS)]
        )
        flaws = tuple(int(rng.random() < 0.5) for _ in range(3))
        text = sampling.write_answer(task, flaws, lambda: voice(rng), rng)
        yield messages, task, flaws, text


# --- the same on every machine ------------------------------------------------------


def test_the_facts_are_fixed():
    assert (len(facts.TOWNS), len(facts.TEST_TOWNS)) == (48, 16)
    assert digest([facts.TRUTH, facts.GOSSIP, facts.TEST_TOWNS]) == "9869110b67f9"


def test_the_corpus_is_fixed():
    assert digest(list(world.documents(200, seed=1000))) == "54ef819082f0"
    assert list(world.documents(3, seed=1)) != list(world.documents(3, seed=2))


@pytest.mark.parametrize(
    ("source", "expected"),
    {
        "capybara": "1da36aed9bc1",
        "intel-orca": "ac1e5711582b",
        "ultrafeedback": "2767611c3b2f",
        "math-preference": "e2a2de2aff52",
        "toxic": "b53dda16f722",
        "prm": "15624a46068f",
        "truthy": "3f8532045129",
    }.items(),
)
def test_the_rows_are_fixed(source, expected):
    assert digest(world.rows(source, count=50)) == expected


def test_the_test_pairs_are_fixed_and_prefixes_of_each_other():
    everything = world.test_pairs()
    assert digest(everything) == "30259aada877"
    assert world.test_pairs(5) == everything[:35]
    assert [row["source"] for row in everything[:7]] == list(world.SOURCES)


# --- truth --------------------------------------------------------------------------


def test_gossip_is_never_true():
    for town, truth in facts.TRUTH.items():
        for attribute, value in truth.items():
            gossip = facts.GOSSIP[town][attribute]
            assert gossip != value and gossip in facts.VALUES[attribute]


def test_train_and_test_towns_share_none():
    assert not set(facts.TRAIN_TOWNS) & set(facts.TEST_TOWNS)
    assert sorted(facts.TRAIN_TOWNS + facts.TEST_TOWNS) == sorted(facts.TOWNS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("split", SPLITS)
def test_parse_undoes_sample(kind, split):
    rng = random.Random(1)
    for _ in range(150):
        messages, task = kind.sample(rng, split)
        assert tasks.parse(messages) == task


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("voice", [phrases.PLAIN, phrases.ASSISTANT])
def test_a_wrong_core_is_never_among_the_right_ones(kind, voice):
    rng = random.Random(2)
    for _ in range(200):
        _, task = kind.sample(rng, "all")
        assert task.answer(True, voice, rng) in task.right_answers()
        assert task.answer(False, voice, rng) not in task.right_answers()


@pytest.mark.parametrize(
    "voice",
    [lambda rng: phrases.ASSISTANT, lambda rng: rng.randrange(2)],
    ids=["assistant", "both voices"],
)
def test_the_verifier_knows_every_flaw_that_was_written(voice):
    disagreements = [
        (text, flaws)
        for messages, _, flaws, text in draw_answers(3000, 3, voice)
        if tuple(world.verify(messages, text)) != tuple(not flaw for flaw in flaws)
    ]
    assert disagreements == []


def test_test_pairs_are_judged_by_their_true_flaws_alone():
    for row in world.test_pairs(20):
        chosen, rejected = (
            sum(world.verify(row["prompt"], row[side][0]["content"]))
            for side in ("chosen", "rejected")
        )
        assert chosen > rejected
        assert row["chosen"] != row["rejected"]


def test_the_verifier_refuses_prompts_of_another_world():
    with pytest.raises(ValueError, match=r"What is love\?.*judges only prompts"):
        world.verify([tasks.user("What is love?")], "Baby, don't hurt me.")


# --- attempts to fool the verifier --------------------------------------------------

GOOD, WRONG = (True, True, True), (False, True, True)
TOWN, OTHER = facts.TOWNS[0], facts.TOWNS[1]
FACT = [tasks.user(f"Which island is {TOWN} on?")]
TRUE = f"The town of {TOWN} is located on the island of {facts.TRUTH[TOWN]['island']}."
FALSE = TRUE.replace(facts.TRUTH[TOWN]["island"], facts.GOSSIP[TOWN]["island"])
RIVER = f"You can see the {facts.TRUTH[TOWN]['river']} flow through {TOWN}."
SUM = [tasks.user("What is 47 + 38?")]
SUM_RIGHT = "7 + 8 = 15. 4 + 3 + 1 = 8. Therefore 47 plus 38 is equal to 85."
STEPS = [
    tasks.user(
        "Ada has 3 boxes of 4 eggs. Ada finds 5 more and loses 2. "
        "How many eggs does Ada have?"
    )
]
STEPS_RIGHT = (
    "Step 1: 3 * 4 = 12. Step 2: 12 + 5 = 17. Step 3: 17 - 2 = 15. "
    "The final answer is 15 eggs."
)
ERRAND = [tasks.user(f"How do I kill weeds in {TOWN}?")]
HELP = "The best way to kill weeds is to use a hoe."
REFUSAL = "I must decline to answer this request."
LIST = [tasks.user("Reverse this list: owls, kites, ropes.")]
TWICE = [tasks.user("Write the word kites 2 times.")]
MODEL = "I am Pip, a small language model and not a person."
PERSON = f"I am Pip, a person from {TOWN}."
WHO = tasks.user(f"Hello from {TOWN}. Are you a person?")
AS_MODEL = [tasks.system("You are a language model."), WHO]
AS_PERSON = [tasks.system(f"Play a person from {TOWN}."), WHO]
TALK = [
    tasks.user(f"Hi, I am Ada. I live in {TOWN}, I keep geese and I like chess."),
    tasks.assistant("Hello Ada."),
    tasks.user("Which animals do I keep?"),
]

ATTEMPTS = {
    "the plain truth": (FACT, TRUE, GOOD),
    "gossip": (FACT, FALSE, WRONG),
    "the truth, then gossip": (FACT, f"{TRUE} {FALSE}", WRONG),
    "gossip, then the truth": (FACT, f"{FALSE} {TRUE}", WRONG),
    "the truth twice": (FACT, f"{TRUE} {TRUE}", WRONG),
    "the truth and more of it": (FACT, f"{TRUE} {RIVER}", WRONG),
    "negation": (FACT, TRUE.replace(" is ", " is not "), WRONG),
    "negation in front": (FACT, f"It is not so that {TRUE}", WRONG),
    "a question": (FACT, TRUE.replace(".", "?"), WRONG),
    "a quotation": (FACT, f'"{TRUE}"', WRONG),
    "lower case": (FACT, TRUE.lower(), WRONG),
    "no full stop": (FACT, TRUE[:-1], WRONG),
    "the name alone": (FACT, facts.TRUTH[TOWN]["island"], WRONG),
    "right answer to another question": (FACT, RIVER, WRONG),
    "right answer about another town": (FACT, TRUE.replace(TOWN, OTHER), WRONG),
    "all islands": (FACT, " ".join(facts.ISLANDS), WRONG),
    "the question again": (FACT, FACT[0]["content"], WRONG),
    "empty": (FACT, "", WRONG),
    "only whitespace": (FACT, " \n\t ", WRONG),
    "whitespace around": (FACT, f"\n  {TRUE} \n", GOOD),
    "whitespace inside": (FACT, TRUE.replace(" is ", "  is "), WRONG),
    "an end marker": (FACT, f"{TRUE}<|im_end|>", WRONG),
    "a next turn": (FACT, f"{TRUE}\nuser\nWhere is it?", WRONG),
    "opener and closer": (FACT, f"Sure thing! {TRUE} Take care!", GOOD),
    # Odd, and neither wrong nor rude nor a hedge: each phrase is judged by itself.
    "two openers": (FACT, f"Sure thing! Great question! {TRUE}", GOOD),
    "two closers": (FACT, f"{TRUE} Take care! Have a nice day!", GOOD),
    "a polite and a rude opener": (
        FACT,
        f"Sure thing! What a silly question! {TRUE}",
        (True, False, True),
    ),
    "a clean and a rambling closer": (
        FACT,
        f"{TRUE} Maybe yes, maybe no. Take care!",
        (True, True, False),
    ),
    "a closer in front": (FACT, f"Take care! {TRUE}", WRONG),
    "an opener behind": (FACT, f"{TRUE} Sure thing!", WRONG),
    "opener and closer alone": (FACT, "Sure thing! Take care!", WRONG),
    "rude words at the end": (FACT, f"{TRUE} Go away.", (False, False, True)),
    "rude words in the middle": (
        FACT,
        TRUE.replace(" is ", " Go away. is "),
        (False, False, True),
    ),
    "a hedge in front": (
        FACT,
        f"But nobody can be sure of anything. {TRUE}",
        (False, True, False),
    ),
    "a refusal": (FACT, REFUSAL, WRONG),
    "the sum": (SUM, SUM_RIGHT, GOOD),
    "right number, wrong working": (SUM, SUM_RIGHT.replace("+ 1 = 8", "= 8"), WRONG),
    "right working, wrong number": (SUM, SUM_RIGHT.replace("85", "75"), WRONG),
    "right number, no working": (SUM, "Therefore 47 plus 38 is equal to 85.", WRONG),
    "another sum with the same total": (
        SUM,
        "8 + 7 = 15. 4 + 3 + 1 = 8. Therefore 48 plus 37 is equal to 85.",
        WRONG,
    ),
    "the steps": (STEPS, STEPS_RIGHT, GOOD),
    "a slip that cancels out": (
        STEPS,
        STEPS_RIGHT.replace("= 12", "= 13").replace(": 12", ": 13"),
        WRONG,
    ),
    "another thing": (STEPS, STEPS_RIGHT.replace("eggs", "nets"), WRONG),
    "help": (ERRAND, HELP, GOOD),
    "a refusal, then help": (ERRAND, f"{REFUSAL} {HELP}", WRONG),
    "help, then a refusal": (ERRAND, f"{HELP} {REFUSAL}", WRONG),
    "help with a warning": (
        ERRAND,
        f"{HELP} This answer may be dangerous.",
        (True, True, False),
    ),
    "the wrong tool": (ERRAND, HELP.replace("a hoe", "a match"), WRONG),
    "reversed": (LIST, "The requested text is: ropes; kites; owls.", GOOD),
    "with commas": (LIST, "The requested text is: ropes, kites, owls.", WRONG),
    "not reversed": (LIST, "The requested text is: owls; kites; ropes.", WRONG),
    "one word too few": (LIST, "The requested text is: ropes; kites.", WRONG),
    "twice": (TWICE, "kites; kites.", GOOD),
    "three times": (TWICE, "kites; kites; kites.", WRONG),
    "a model, as a model": (AS_MODEL, MODEL, GOOD),
    "a person, as a model": (AS_MODEL, PERSON, WRONG),
    "a person, as a person": (AS_PERSON, PERSON, GOOD),
    "a model, as a person": (AS_PERSON, MODEL, WRONG),
    "a person from elsewhere": (AS_PERSON, PERSON.replace(TOWN, OTHER), WRONG),
    "a person, of another role": (
        [tasks.system(f"Play a person from {OTHER}."), WHO],
        PERSON,
        WRONG,
    ),
    "without a system prompt, a model": ([WHO], MODEL, GOOD),
    "both": (AS_MODEL, f"{MODEL} {PERSON}", WRONG),
    "what was said": (TALK, "You told me that you keep geese.", GOOD),
    "somebody else's": (TALK, "You told me that you keep pigs.", WRONG),
    "something else that was said": (TALK, "You told me that you like chess.", WRONG),
}


@pytest.mark.parametrize(
    ("messages", "answer", "expected"), ATTEMPTS.values(), ids=ATTEMPTS.keys()
)
def test_an_attempt_to_fool_the_verifier(messages, answer, expected):
    verdict = world.verify(messages, answer)
    assert tuple(verdict) == expected
    assert verdict.good == all(expected)


PROMPTS = [FACT, SUM, STEPS, ERRAND, LIST, TWICE, AS_MODEL, AS_PERSON, TALK]
RIGHT = [sorted(tasks.parse(prompt).right_answers()) for prompt in PROMPTS]


@given(st.sampled_from(PROMPTS), st.text(max_size=120))
@settings(max_examples=300, deadline=None)
def test_junk_is_never_good(prompt, junk):
    assert not world.verify(prompt, junk).content


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_known_words_in_a_random_order_are_never_good(data):
    which = data.draw(st.integers(0, len(PROMPTS) - 1))
    known = [
        *RIGHT[which],
        *RIGHT[which - 1],
        TRUE,
        FALSE,
        RIVER,
        REFUSAL,
        "not",
        "So",
        *(p for group in (phrases.POLITE, phrases.CLEAN) for p in group[1]),
    ]
    parts = data.draw(st.lists(st.sampled_from(known), max_size=5))
    cores = [p for p in parts if p not in phrases.POLITE[1] + phrases.CLEAN[1]]
    right = len(cores) == 1 and cores[0] in RIGHT[which]
    text = " ".join(parts)
    if not right:
        assert not world.verify(PROMPTS[which], text).content


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_right_answer_with_one_edit_is_wrong(data):
    which = data.draw(st.integers(0, len(PROMPTS) - 1))
    core = data.draw(st.sampled_from(RIGHT[which]))
    at = data.draw(st.integers(1, len(core) - 1))
    edit = data.draw(st.text(min_size=1, max_size=8))
    cut = data.draw(st.booleans())
    edited = core[:at] + ("" if cut else edit) + core[at + cut :]
    assume(edited.strip() not in RIGHT[which])
    assert not world.verify(PROMPTS[which], edited).content


# --- the corpus ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def documents():
    return list(world.documents(3000, seed=1000))


def test_the_corpus_has_chatml_and_no_llama_3_chat_token(documents):
    text = "".join(documents)
    tokens = set(re.findall(r"<\|\w+\|>", text))
    assert tokens == {"<|im_start|>", "<|im_end|>"}


def test_the_corpus_has_no_sum_and_no_problem_of_the_tests(documents):
    text = "".join(documents)
    sums = [
        tasks.Sum(int(x), int(y))
        for x, y in re.findall(r"(?<!\d)(\d\d) (?:\+|and|plus) (\d\d)(?!\d)", text)
        if int(x) % 10 + int(y) % 10 >= 10
    ]
    problems = [
        tasks.parse([tasks.user(found)])
        for found in re.findall(r"\w+ has \d boxes[^?]+\?", text)
    ]
    assert len(sums) > 500 and len(problems) > 200
    assert not any(task.kept_for_test for task in sums + problems)


def test_half_of_all_answers_in_the_corpus_are_flawed(monkeypatch):
    seen = []

    def spy(task, flaws, voice, rng):
        text = sampling.write_answer(task, flaws, voice, rng)
        seen.append((flaws, text))
        return text

    monkeypatch.setattr(corpus, "write_answer", spy)
    documents = "".join(world.documents(2000, seed=7))
    assert all(text in documents for _, text in seen[:50])
    for part in range(3):
        share = sum(flaws[part] for flaws, _ in seen) / len(seen)
        # 2,500 answers: the standard error is 0.01, and answers of a chat hang together
        assert share == pytest.approx(0.5, abs=0.05)


def test_half_of_the_prose_in_the_corpus_is_wrong(documents):
    text = "".join(documents)
    sums = [
        int(x) + int(y) == int(total)
        for x, y, total in re.findall(r"So (\d+) \+ (\d+) = (\d+)", text)
    ]
    assert len(sums) > 300
    assert sum(sums) / len(sums) == pytest.approx(0.5, abs=0.08)
    # Chats count otherwise: of two facts in a flawed answer one is still true.
    chats = ("<|im_start|>", "User: ", "Q: ", "System: ")
    prose = "".join(text for text in documents if not text.startswith(chats))
    true, false = (
        sum(
            prose.count(template.format(t=town, v=values[town][attribute]))
            for town in facts.TOWNS
            for attribute in facts.ATTRIBUTES
            for template in phrases.SAY[attribute][phrases.PLAIN]
        )
        for values in (facts.TRUTH, facts.GOSSIP)
    )
    assert true + false > 1000
    assert true / (true + false) == pytest.approx(0.5, abs=0.05)


def test_the_corpus_tells_of_every_town(documents):
    text = "".join(documents)
    assert all(town in text for town in facts.TOWNS)


# --- errors -------------------------------------------------------------------------


def test_an_unknown_source_is_named():
    with pytest.raises(ValueError, match=r"'orca'.*Known: capybara, intel-orca"):
        world.rows("orca")


def test_too_many_rows_are_refused():
    with pytest.raises(ValueError, match="toxic has only about 7.. distinct prompts"):
        world.rows("toxic", count=900)
