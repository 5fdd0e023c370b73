"""The pairs that the command trains on; what only the main process does."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedTokenizerBase

from course_utils import chat
from course_utils.data import mixing
from course_utils.data.sources import read_json_lines
from course_utils.setup.profiles import Profile

COLUMNS = ("prompt", "chosen", "rejected")


def broadcast_from_main(function: Callable) -> Any:
    """What `function` returns on the main process, sent to all of them.

    A ValueError or OSError there is raised everywhere, so that all end together.
    """
    box = [None, None]
    if PartialState().is_main_process:
        try:
            box[0] = function()
        except (ValueError, OSError) as error:
            box[1] = error
    broadcast_object_list(box)
    result, error = box
    if error is not None:
        raise error
    return result


def read_pairs(
    options: Namespace, profile: Profile, tokenizer: PreTrainedTokenizerBase
) -> tuple[list[dict], Counter]:
    """(pairs, why others were dropped): what to train on, checked."""
    if options.pairs_file:
        rows = read_json_lines(options.pairs_file)
    else:
        mix = mixing.build(profile.data, evaluation_pairs=profile.eval_pairs)
        rows = mix.train.select_columns(list(COLUMNS))
    kept, dropped = chat.check_pairs(rows, tokenizer, profile.max_length, "drop")
    # Of a mix as many as the profile has time for; of somebody's own file all.
    most = options.pairs or (None if options.pairs_file else profile.train_pairs)
    return [{name: row[name] for name in COLUMNS} for row in kept[:most]], dropped
