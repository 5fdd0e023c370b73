"""A checkpoint of random weights in the exact shape of Llama 3 8B.

Speed and memory do not depend on the weights' values, so this checkpoint measures them
honestly. It says nothing about quality: nothing in it was learned.

    python -m course_utils.models.random_weights FOLDER
"""

from course_utils.models.random_weights.checkpoint import SHAPES, needs_bytes, write
from course_utils.models.random_weights.tokenizer import make_tokenizer

__all__ = ["SHAPES", "make_tokenizer", "needs_bytes", "write"]
