"""Which token of a packed row may see which."""

import torch


def visible(pair_id: torch.Tensor, segment: torch.Tensor) -> torch.Tensor:
    """Which token may see which: the dense mask of a row.

    pair_id, segment: (T,) int64, as in PackedRow.
    Returns: (T, T) bool, True where the row's token sees the column's: an earlier one,
        or itself, of its own pair, in the prefix or in its own segment.
    """
    place = torch.arange(len(pair_id), device=pair_id.device)
    earlier = place[:, None] >= place
    same_pair = pair_id[:, None] == pair_id
    on_the_way = (segment == 0) | (segment[:, None] == segment)
    return earlier & same_pair & on_the_way


def pair_masks(segment: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
    """`visible` within each pair alone, for attention that takes one pair at a time.

    segment: (T,) int64. lengths: tokens of each pair, in the row's order.
    Returns: (P, 1, longest, longest) bool; what lies outside a pair's length is of no
        meaning.
    """
    rows = torch.nn.utils.rnn.pad_sequence(
        segment[: sum(lengths)].split(lengths), batch_first=True
    )  # (P, longest)
    earlier = torch.ones(rows.shape[1], rows.shape[1], device=rows.device).tril().bool()
    on_the_way = (rows[:, None, :] == 0) | (rows[:, :, None] == rows[:, None, :])
    return (earlier & on_the_way)[:, None]
