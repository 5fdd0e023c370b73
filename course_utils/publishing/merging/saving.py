"""A merged model's folder: it ends a turn for every program that reads it.

Knows: what a saved model's settings must say. Does not know: its weights.
"""

from course_utils.setup import folders


def give_end_of_turn(settings, tokenizer):
    """Set end, padding and begin of a config or generation config, in place.

    A base's own say <|end_of_text|>, which no trained answer ends with.
    """
    settings.eos_token_id = tokenizer.eos_token_id
    settings.pad_token_id = tokenizer.pad_token_id
    settings.bos_token_id = tokenizer.bos_token_id


def save(model, tokenizer, folder):
    """Save a merged model in memory and its tokenizer, whole or not at all.

    folder: replaced if it is there.
    """
    give_end_of_turn(model.config, tokenizer)
    give_end_of_turn(model.generation_config, tokenizer)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    with folders.written_whole(folder, size, replace=True) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
