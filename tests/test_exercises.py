import pytest
from tiny_llama import tiny_model, tiny_tokenizer

from course_utils.exercises import checks, mechanism, solutions

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
    assert capsys.readouterr().out == f"{exercise.number}: correct\n"


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
    name = exercise.check.__name__
    assert repr(shown).startswith(f"def {name}(")
    namespace = {"__builtins__": __builtins__} | vars(solutions)
    exec(repr(shown), namespace)
    answer = namespace[name]
    exercise.check(answer() if not callable(exercise.answer) else answer)
    assert "<details>" in shown._repr_html_()


def test_an_unknown_exercise_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no exercise '9\.9'.*0\.1, .*1\.1, 1\.2"):
        checks.solution("9.9")


def test_numbers_are_used_once_and_mistakes_are_required():
    with pytest.raises(ValueError, match="twice"):
        mechanism.exercise("1.1", len, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="two typical mistakes"):
        mechanism.exercise("8.8", len, {"a": 1})


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
