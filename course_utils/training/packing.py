"""Preference pairs packed for training: shared prefixes, rows without padding.

Words used here. The *prefix* of a pair is what chosen and rejected have in common from
the first token on: the prompt, and often the first words of the answers. A *row* is
what the model reads in one go, pairs one after another, each laid out as
`[prefix | chosen rest | rejected rest]`: *segments* 0, 1 and 2. A *target* is a token
that is scored, its *source* the position whose hidden state predicts it. A
*group* is a micro-batch as the data loader made it; an optimizer step has several.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from course_utils.training.tokenised_pairs import (  # noqa: F401 - used through here
    Pair,
    filling_pairs,
    packed_length,
    pair_from_row,
    pairs_from_batch,
    shared_prefix,
)


def fill_rows(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Which items share a row: as few rows as first fit needs, about equally long.

    Equal rows, since the longest one decides how much memory a step takes, and how many
    layers have to compute again in backward what they could not keep.

    lengths: tokens of each item. budget: tokens that a row may hold; an item longer
        than that gets a row of its own.
    Returns: list of rows, each a sorted list of indices into `lengths`.
    Raises: ValueError if budget is not positive.
    """
    if budget < 1:
        raise ValueError(f"token_budget must be at least 1, got {budget}.")
    longest_first = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    rows = _first_fit(longest_first, lengths, budget)
    equal, totals = [[] for _ in rows], [0] * len(rows)
    for item in longest_first:
        shortest = totals.index(min(totals))
        equal[shortest].append(item)
        totals[shortest] += lengths[item]
        if totals[shortest] > budget and len(equal[shortest]) > 1:
            break  # not in so few rows
    else:
        rows = equal
    return [sorted(row) for row in rows]


def _first_fit(items, lengths, budget):
    """Rows of items, each item in the first row that has room for it."""
    rows, free = [], []
    for item in items:
        for row, room in enumerate(free):
            if lengths[item] <= room:
                rows[row].append(item)
                free[row] -= lengths[item]
                break
        else:
            rows.append([item])
            free.append(budget - lengths[item])
    return rows


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Pairs laid out in one row of T tokens, with n targets and P pairs.

    input_ids, position_ids: (1, T) int64; positions restart at the branch point.
    pair_id: (T,) int64, the pair that a token belongs to, -1 on padding.
    segment: (T,) int64, 0 prefix, 1 chosen rest, 2 rejected rest.
    sources: (n,) int64 into T. targets: (n,) int64, token ids.
    in_chosen, in_rejected: (P, n) bool, the targets of each whole sequence, prompt
        included. A target in the prefix belongs to both.
    chosen_answer, rejected_answer: (P, n) bool, those of the answers alone.
    nll_weight: (P,) float64, 1 / (NLL's tokens in the pair's group).
    pair_weight: (P,) float64, 1 / (pairs in the pair's group).
    step_index: (P,) int64, the pair's place in its optimizer step.
    lengths: tokens of each pair, one int for each real one; padding not counted.

    For attention without masks a row is cut into S sequences, two for each pair and one
    for the padding: `[prefix | chosen rest]` and `[rejected rest]`, whose queries read
    the keys of the prefix and their own.

    cu_queries, cu_keys: (S + 1,) int32, where sequences begin among queries (the row's
        tokens in their order) and among keys.
    key_tokens: (K,) int64 into T, the tokens in the order of the keys.
    key_first, key_second: (T,) int64 into K, where a token's key stands; the second is
        -1 outside prefixes.
    longest: int, tokens of the longest sequence of keys.
    embeddings: (1, T, H) of input_ids, or None where the model looks them up.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    pair_id: torch.Tensor
    segment: torch.Tensor
    sources: torch.Tensor
    targets: torch.Tensor
    in_chosen: torch.Tensor
    in_rejected: torch.Tensor
    chosen_answer: torch.Tensor
    rejected_answer: torch.Tensor
    nll_weight: torch.Tensor
    pair_weight: torch.Tensor
    step_index: torch.Tensor
    cu_queries: torch.Tensor
    cu_keys: torch.Tensor
    key_tokens: torch.Tensor
    key_first: torch.Tensor
    key_second: torch.Tensor
    lengths: tuple
    longest: int
    embeddings: torch.Tensor | None = None

    def on(self, device: torch.device) -> "PackedRow":
        """The row on a device; to a GPU the copies do not wait for it."""
        if self.input_ids.device.type == device.type:
            return self
        moved = {k: without_waiting(v, device) for k, v in self.tensors().items()}
        return replace(self, **moved)

    def tensors(self) -> dict[str, torch.Tensor]:
        """{field: tensor}"""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: v for name, v in values.items() if torch.is_tensor(v)}


