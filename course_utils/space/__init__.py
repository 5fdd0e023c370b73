"""A Gradio Space for a published model: a folder that is ready to push."""

from course_utils.space.folder import write

__all__ = ["write"]
