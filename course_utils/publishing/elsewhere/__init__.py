"""The same run in Axolotl and in LLaMA-Factory: their files, and whose loss is whose.

`axolotl.yaml` and `llama_factory.yaml` beside this file are the commented
configurations. What the tools' own parsers and trainers say of them is recorded by
`tests/elsewhere/validate.py` in `recorded/elsewhere.json`.
"""

from course_utils.publishing.elsewhere.generate import (
    LLAMA3_CONTROL_IDS,
    axolotl,
    llama_factory,
)
from course_utils.publishing.elsewhere.loss import loss_by_definition

__all__ = ["LLAMA3_CONTROL_IDS", "axolotl", "llama_factory", "loss_by_definition"]