def without_waiting(
    tensor: torch.Tensor, device: torch.device, into: torch.Tensor | None = None
) -> torch.Tensor:
    """A CPU tensor on a device; the CPU does not wait until a GPU has it.

    into: a tensor there that takes its values, or None for a new one.
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    if into is not None:
        return into.copy_(tensor, non_blocking=True)
    return tensor.to(device, non_blocking=True)


def pack_step(
    groups: list[list[Pair]],
    budget: int,
    share_prefix: bool = True,
    multiple: int = 1,
    slots: int | None = None,
    nll_scope: str = "prompt_and_answer",
) -> list[PackedRow]:
    """All pairs of an optimizer step in rows of at most `budget` tokens.

    groups: list of micro-batches, each a list of Pairs. Weights stay those of the
        groups, so that the step sees what it would see without packing.
    multiple: rows are padded to a multiple of this many tokens.
    slots: pairs are padded to a multiple of this many, with copies of a row's first
        pair that weigh nothing, targets and keys to what T tokens can have at most; so
        that rows of equally many tokens have equal shapes. None: nothing is padded.
    nll_scope: as in ORPOConfig; which tokens a micro-batch's NLL is averaged over.
    """
    pairs = [pair for group in groups for pair in group]
    nll_weight, pair_weight = [], []
    for group in groups:
        # The first token of a conversation is predicted by nothing.
        if nll_scope == "answer":
            tokens = sum(int(pair.chosen_scored[1:].sum()) for pair in group)
        else:
            tokens = sum(len(pair.chosen_ids) - 1 for pair in group)
        nll_weight += [1 / tokens] * len(group)
        pair_weight += [1 / len(group)] * len(group)
    lengths = [packed_length(pair, share_prefix) for pair in pairs]
    rows = []
    for members in fill_rows(lengths, budget):
        row = lay_out([pairs[i] for i in members], share_prefix, multiple)
        row["nll_weight"] = np.array([nll_weight[i] for i in members])
        row["pair_weight"] = np.array([pair_weight[i] for i in members])
        row["step_index"] = np.array(members)
        if slots is not None:
            row = _in_fixed_shapes(row, slots)
        longest = int(np.diff(row["cu_keys"]).max())
        tensors = {key: torch.from_numpy(value) for key, value in row.items()}
        tokens = tuple(lengths[i] for i in members)
        rows.append(PackedRow(lengths=tokens, longest=longest, **tensors))
    return rows


def lay_out(
    pairs: list[Pair], share_prefix: bool = True, multiple: int = 1
) -> dict[str, np.ndarray]:
    """The arrays of a row, as PackedRow names them, without the weights.

    Returns: dict of numpy arrays.
    """
    parts, members, sizes, start, first_target = [], [], [], 0, 0
    for number, pair in enumerate(pairs):
        part, member, size = _lay_out_pair(pair, share_prefix)
        sizes.append(size)
        part["pair_id"] = np.full(len(part["input_ids"]), number)
        part["sources"] = part["sources"] + start
        parts.append(part)
        members.append((first_target, member))
        start += len(part["input_ids"])
        first_target += len(part["targets"])
    padding = -start % multiple
    row = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    for key, value in (
        ("input_ids", 0),
        ("position_ids", 0),
        ("pair_id", -1),
        ("segment", 0),
    ):
        row[key] = np.pad(row[key], (0, padding), constant_values=value)
    for key in ("input_ids", "position_ids"):
        row[key] = row[key].reshape(1, -1)  # with strides, which compiled code guards
    for key in members[0][1]:
        row[key] = np.zeros((len(pairs), first_target), dtype=bool)
        for number, (at, member) in enumerate(members):
            row[key][number, at : at + len(member[key])] = member[key]
    return row | _key_order(sizes, padding)


def _key_order(sizes, padding):
    """Which keys each sequence reads: cu_queries ... key_second of PackedRow.

    sizes: (prefix, chosen rest, rejected rest) of each pair.
    """
    queries, keys, key_tokens, start = [], [], [], 0
    for prefix, chosen, rejected in [*sizes, (padding, 0, 0)]:
        whole = np.arange(start, start + prefix + chosen)
        segment = start + len(whole) + np.arange(rejected)
        read = np.concatenate([whole[:prefix], segment]) if rejected else segment
        queries += [len(whole), rejected]
        keys += [len(whole), len(read)]
        key_tokens += [whole, read]
        start += len(whole) + rejected
    # The padding is one sequence, not two.
    queries.pop(), keys.pop(), key_tokens.pop()
    key_tokens = np.concatenate(key_tokens)
    order = np.arange(len(key_tokens))
    first = np.full(start, len(order))
    np.minimum.at(first, key_tokens, order)
    second = np.full(start, -1)
    again = first[key_tokens] != order
    second[key_tokens[again]] = order[again]
    return {
        "cu_queries": np.cumsum([0, *queries], dtype=np.int32),
        "cu_keys": np.cumsum([0, *keys], dtype=np.int32),
        "key_tokens": key_tokens,
        "key_first": first,
        "key_second": second,
    }


def _in_fixed_shapes(row, slots):
    """The arrays of a row, padded as pack_step says."""
    tokens = row["input_ids"].shape[1]
    pairs = len(row["step_index"])
    more = -pairs % slots
    row = dict(row)
    for key in ("sources", "targets"):
        row[key] = np.pad(row[key], (0, tokens - len(row[key])))
    for key in ("in_chosen", "in_rejected", "chosen_answer", "rejected_answer"):
        wide = np.pad(row[key], ((0, 0), (0, tokens - row[key].shape[1])))
        # Copies, since the mean over an answer of no tokens is no number.
        row[key] = np.concatenate([wide, np.repeat(wide[:1], more, axis=0)])
    for key in ("nll_weight", "pair_weight"):
        row[key] = np.pad(row[key], (0, more))
    row["step_index"] = np.pad(row["step_index"], (0, more))
    for key in ("cu_queries", "cu_keys"):
        # Sequences of no tokens, before the padding's.
        ends = row[key]
        row[key] = np.concatenate(
            [ends[:-1], np.repeat(ends[-2:-1], 2 * more), ends[-1:]]
        )
    row["key_tokens"] = np.pad(
        row["key_tokens"], (0, 2 * tokens - len(row["key_tokens"]))
    )
    return row


def _lay_out_pair(pair, share_prefix):
    """One pair's part of a row, and which of its targets belong to what."""
    chosen, rejected = pair.chosen_ids, pair.rejected_ids
    prefix = shared_prefix(chosen, rejected) if share_prefix else 0
    rest = len(rejected) - prefix
    # Targets of the prefix are scored once, with the chosen ones. The rejected answer's
    # own begin at the branch point, or behind the first token, which nothing predicts.
    own = np.arange(max(prefix, 1), len(rejected))
    # The last token of the prefix predicts the first of either segment.
    own_sources = np.where(own == prefix, prefix - 1, len(chosen) + own - 1 - prefix)
    part = {
        "input_ids": np.concatenate([chosen, rejected[prefix:]]),
        "position_ids": np.concatenate(
            [np.arange(len(chosen)), np.arange(prefix, len(rejected))]
        ),
        "segment": np.repeat([0, 1, 2], [prefix, len(chosen) - prefix, rest]),
        "sources": np.concatenate([np.arange(len(chosen) - 1), own_sources]),
        "targets": np.concatenate([chosen[1:], rejected[own]]),
    }

    def chosen_side(values):
        return np.concatenate([values[1:], np.zeros(len(own), dtype=bool)])

    def rejected_side(values):
        not_shared = len(chosen) - max(prefix, 1)
        return np.concatenate(
            [values[1:prefix], np.zeros(not_shared, dtype=bool), values[own]]
        )

    members = {
        "in_chosen": chosen_side(np.ones(len(chosen), dtype=bool)),
        "in_rejected": rejected_side(np.ones(len(rejected), dtype=bool)),
        "chosen_answer": chosen_side(pair.chosen_scored),
        "rejected_answer": rejected_side(pair.rejected_scored),
    }
    return part, members, (prefix, len(chosen) - prefix, rest)


def sums(values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Sum of each pair's values.

    values: (n,), one per target. members: (P, n) bool. Returns: (P,).

    A masked product instead of index_add: the order of additions is fixed, so that the
    result is the same in every run on a GPU too.
    """
    return torch.where(members, values, 0).sum(dim=1)


def means(values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Mean of each pair's values; arguments and result as in `sums`."""
    return sums(values, members) / members.sum(dim=1)
