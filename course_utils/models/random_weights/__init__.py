"""A shape twin: a checkpoint in the exact shape of Llama 3 8B, with random weights.

Knows: the shape, a tokenizer with Llama 3's ids, how to write both with little memory.
Does not know: anything that was learned. Speed and memory do not depend on the weights'
values, so a twin measures them honestly; it says nothing of quality.

    python -m course_utils.models.random_weights FOLDER
"""

from course_utils.models.random_weights.checkpoint import SHAPES, needs_bytes, write
from course_utils.models.random_weights.tokenizer import make_tokenizer

__all__ = ["SHAPES", "make_tokenizer", "needs_bytes", "write"]
