"""A Gradio Space for a published model: a folder that is ready to push."""

from course_utils.publishing.space.folder import write

__all__ = ["write"]
