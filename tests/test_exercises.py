import re

import numpy as np
import pytest
import torch
from tiny_llama import tiny_model, tiny_tokenizer

from course_utils.exercises import checks, feedback, mechanism, solutions
from course_utils.exercises.hunts import repairs

EXERCISES = list(checks.EXERCISES.values())
NUMBERS = [exercise.number for exercise in EXERCISES]
MISTAKES = [
    pytest.param(exercise, phrase, wrong, id=f"{exercise.number} {phrase}")
    for exercise in EXERCISES
    for phrase, wrong in exercise.mistakes.items()
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_the_solution_passes(exercise, capsys):
    exercise.check(exercise.answer)
    # The first check that imports TRL lets its libraries print a line before.
    assert capsys.readouterr().out.endswith(f"{exercise.number}: correct\n")


@pytest.mark.parametrize(("exercise", "phrase", "wrong"), MISTAKES)
def test_a_typical_mistake_is_named(exercise, phrase, wrong, capsys):
    with pytest.raises(AssertionError) as error:
        exercise.check(wrong)
    message = str(error.value)
    assert message.startswith(f"{exercise.number}: ") and phrase in message
    assert "got:" in message and "expected:" in message
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_an_untouched_stub_is_no_error(exercise, capsys):
    exercise.check(...)
    assert capsys.readouterr().out == f"{exercise.number}: not attempted yet\n"


def test_a_half_filled_table_is_not_attempted(capsys):
    checks.seen({"chosen answer": "odds", "rejected answer": ...})
    assert capsys.readouterr().out == "0.1: not attempted yet\n"


def test_a_value_where_a_function_is_asked():
    with pytest.raises(AssertionError, match=r"asks for a function[\s\S]*def delta"):
        checks.delta(0.5)


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_the_solution_shown_is_the_one_tested(exercise):
    shown = checks.solution(exercise.number)
    name = re.match(r"def (\w+)\(", repr(shown))[1]
    if exercise.recipe is None:
        assert name == exercise.check.__name__
    namespace = {"__builtins__": __builtins__} | vars(repairs) | vars(solutions)
    exec(repr(shown), namespace)
    answer = namespace[name]
    exercise.check(answer() if not callable(exercise.answer) else answer)
    assert "<details>" in shown._repr_html_()


def test_an_unknown_exercise_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no exercise '9\.9'.*0\.1, .*1\.1, 1\.2"):
        checks.solution("9.9")


def test_numbers_are_used_once_and_mistakes_and_hints_are_required():
    card = {"minutes": 5, "difficulty": 1, "trains": "x", "hints": ("one", "two")}
    three = {"a": 1, "b": 2, "c": 3}
    with pytest.raises(ValueError, match="twice"):
        mechanism.exercise("1.1", len, three, **card)
    with pytest.raises(ValueError, match="needs 2 typical mistakes"):
        mechanism.exercise("8.8", len, {"a": 1}, **card)
    with pytest.raises(ValueError, match="needs 3 typical mistakes"):
        mechanism.exercise("8.8", len, {"a": 1, "b": 2}, **card, recipe=len)
    with pytest.raises(ValueError, match="needs two hints"):
        mechanism.exercise("8.8", len, three, **(card | {"hints": ("one",)}))


# --- stubs --------------------------------------------------------------------------


def bare(a, b): ...


def documented(a, b):
    """A contract."""
    ...


def passing(a, b):
    """A contract."""
    pass


def returning(a, b) -> float:
    return ...


@pytest.mark.parametrize("stub", [bare, documented, passing, returning, lambda a: ...])
def test_an_untouched_def_is_a_stub(stub):
    assert mechanism.is_stub(stub)


def half_done(a, b):
    total = a + b
    print(total)


@pytest.mark.parametrize(
    "attempt",
    [half_done, lambda a: 1, lambda a: a, lambda a: False, len, 3, ..., lambda a: "x"],
)
def test_what_does_something_is_no_stub(attempt):
    assert not mechanism.is_stub(attempt)


def test_an_unfinished_body_is_not_attempted(capsys):
    def delta(chosen_logps, rejected_logps):
        odds_ratio = ...
        return odds_ratio

    checks.delta(delta)
    assert capsys.readouterr().out == "1.3: not attempted yet\n"


@pytest.mark.parametrize(
    ("attempt", "words", "got"),
    [
        (lambda scores: (0.4, 0.9), "this is not the interval", "[0.26, 0.21, 0.6]"),
        # Right for three seeds: the case that is wrong is shown.
        (
            lambda scores: (
                solutions.seed_interval(scores) if len(scores) == 3 else (0.1, 0.2)
            ),
            "this is not the interval",
            "(0.1, 0.2) for ([0.9, 0.93, 0.92, 0.85])",
        ),
    ],
)
def test_another_wrong_result_gets_the_last_words_and_its_case(attempt, words, got):
    with pytest.raises(feedback.Feedback) as error:
        checks.seed_interval(attempt)
    assert words in str(error.value) and got in str(error.value)


def test_a_mistake_that_stops_with_an_error_is_not_the_attempts():
    with pytest.raises(feedback.Feedback, match="this pair is judged wrongly"):
        checks.similarity(lambda one, two, run: 0.25)


# --- type and shape come first ------------------------------------------------------

ODD_RESULTS = {
    "text": "seven",
    "tuple": (1, 2, 3, 4, 5, 6, 7, 8, 9),
    "dict": {"a": 1},
    "object": object(),
    "vector": torch.zeros(11),
    "matrix": torch.zeros(2, 13),
    "array": np.zeros((3, 17)),
    "nan": float("nan"),
    "text list": ["a", "b"],
    "function": len,
    "bool": True,
}
FUNCTIONS = [each for each in EXERCISES if callable(each.answer)]


@pytest.mark.parametrize("kind", ODD_RESULTS)
@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda each: each.number)
def test_a_wrong_type_or_shape_is_feedback(exercise, kind):
    with pytest.raises(feedback.Feedback) as error:
        exercise.check(lambda *arguments: ODD_RESULTS[kind])
    assert "got:" in str(error.value)


