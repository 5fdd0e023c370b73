"""The CPU lab's small world: seven preference sources in which truth can be checked.

It has towns, sums and dialogues, seven data sets in the columns of the real ones, an
exact verifier, and the corpus that a base model is pretrained on.
"""

from course_utils.data.world.corpus import documents
from course_utils.data.world.rows import SIZES, rows
from course_utils.data.world.sampling import SOURCES, test_pairs
from course_utils.data.world.verifier import Verdict, verify

__all__ = ["SIZES", "SOURCES", "Verdict", "documents", "rows", "test_pairs", "verify"]
