"""The folder of a merged model: its settings end a turn for every program."""

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.setup import folders

WRITER = "merged model"  # what such a folder is, in the words of its marker


def give_end_of_turn(settings: object, tokenizer: PreTrainedTokenizerBase) -> None:
    """Set end, padding and begin of a config or generation config, in place.

    A base's own say <|end_of_text|>, which no trained answer ends with.
    """
    settings.eos_token_id = tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    settings.bos_token_id = tokenizer.bos_token_id


def save(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path
) -> None:
    """Save a merged model in memory and its tokenizer, completely or not at all.

    folder: replaced if it is an earlier merged model of this course.
    Raises: as folders.written_whole; ValueError if folder and the model's own source
    lie in each other.
    """
    give_end_of_turn(model.config, tokenizer)
    give_end_of_turn(model.generation_config, tokenizer)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    sources = [s for s in (model.name_or_path, tokenizer.name_or_path) if s]
    with folders.written_whole(folder, size, WRITER, sources) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
