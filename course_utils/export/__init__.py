"""A merged model for programs other than transformers: one GGUF file."""

from course_utils.export.gguf_file import to_gguf

__all__ = ["to_gguf"]
