"""Five questions per notebook, self-checked; the questions stand in its YAML files."""

from course_utils.exercises.quizzes.asking import Question, Quiz, load, quiz

__all__ = ["Question", "Quiz", "load", "quiz"]
