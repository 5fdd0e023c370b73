"""Which tokens' embedding rows look as if no training ever touched them."""

from collections.abc import Iterable

import torch
from transformers import PreTrainedModel

SMALL_NORM = 0.5  # of the table's median
CLONE_COSINE = 0.95
_ROWS_AT_ONCE = 16_384  # an fp32 copy of 128k x 4,096 would take 2 GiB


def untrained_token_ids(
    model: PreTrainedModel, ids: Iterable[int]
) -> tuple[list[int], list[dict]]:
    """Which of these tokens look untrained, and the numbers that say so.

    model: a transformers causal language model. ids: token ids.
    Returns: (untrained, rows). untrained: list of ids, in the order given. rows: list
        of dicts, one for each id and matrix ("embed_tokens", and "lm_head" where it is
        not tied): id, matrix, norm, median_norm (of the matrix), nearest_id and
        nearest_cosine (the most similar other row), untrained.
    Raises: ValueError if an id is outside the vocabulary.

    A row looks untrained for either of two reasons. It is small: at most half the
    median norm, as in an input table, where a row that never occurs keeps its small
    start (Llama 3's are near 0). Or it has a clone: another row with cosine >= 0.95.
    That catches an output head, whose softmax pushes all never-seen rows along the same
    direction until they are long and alike, and rows that a resize filled with one
    mean. It is a sign, not a proof: rare tokens come close.
    """
    tables = {"embed_tokens": model.get_input_embeddings().weight}
    head = model.get_output_embeddings()
    if head is not None and head.weight.data_ptr() != tables["embed_tokens"].data_ptr():
        tables["lm_head"] = head.weight
    ids = list(ids)
    rows = [row for name, table in tables.items() for row in _inspect(table, ids, name)]
    found = {row["id"] for row in rows if row["untrained"]}
    return [token_id for token_id in ids if token_id in found], rows


@torch.no_grad()
def _inspect(table, ids, matrix):
    size = table.shape[0]
    outside = [token_id for token_id in ids if not 0 <= token_id < size]
    if outside:
        raise ValueError(f"ids {outside} are outside {matrix}, which has {size} rows.")
    wanted = torch.nn.functional.normalize(table[ids].float(), dim=1)  # (K, H)
    norms, cosines = [], []
    for start in range(0, size, _ROWS_AT_ONCE):
        chunk = table[start : start + _ROWS_AT_ONCE].float()
        norms.append(chunk.norm(dim=1))
        cosines.append(wanted @ torch.nn.functional.normalize(chunk, dim=1).T)
    norms = torch.cat(norms).cpu()  # (V,)
    cosines = torch.cat(cosines, dim=1).cpu()  # (K, V)
    cosines[torch.arange(len(ids)), ids] = -1.0  # a row is no clone of itself
    nearest_cosine, nearest_id = cosines.max(dim=1)
    median = norms.median()
    return [
        {
            "id": token_id,
            "matrix": matrix,
            "norm": norms[token_id].item(),
            "median_norm": median.item(),
            "nearest_id": nearest_id[k].item(),
            "nearest_cosine": nearest_cosine[k].item(),
            "untrained": bool(
                norms[token_id] <= SMALL_NORM * median
                or nearest_cosine[k] >= CLONE_COSINE
            ),
        }
        for k, token_id in enumerate(ids)
    ]
