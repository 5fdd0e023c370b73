"""Merging an adapter into the base that it was trained on, layer by layer."""

from course_utils.publishing.merging.adapter import read_adapter
from course_utils.publishing.merging.saving import give_end_of_turn, save
from course_utils.publishing.merging.streamed import merge, merged_tensor

__all__ = ["give_end_of_turn", "merge", "merged_tensor", "read_adapter", "save"]
