"""The CPU lab: the base model that ships with the course, and its recorded findings."""

from course_utils.lab.base import (
    BASE_MODEL,
    BATCH,
    CHATML_TEMPLATE,
    MAX_LENGTH,
    load_base,
    use_chatml,
)
from course_utils.lab.findings import effect, over_seeds, recorded, summary
from course_utils.lab.ladder import RUNGS, TAKEN_BACK, ladder_jobs
from course_utils.lab.runs import (
    count_prompt_twice,
    jobs,
    leave_one_out_jobs,
    make_trainer,
    measure,
    run,
    trainer_arguments,
)

__all__ = [
    "BASE_MODEL",
    "BATCH",
    "CHATML_TEMPLATE",
    "MAX_LENGTH",
    "RUNGS",
    "TAKEN_BACK",
    "count_prompt_twice",
    "effect",
    "jobs",
    "ladder_jobs",
    "leave_one_out_jobs",
    "load_base",
    "make_trainer",
    "measure",
    "over_seeds",
    "recorded",
    "run",
    "summary",
    "trainer_arguments",
    "use_chatml",
]
