"""A merged model for programs other than transformers: one GGUF file."""

from course_utils.publishing.export.gguf_file import to_gguf

__all__ = ["to_gguf"]
