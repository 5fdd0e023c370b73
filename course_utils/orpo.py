"""ORPO's loss, from log-probabilities: Hong et al. 2024, arXiv:2403.07691.

Words used here: a *mean log-prob* is the mean of log p(token) over the response tokens,
in nats. Its exponential P is the geometric mean of the token probabilities, the
"probability" of a response in the paper. Odds are P / (1 - P).
"""

import math

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100  # the label that PyTorch's and TRL's losses skip


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - exp(x)) without losing digits, for x < 0.

    x: any shape, floating point, < 0 (nats, when x is a log-prob).
    Returns: same shape, < 0; its gradient is finite wherever the result is.
    Source: Maechler 2012, "Accurately computing log(1 - exp(-|a|))": both branches.
    """
    # Near 0, 1 - exp(x) cancels: expm1 keeps the digits. Far from 0, exp(x) is tiny:
    # log1p does.
    near_zero = x > -math.log(2)
    near = torch.log(-torch.expm1(x))
    # torch.where differentiates both branches and multiplies the unused gradient by 0.
    # Close to 0 that of `far` is infinite, and 0 * inf is NaN: it gets a harmless -1.
    far = torch.log1p(-torch.exp(torch.where(near_zero, torch.full_like(x, -1.0), x)))
    return torch.where(near_zero, near, far)


def log_odds(logps: torch.Tensor) -> torch.Tensor:
    """Log-odds log(P / (1 - P)) of log-probs log P.

    logps: any shape, nats, < 0. bf16 and fp16 are computed in fp32.
    Returns: same shape, nats; 0 where P = 1/2.
    Raises: ValueError if a log-prob is >= 0 (the odds are undefined), NaN or -inf;
        names the row.
    Source: Hong et al. 2024, eq. 4.
    """
    logps = _checked(logps, "logps")
    return logps - log1mexp(logps)


def odds_ratio_loss(
    chosen_logps: torch.Tensor, rejected_logps: torch.Tensor
) -> torch.Tensor:
    """ORPO's preference term, before weighting by beta.

    chosen_logps, rejected_logps: (B,) mean log-prob per response token, nats, < 0.
    Returns: (B,) loss in nats, > 0; log 2 where both are equally likely.
    Raises: ValueError if a log-prob is >= 0 (the odds are undefined), NaN or -inf,
        naming the row; also if the shapes differ.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 7.
    """
    return -F.logsigmoid(_checked_log_odds_ratio(chosen_logps, rejected_logps))


def orpo_loss(
    nll_loss: torch.Tensor,
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    beta: float = 0.1,
) -> torch.Tensor:
    """ORPO's full loss: NLL of the chosen answers plus the weighted preference term.

    nll_loss: scalar, nats: token-mean negative log-likelihood of the chosen rows.
    chosen_logps, rejected_logps: (B,) mean log-prob per response token, nats, < 0.
    beta: weight of the preference term; the paper's lambda, the authors' code's alpha.
    Returns: scalar loss in nats, nll_loss + beta * mean(odds_ratio_loss).
    Raises: ValueError as odds_ratio_loss; if nll_loss is not one number; if beta is
        negative.
    Source: Hong et al. 2024, eq. 6.
    """
    nll_loss = torch.as_tensor(nll_loss)
    if nll_loss.numel() != 1:
        raise ValueError(
            f"nll_loss must be one number, got shape {tuple(nll_loss.shape)}: average "
            "it over the tokens of the chosen rows first, as nll(logits, labels) does."
        )
    if not beta >= 0:
        raise ValueError(
            f"beta must be >= 0, got {beta}: a negative one rewards rejected answers."
        )
    preference = odds_ratio_loss(chosen_logps, rejected_logps).mean()
    return nll_loss.reshape(()) + beta * preference


def gradient_delta(
    chosen_logps: torch.Tensor, rejected_logps: torch.Tensor
) -> torch.Tensor:
    """delta(d), how strongly the preference term pulls on a pair: 1 / (1 + odds ratio).

    chosen_logps, rejected_logps: (B,) mean log-prob per response token, nats, < 0.
    Returns: (B,) in (0, 1): 1/2 at equal odds, near 1 while the rejected answer is far
        likelier, near 0 once the pair is learned.
    Raises: ValueError as odds_ratio_loss.
    Source: Hong et al. 2024, eq. 9. With eq. 7's minus sign the gradient is -delta * h.
    """
    return torch.sigmoid(-_checked_log_odds_ratio(chosen_logps, rejected_logps))


def mean_logps(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean log-prob of each row's labelled tokens.

    logits: (B, T, V); position t scores token t + 1, the shift happens here.
    labels: (B, T) token ids, -100 where a token is not scored.
    Returns: (B,) nats, in fp32 (fp64 for fp64 logits).
    Raises: ValueError if the shapes do not fit, or if a row has no scored token (its
        mean is undefined: TRL 1.16 returns NaN there); names the row.
    Source: Hong et al. 2024, eq. 3.
    """
    losses, scored = _token_losses(logits, labels)
    counts = scored.sum(dim=1)  # (B,)
    if (counts == 0).any():
        raise ValueError(
            f"{_rows(counts == 0)} no labelled token after the first position: the "
            "mean log-prob is undefined. The prompt probably fills max_length; drop "
            "such rows (chat.check_pairs)."
        )
    return -losses.sum(dim=1) / counts


