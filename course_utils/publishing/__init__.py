"""Publishing a model: its name, its card, its licence, its upload."""

from course_utils.publishing.folder import ready, write_card
from course_utils.publishing.hub import Upload, upload
from course_utils.publishing.licence import check_name, is_llama3, terms_for
from course_utils.publishing.model_card import card, describe_sources

__all__ = [
    "Upload",
    "card",
    "check_name",
    "describe_sources",
    "is_llama3",
    "ready",
    "terms_for",
    "upload",
    "write_card",
]
