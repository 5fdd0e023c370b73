"""Packed rows: what each token sees, what is scored, what shares a row."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from course_utils.chat.tokens import IGNORE_INDEX
from course_utils.training import packing
from course_utils.training.fast import row_masks


def make_pair(chosen, rejected, prompts=(1, 1)):
    """A Pair from ids; the first prompts[...] tokens of either side are its prompt."""
    row = {}
    for side, ids, prompt in zip(
        ("chosen", "rejected"), (chosen, rejected), prompts, strict=True
    ):
        row[f"{side}_input_ids"] = list(ids)
        row[f"{side}_labels"] = [IGNORE_INDEX] * prompt + list(ids)[prompt:]
    return packing.pair_from_row(row)


@st.composite
def pairs(draw):
    """Pairs of few different tokens, so that long prefixes are frequent."""
    token = st.integers(0, 2)
    prompt = draw(st.lists(token, min_size=0, max_size=5))
    answers = [draw(st.lists(token, min_size=1, max_size=6)) for _ in range(2)]
    if draw(st.booleans()):  # one answer continues the other
        answers[1] = answers[0] + answers[1]
    if draw(st.booleans()):
        answers.reverse()
    if not prompt:  # nothing predicts a first token, so one more must be scored
        answers = [[*answer, 0] for answer in answers]
    sides = [prompt + answer for answer in answers]
    return make_pair(*sides, prompts=(len(prompt), len(prompt)))


def packed(groups, budget=1000, **settings):
    return packing.pack_step(groups, budget, **settings)


def contexts(row):
    """For each target: (ids it is predicted from, their positions, its id)."""
    seen = row_masks.visible(row.pair_id, row.segment)
    return [
        (
            row.input_ids[0, seen[source]].tolist(),
            row.position_ids[0, seen[source]].tolist(),
            target,
        )
        for source, target in zip(row.sources, row.targets.tolist(), strict=True)
    ]


@given(st.lists(pairs(), min_size=1, max_size=4), st.booleans(), st.integers(1, 7))
def test_every_token_is_predicted_from_what_comes_before_it(pairs, share, multiple):
    (row,) = packed([pairs], share_prefix=share, multiple=multiple)
    predictions = contexts(row)
    for number, pair in enumerate(pairs):
        for ids, scored, members, answers in (
            (pair.chosen_ids, pair.chosen_scored, row.in_chosen, row.chosen_answer),
            (
                pair.rejected_ids,
                pair.rejected_scored,
                row.in_rejected,
                row.rejected_answer,
            ),
        ):
            found = [predictions[i] for i in members[number].nonzero()[:, 0]]
            ids = ids.tolist()
            assert found == [
                (ids[:t], list(range(t)), ids[t]) for t in range(1, len(ids))
            ]
            # and among them the answer's own, in order
            among = answers[number][members[number]]
            assert among.tolist() == scored[1:].tolist()
            assert not (answers[number] & ~members[number]).any()


@given(st.lists(pairs(), min_size=1, max_size=4))
def test_a_shared_prefix_is_read_and_scored_once(pairs):
    (row,) = packed([pairs])
    shared = [packing.shared_prefix(p.chosen_ids, p.rejected_ids) for p in pairs]
    whole = sum(len(p.chosen_ids) + len(p.rejected_ids) for p in pairs)
    assert row.input_ids.shape[1] == sum(row.lengths) == whole - sum(shared)
    # Of the two first tokens none is scored; what both have in common counts once.
    twice = sum(max(0, length - 1) for length in shared)
    assert len(row.targets) == whole - 2 * len(pairs) - twice
    assert torch.equal(row.pair_id.bincount(), torch.tensor(row.lengths))


def test_the_prefix_reaches_into_the_answers():
    (row,) = packed([[make_pair([7, 8, 1, 2, 3], [7, 8, 1, 4], prompts=(2, 2))]])
    assert row.input_ids.tolist() == [[7, 8, 1, 2, 3, 4]]
    assert row.position_ids.tolist() == [[0, 1, 2, 3, 4, 3]]
    assert row.segment.tolist() == [0, 0, 0, 1, 1, 2]
    # The 1, last of the prefix, predicts both the 2 and the 4.
    assert row.sources.tolist() == [0, 1, 2, 3, 2]
    assert row.targets.tolist() == [8, 1, 2, 3, 4]
    assert row.chosen_answer.tolist() == [[False, True, True, True, False]]
    assert row.rejected_answer.tolist() == [[False, True, False, False, True]]


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_shared_prefix_is_the_longest(first, second):
    length = packing.shared_prefix(np.array(first), np.array(second))
    assert first[:length] == second[:length]
    assert first[length : length + 1] != second[length : length + 1] or not (
        first[length:] or second[length:]
    )


@given(st.lists(st.integers(1, 30), min_size=1, max_size=20), st.integers(1, 40))
def test_rows_hold_every_item_once_and_keep_the_budget(lengths, budget):
    rows = packing.fill_rows(lengths, budget)
    assert sorted(item for row in rows for item in row) == list(range(len(lengths)))
    loads = [sum(lengths[item] for item in row) for row in rows]
    for row, load in zip(rows, loads, strict=True):
        assert row == sorted(row)
        assert load <= budget or len(row) == 1
    # No two rows would fit into one: first fit leaves no such waste.
    fitting = sorted(load for load in loads if load <= budget)
    assert all(a + b > budget for a, b in itertools.pairwise(fitting))


def test_rows_are_about_equally_long():
    rows = packing.fill_rows([60, 30, 20, 20, 10, 5], 100)
    assert rows == [[0, 4, 5], [1, 2, 3]]  # 75 and 70, not 100 and 45
    # Where so few rows hold everything in one way only, that one stands.
    assert packing.fill_rows([64, 36, 34, 33, 33], 100) == [[0, 1], [2, 3, 4]]


@given(st.lists(pairs(), min_size=1, max_size=4), st.integers(1, 9))
def test_masks_of_single_pairs_are_the_blocks_of_the_dense_mask(pairs, multiple):
    (row,) = packed([pairs], multiple=multiple)
    dense = row_masks.visible(row.pair_id, row.segment)
    blocks = [
        mask[0, :length, :length]
        for mask, length in zip(
            row_masks.pair_masks(row.segment, row.lengths), row.lengths, strict=True
        )
    ]
    real = sum(row.lengths)
    assert torch.equal(torch.block_diag(*blocks).bool(), dense[:real, :real])
    assert dense.any(dim=1).all()  # padding sees itself: no softmax over nothing


def test_padding_is_seen_by_no_pair_and_scored_by_none():
    (row,) = packed([[make_pair([1, 2, 3], [1, 2, 4])]], multiple=8)
    assert row.input_ids.shape == (1, 8)
    assert row.pair_id.tolist() == [0] * 4 + [-1] * 4
    assert not row_masks.visible(row.pair_id, row.segment)[:4, 4:].any()
    assert row.sources.max() < 4


def test_weights_stay_those_of_the_micro_batches():
    short, long = make_pair([1, 2], [1, 3]), make_pair([1] * 9, [1] * 4)
    first, second = packed([[short, long], [short]], budget=13)
    assert first.step_index.tolist() == [1] and second.step_index.tolist() == [0, 2]
    assert first.nll_weight.tolist() == [1 / 9]  # 1 + 8 tokens in the NLL
    assert second.nll_weight.tolist() == [1 / 9, 1.0]
    assert first.pair_weight.tolist() == [0.5]
    assert second.pair_weight.tolist() == [0.5, 1.0]


def test_a_pair_above_the_budget_gets_a_row_of_its_own():
    rows = packed([[make_pair([1] * 9, [2] * 4), make_pair([1, 2], [1, 3])]], budget=5)
    assert [row.lengths for row in rows] == [(13,), (3,)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_the_pairs_back(side):
    expected = [make_pair([5, 6, 7, 8], [5, 9]), make_pair([5, 4], [5, 3, 2])]

    def padded(arrays, fill):
        longest = max(map(len, arrays))
        widths = [(longest - len(a), 0)[:: 1 if side == "left" else -1] for a in arrays]
        return torch.tensor(
            np.stack(
                [
                    np.pad(a, width, constant_values=fill)
                    for a, width in zip(arrays, widths, strict=True)
                ]
            )
        )

    batch = {}
    for name in ("chosen", "rejected"):
        ids = [getattr(pair, f"{name}_ids") for pair in expected]
        scored = [getattr(pair, f"{name}_scored") for pair in expected]
        batch[f"{name}_input_ids"] = padded(ids, 0)
        batch[f"{name}_attention_mask"] = padded([np.ones_like(i) for i in ids], 0)
        batch[f"{name}_labels"] = padded(
            [np.where(s, i, IGNORE_INDEX) for i, s in zip(ids, scored, strict=True)],
            IGNORE_INDEX,
        )
    for pair, wanted in zip(packing.pairs_from_batch(batch), expected, strict=True):
        for name, value in vars(wanted).items():
            np.testing.assert_array_equal(getattr(pair, name), value)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_row_without_an_answer_is_named(side):
    row = {
        "chosen_input_ids": [1, 2, 3],
        "chosen_labels": [IGNORE_INDEX, 2, 3],
        "rejected_input_ids": [1, 2, 3],
        "rejected_labels": [IGNORE_INDEX, 2, 3],
    }
    packing.pair_from_row(row)
    # The first token is predicted by nothing: scored or not, it does not help.
    row[f"{side}_labels"] = [1, IGNORE_INDEX, IGNORE_INDEX]
    with pytest.raises(ValueError, match=f"row 5: no token of the {side} answer"):
        packing.pair_from_row(row, "row 5")


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match="token_budget must be at least 1, got 0"):
        packing.fill_rows([3], 0)


def test_sums_and_means_are_per_pair():
    values = torch.tensor([1.0, 2.0, 4.0])
    members = torch.tensor([[True, True, False], [False, True, True]])
    assert packing.sums(values, members).tolist() == [3.0, 6.0]
    assert packing.means(values, members).tolist() == [1.5, 3.0]


@given(st.integers(1, 12).map(lambda n: 256 * n), st.integers(1, 40))
def test_filling_pairs_fill_a_row(tokens, most):
    pairs = packing.filling_pairs(tokens, most)
    (row,) = packed([pairs], budget=tokens, multiple=256, slots=40)
    assert 1 <= len(pairs) <= most
    assert row.input_ids.shape == (1, tokens)
    assert row.longest * 2 <= tokens or len(pairs) == 1


@given(st.lists(pairs(), min_size=1, max_size=5), st.booleans(), st.integers(1, 9))
def test_sequences_read_what_the_mask_shows(pairs, share, multiple):
    """cu_queries ... key_second describe the dense mask, padding aside."""
    (row,) = packed([pairs], share_prefix=share, multiple=multiple, slots=3)
    tokens = row.input_ids.shape[1]
    found = torch.zeros(tokens, tokens, dtype=torch.bool)
    read = torch.zeros(tokens, dtype=torch.int64)
    queries, keys = row.cu_queries.tolist(), row.cu_keys.tolist()
    assert len(queries) == len(keys) == 2 * len(row.in_chosen) + 1 + 1
    for q0, q1, k0, k1 in zip(queries, queries[1:], keys, keys[1:], strict=False):
        for query in range(q0, q1):
            # aligned at the end, as flash attention has it
            sees = row.key_tokens[k0 : k1 - (q1 - 1 - query)]
            found[query, sees] = True
            assert len(sees) == len(set(sees.tolist()))
        assert k1 - k0 <= row.longest
        read[row.key_tokens[k0:k1]] += 1
    assert queries[-1] == tokens
    assert torch.equal(found, row_masks.visible(row.pair_id, row.segment))
    # Each token's key stands in one place or in two.
    assert torch.equal(row.key_tokens[row.key_first], torch.arange(tokens))
    twice = row.key_second >= 0
    assert torch.equal(row.key_tokens[row.key_second[twice]], twice.nonzero()[:, 0])
    assert torch.equal(read, 1 + twice.long())


@given(st.lists(pairs(), min_size=1, max_size=4), st.integers(5, 9))
def test_padding_to_slots_weighs_nothing(pairs, slots):
    (plain,) = packed([pairs], multiple=8)
    (padded,) = packed([pairs], multiple=8, slots=slots)
    tokens = padded.input_ids.shape[1]
    assert padded.in_chosen.shape == (slots, tokens)
    assert padded.sources.shape == padded.targets.shape == (tokens,)
    assert padded.key_tokens.shape == (2 * tokens,)
    assert padded.lengths == plain.lengths
    values = torch.randn(tokens, dtype=torch.float64)
    for name, weight in (("in_chosen", "nll_weight"), ("chosen_answer", "pair_weight")):
        few, many = getattr(plain, name), getattr(padded, name)
        expected = packing.sums(values[: few.shape[1]], few) * getattr(plain, weight)
        found = packing.means(values, many) * getattr(padded, weight)
        assert torch.isfinite(found).all()
        found = packing.sums(values, many) * getattr(padded, weight)
        torch.testing.assert_close(found[: len(pairs)], expected)
        assert not found[len(pairs) :].any()
