"""Which loss term sees which token of a pair, to read and to look at."""

import html
from dataclasses import dataclass
from itertools import groupby

from transformers import PreTrainedTokenizerBase

from course_utils.chat.tokens import IGNORE_INDEX, tokenize_pair

NONE, NLL, BOTH, ODDS = "none", "NLL", "NLL + odds", "odds"

_MEANING = {
    NONE: "seen by no loss term: context only",
    NLL: "learned by the NLL: prompt of the chosen row",
    BOTH: "learned by the NLL and raised by the odds ratio: chosen answer",
    ODDS: "lowered by the odds ratio only: rejected answer",
}
# Okabe-Ito colours: colour-blind readers tell them apart. The line under a token says
# the same, and so does the region's name, for pages that strip styles.
_STYLE = {
    NONE: "color:#111111;background:#ffffff;border-bottom:2px dotted #999999",
    NLL: "color:#111111;background:#e6e6e6;border-bottom:2px dashed #555555",
    BOTH: "color:#111111;background:#b3d9f2;border-bottom:2px solid #0072b2",
    ODDS: "color:#111111;background:#f9d9a8;border-bottom:4px double #d55e00",
}


def loss_view(
    tokenizer: PreTrainedTokenizerBase, pair: dict, max_length: int
) -> dict[str, list]:
    """Which term of TRL's ORPO loss sees each token of a pair.

    Arguments as tokenize_pair.
    Returns: {"chosen": [(token text, region), ...], "rejected": [...]}, a region being
        one of "none", "NLL", "NLL + odds", "odds". The first token is never predicted,
        so no term sees it.
    """
    tokens = tokenize_pair(tokenizer, pair, max_length)
    view = {}
    for side, ids, labels, on_prompt, on_answer in (
        ("chosen", tokens.chosen_input_ids, tokens.chosen_labels, NLL, BOTH),
        ("rejected", tokens.rejected_input_ids, tokens.rejected_labels, NONE, ODDS),
    ):
        texts = [tokenizer.decode([i]) for i in ids]
        regions = [
            on_prompt if label == IGNORE_INDEX else on_answer for label in labels
        ]
        view[side] = list(zip(texts, [NONE, *regions[1:]], strict=True))
    return view


def show_loss_view(
    tokenizer: PreTrainedTokenizerBase, pair: dict, max_length: int
) -> "LossView":
    """loss_view as an object that Jupyter draws and print writes; same arguments."""
    return LossView(loss_view(tokenizer, pair, max_length))


@dataclass(frozen=True)
class LossView:
    """rows: what loss_view returned."""

    rows: dict

    def counts(self) -> dict[tuple[str, str], int]:
        """{(side, region): number of tokens}."""
        return {
            (side, region): sum(r == region for _, r in tokens)
            for side, tokens in self.rows.items()
            for region in _MEANING
            if any(r == region for _, r in tokens)
        }

    def __str__(self) -> str:
        lines = []
        for side, tokens in self.rows.items():
            lines.append(f"{side} row")
            for region, texts in _segments(tokens):
                shown = "·".join(map(_visible, texts))
                lines.append(f"  {region:<10} ({len(texts):>3})  {shown}")
        legend = [f"{region:<10} {meaning}" for region, meaning in _MEANING.items()]
        return "\n".join([*lines, "", *legend])

    __repr__ = __str__

    def _repr_html_(self):
        parts = ["<table>"]
        for side, tokens in self.rows.items():
            parts.append(_heading(f"{side} row"))
            for region, texts in _segments(tokens):
                spans = " ".join(_span(region, _visible(text)) for text in texts)
                parts.append(_row(f"<b>{region}</b>", f"{len(texts)} tokens", spans))
        parts.append(_heading("legend"))
        for region, meaning in _MEANING.items():
            parts.append(_row(_span(region, region), "", meaning))
        return "".join(parts) + "</table>"


def _heading(text):
    return f'<tr><th colspan="3" style="text-align:left">{html.escape(text)}</th></tr>'


def _row(name, count, text):
    nowrap = '<td style="text-align:left;white-space:nowrap">'
    return (
        f"<tr>{nowrap}{name}</td>{nowrap}{count}</td>"
        f'<td style="text-align:left;line-height:1.9">{text}</td></tr>'
    )


def _span(region, text):
    return f'<span style="{_STYLE[region]}">{html.escape(text)}</span>'


def _segments(tokens):
    """Neighbouring tokens of one region together: [(region, [text, ...]), ...]."""
    return [
        (region, [text for text, _ in group])
        for region, group in groupby(tokens, key=lambda t: t[1])
    ]


def _visible(text):
    return text.replace("\n", "⏎")