@pytest.mark.parametrize("exercise", FUNCTIONS, ids=lambda each: each.number)
def test_other_arguments_and_errors_are_feedback(exercise):
    with pytest.raises(feedback.Feedback, match=r"must take \d argument"):
        exercise.check(lambda a, b, c, d, e, f, g: a)

    def stops(*arguments):
        return arguments[0] + "1" + undefined  # noqa: F821

    with pytest.raises(feedback.Feedback, match="stopped with") as error:
        exercise.check(stops)
    assert '"1" + undefined' in str(error.value)


def test_feedback_shows_no_traceback_in_a_notebook():
    with pytest.raises(feedback.Feedback) as error:
        checks.delta(lambda chosen, rejected: chosen.mean())
    (shown,) = error.value._render_traceback_()
    assert shown.startswith("1.3: the shape is wrong") and "Traceback" not in shown


# --- hints --------------------------------------------------------------------------


@pytest.mark.parametrize("exercise", EXERCISES, ids=NUMBERS)
def test_hints_come_in_order(exercise, monkeypatch):
    monkeypatch.setattr(mechanism, "_HINTS_SHOWN", {})
    first, second, again = (checks.hint(exercise.number) for _ in range(3))
    assert (first.text, second.text) == exercise.hints == (first.text, again.text)
    assert checks.hint(exercise.number, 1) == first
    assert repr(first).startswith(f"Hint 1 of 2 for {exercise.number}: ")
    assert "<details>" in first._repr_html_()


def test_a_second_hint_can_come_first(monkeypatch):
    monkeypatch.setattr(mechanism, "_HINTS_SHOWN", {})
    assert checks.hint("1.2", 2).which == 2
    with pytest.raises(ValueError, match="no hint 3"):
        checks.hint("1.2", 3)
    with pytest.raises(ValueError, match=r"no exercise '9\.9'"):
        checks.hint("9.9")


# --- against the libraries ----------------------------------------------------------


def test_0_1_agrees_with_the_loss_view():
    from course_utils import chat

    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    pair = {
        "prompt": [{"role": "user", "content": "What is 47 + 38?"}],
        "chosen": [{"role": "assistant", "content": "It is 85."}],
        "rejected": [{"role": "assistant", "content": "No."}],
    }
    view = chat.loss_view(tokenizer, pair, 99)
    answers = checks.EXERCISES["0.1"].answer
    for side in ("chosen", "rejected"):
        regions = [region for _, region in view[side][1:]]
        assert regions[0] == answers[f"prompt of the {side} row"]
        assert regions[-1] == answers[f"{side} answer"]


@pytest.mark.parametrize(("pairs", "batch", "accumulation"), [(33, 2, 4), (32, 2, 4)])
def test_4_2_counts_steps_as_the_trainer_does(pairs, batch, accumulation, tmp_path):
    from datasets import Dataset

    from course_utils.training import ORPOConfig, ORPOTrainer

    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = "<|reserved_special_token_0|>"
    args = ORPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
    )
    row = {"prompt": "What is 47 + 38?", "chosen": " 85", "rejected": " 75"}
    trainer = ORPOTrainer(
        model=tiny_model(len(tokenizer)),
        args=args,
        train_dataset=Dataset.from_list([row] * pairs),
        processing_class=tokenizer,
    )
    trainer.train()
    steps, move = checks.EXERCISES["4.2"].answer(pairs, batch, accumulation, 1e-3)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "loss" in log]
    assert trainer.state.global_step == steps == len(rates)
    assert sum(rates) == pytest.approx(move)