def nll(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Token-mean negative log-likelihood of a whole batch.

    logits: (B, T, V); labels: (B, T) with -100 for tokens that are not scored
        (padding). ORPO in TRL scores prompt and response here; the paper scores the
        response only.
    Returns: scalar, nats. Every token weighs the same, so long rows weigh more.
    Raises: ValueError if the shapes do not fit, or if the batch has no scored token.
    """
    losses, scored = _token_losses(logits, labels)
    if not scored.any():
        raise ValueError(
            "no labelled token in the whole batch: its mean NLL is undefined."
        )
    return losses.sum() / scored.sum()


def _token_losses(logits, labels):
    """(B, T-1) cross entropies, 0 where not scored, and the mask of what is scored."""
    if logits.ndim != 3 or logits.shape[:2] != labels.shape:
        raise ValueError(
            f"logits must be (B, T, V) and labels (B, T), got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}."
        )
    targets = labels[:, 1:]
    losses = F.cross_entropy(
        at_least_fp32(logits)[:, :-1].flatten(0, 1),
        targets.flatten(),
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )
    return losses.view(targets.shape), targets != IGNORE_INDEX


def log_odds_ratio(
    chosen_logps: torch.Tensor, rejected_logps: torch.Tensor
) -> torch.Tensor:
    """log-odds of chosen minus log-odds of rejected, without checks, for trainers.

    chosen_logps, rejected_logps: same shape, mean log-prob per response token, nats.
    Returns: same shape, nats, finite wherever the log-probs are: exactly 0, which is
        rounding in an answer learned by heart, counts as the next number below 0 and
        has no gradient. A check would make a GPU wait at every step.
    """
    chosen, rejected = (
        at_least_fp32(x).clamp(max=-torch.finfo(torch.float32).tiny)
        for x in (chosen_logps, rejected_logps)
    )
    return (chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected))


def token_logps(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """log p of every token but the first, given those before it.

    logits: (B, T, V); position t scores token t + 1. ids: (B, T) token ids.
    Returns: (B, T - 1) nats, in fp32 (fp64 for fp64 logits).
    """
    # A target for the last position spares a copy of all logits without it.
    targets = F.pad(ids[:, 1:], (0, 1))
    losses = F.cross_entropy(
        at_least_fp32(logits).flatten(0, 1), targets.flatten(), reduction="none"
    )
    return -losses.view(targets.shape)[:, :-1]


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """bf16 and fp16 as fp32: in 8 bits 1 - P is 0 for every P above 0.998."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def _checked_log_odds_ratio(chosen_logps, rejected_logps):
    if chosen_logps.shape != rejected_logps.shape:
        raise ValueError(
            "chosen_logps and rejected_logps must have one entry per pair each, got "
            f"shapes {tuple(chosen_logps.shape)} and {tuple(rejected_logps.shape)}."
        )
    if chosen_logps.ndim > 1 or chosen_logps.numel() == 0:
        raise ValueError(
            "log-probs must have shape (B,) with B >= 1, got "
            f"{tuple(chosen_logps.shape)}: average over the response tokens first "
            "(mean_logps)."
        )
    _checked(chosen_logps, "chosen_logps"), _checked(rejected_logps, "rejected_logps")
    return log_odds_ratio(chosen_logps, rejected_logps)


def _checked(logps, name):
    """logps in fp32 or better; a ValueError names the rows without finite log-odds."""
    if not logps.is_floating_point():
        raise ValueError(f"{name} must be floating point, got {logps.dtype}.")
    undefined = ~((logps < 0) & torch.isfinite(logps))  # written so that NaN counts too
    if undefined.any():
        values = ", ".join(f"{v:g}" for v in logps[undefined].flatten()[:5].tolist())
        raise ValueError(
            f"{name}: {_rows(undefined)} {values}; log-odds need finite log-probs "
            "below 0. Exactly 0 is probability 1, whose odds are infinite; above 0 is "
            "no log-prob (a loss with the wrong sign?); NaN often comes from a row "
            "without response tokens."
        )
    return at_least_fp32(logps)


def _rows(mask):
    """From a mask over rows: "row 3 has", or "rows 0, 3 have", at most five of them."""
    rows = mask.nonzero()[:, 0].unique().tolist() if mask.ndim else [0]
    listed = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
    return f"row {listed} has" if len(rows) == 1 else f"rows {listed} have"
