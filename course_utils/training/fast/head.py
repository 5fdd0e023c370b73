"""The output head on scored tokens only, in tiles.

A vocabulary of 128k makes logits the largest tensor of a training step: 4,096 rows of
them take 2 GiB in fp32, and as much again for their gradient. Here at most `tile` rows
exist at a time. Their gradient is computed in the same pass: that of one log-prob with
respect to its hidden state does not depend on the loss, which later only scales it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.utils.other import TrainableTokensWrapper
from torch.utils.checkpoint import checkpoint

from course_utils.training.fast import matmul


def token_logps(
    head: torch.nn.Module,
    original_forward: Callable,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    tile: int | None,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of each target, and the mean of its logits.

    head: the model's output head: nn.Linear, alone or with rows trained by PEFT, or any
        module from hidden states to logits.
    original_forward: the head's forward, for heads that only know themselves.
    hidden: (n, H). targets: (n,) int64.
    tile: rows of logits at a time, or None for all at once.
    backend: compile what is done with a tile's logits by this backend of torch.compile:
        one pass over them instead of one for each operation. None: as it stands here.
    Returns: (logps, mean_logits), both (n,), in fp32 or better; mean_logits carries no
        gradient.
    """
    if tile is None:
        return _logps(original_forward, hidden, targets)
    matrix = frozen_matrix(head)
    if matrix is not None:
        return _TiledLogProbs.apply(
            hidden,
            matrix.base.weight,
            matrix.rows,
            _ids_on(matrix.row_ids, hidden.device),
            targets,
            tile,
            torch.is_grad_enabled(),
            backend,
        )
    tiles = list(zip(hidden.split(tile), targets.split(tile), strict=True))
    if len(tiles) == 1:
        return _logps(original_forward, hidden, targets)
    parts = [
        checkpoint(_logps, original_forward, h, y, use_reentrant=False)
        for h, y in tiles
    ]
    logps, mean_logits = zip(*parts, strict=True)
    return torch.cat(logps), torch.cat(mean_logits)


def _logps(forward, hidden, targets):
    logits = at_least_fp32(forward(hidden))
    return -F.cross_entropy(logits, targets, reduction="none"), logits.detach().mean(1)


def at_least_fp32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in fp32 if it is in 16 bit."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


class FrozenMatrix(NamedTuple):
    """A matrix that is not trained, but for some of its rows.

    base: the nn.Linear or nn.Embedding that holds it.
    rows: (k, H) parameter, what trains in the place of k rows, or None.
    row_ids: which rows, a tuple of k ints.
    """

    base: torch.nn.Module
    rows: torch.Tensor | None
    row_ids: tuple


def frozen_matrix(layer: torch.nn.Module) -> FrozenMatrix | None:
    """The FrozenMatrix of a layer, or None if the layer is something else.

    layer: an nn.Linear or nn.Embedding, alone or with rows trained by PEFT's
        trainable_token_indices.
    """
    rows, row_ids = None, ()
    if isinstance(layer, TrainableTokensWrapper):
        switched_off, layer = layer.disable_adapters, layer.token_adapter
        adapters = [] if switched_off else layer.active_adapters
        if layer.merged or len(adapters) > 1:
            return None
        for adapter in adapters:
            rows = layer.trainable_tokens_delta[adapter]
            row_ids = tuple(layer.token_indices[adapter])
        layer = layer.base_layer
    # Subclasses may do more than multiply or look up, as quantised ones do.
    if type(layer) not in (torch.nn.Linear, torch.nn.Embedding):
        return None
    if layer.weight.requires_grad or getattr(layer, "bias", None) is not None:
        return None
    return FrozenMatrix(layer, rows, row_ids)


@functools.lru_cache
def _ids_on(ids, device):
    """Token ids as a tensor; made once, since each copy to a GPU waits for it."""
    return torch.tensor(ids, device=device)


class _TiledLogProbs(torch.autograd.Function):
    """log p(target) under softmax(hidden @ weight.T), with some rows of weight trained.

    Forward saves d logp / d hidden, (n, H), and for trained rows d logp / d logit of
    those rows, (n, k). Backward scales both by the loss's gradient.
    """

    @staticmethod
    def forward(ctx, hidden, weight, rows, row_ids, targets, tile, training, backend):
        kind = hidden.device.type
        dtype = weight.dtype
        if torch.is_autocast_enabled(kind) and hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
        with torch.autocast(kind, enabled=False):
            return _TiledLogProbs._forward(
                ctx,
                hidden,
                weight.to(dtype),
                rows,
                row_ids,
                targets,
                tile,
                training,
                backend,
            )

    @staticmethod
    def _forward(ctx, hidden, weight, rows, row_ids, targets, tile, training, backend):
        dtype = weight.dtype
        ctx.dtypes = hidden.dtype, None if rows is None else rows.dtype
        hidden = hidden.to(dtype)
        trained = None if rows is None else rows.to(dtype)
        logps, mean_logits, slopes, row_slopes = [], [], [], []
        for h, y in zip(hidden.split(tile), targets.split(tile), strict=True):
            # Nobody but the scorer holds the logits, so that it can let go of them.
            logp, mean, slope = _scorer(backend)(
                _tile_logits(h, weight, trained, row_ids), y, training
            )
            logps.append(logp)
            mean_logits.append(mean)
            if not training:
                continue
            # At the target, 1 more: d logp / d logits = one-hot(target) - p.
            at_target = -torch.expm1(logp)[:, None]
            slope.scatter_(1, y[:, None], at_target.to(dtype))
            if rows is None:
                slopes.append(slope @ weight)
                continue
            row_slope = slope[:, row_ids]
            slope.index_fill_(1, row_ids, 0)
            slopes.append(matmul.added(row_slope, trained, slope, weight))
            row_slopes.append(row_slope)
        if training:
            saved = [torch.cat(slopes)]
            if rows is not None:
                saved += [torch.cat(row_slopes), hidden]
            ctx.save_for_backward(*saved)
        logps, mean_logits = torch.cat(logps), torch.cat(mean_logits)
        ctx.mark_non_differentiable(mean_logits)
        return logps, mean_logits

    @staticmethod
    def backward(ctx, grad, _):
        slopes, *for_rows = ctx.saved_tensors
        hidden_dtype, rows_dtype = ctx.dtypes
        grad = grad[:, None]
        grad_hidden = (grad * slopes).to(hidden_dtype)
        grad_rows = None
        if for_rows:
            row_slopes, hidden = for_rows
            scaled = (grad * row_slopes).to(hidden.dtype)
            grad_rows = (scaled.t() @ hidden).to(rows_dtype)
        return grad_hidden, None, grad_rows, None, None, None, None, None


def _tile_logits(hidden, weight, trained, row_ids):
    """(n, V) logits; trained: rows in the place of weight's row_ids, or None."""
    logits = hidden @ weight.t()
    if trained is not None:
        logits[:, row_ids] = hidden @ trained.t()
    return logits


def _score(logits, targets, training):
    """(log-probs of the targets, means of the logits, -p in the logits' dtype or None).

    logits: (n, V). targets: (n,). training: whether anybody needs -p.
    """
    dtype, logits = logits.dtype, at_least_fp32(logits)
    mean = logits.mean(1)
    log_z = logits.logsumexp(1, keepdim=True)
    logp = (logits.gather(1, targets[:, None]) - log_z)[:, 0]
    if not training:
        return logp, mean, None
    slope = logits - log_z
    del logits  # one tile less, where nobody else holds it
    return logp, mean, slope.exp_().neg_().to(dtype)


@functools.lru_cache
def _scorer(backend):
    if backend is None:
        return _score
    compiled = torch.compile(_score, backend=backend)

    def score(logits, targets, training):
        for tensor in (logits, targets):  # a row's last tile may be shorter
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return compiled(logits, targets, training)

    return score


def only_looks_up(matrix: FrozenMatrix) -> bool:
    """Is an embedding's result rows of its table, the trained ones among them?

    matrix: FrozenMatrix of an nn.Embedding.
    """
    # No gradient flows to a padding row.
    return matrix.base.max_norm is None and (
        matrix.base.padding_idx not in matrix.row_ids
    )


def embed(
    layer: torch.nn.Module,
    original_forward: Callable,
    input_ids: torch.Tensor,
    frozen: torch.Tensor | None = None,
) -> torch.Tensor:
    """Embeddings of a layer with some rows trained, without a copy of its matrix.

    layer: the model's input embedding. PEFT's own forward copies the whole matrix to
        put the trained rows in, and its backward makes a gradient for all of it.
    original_forward: used for any other kind of embedding.
    input_ids: (1, T). frozen: (1, T, H), rows of the matrix for these ids, where
        somebody looked them up already. Returns: (1, T, H).
    """
    matrix = frozen_matrix(layer)
    if matrix is None or not only_looks_up(matrix):
        return original_forward(input_ids)
    if matrix.rows is None:
        # A copy, since hooks may ask for its gradient (enable_input_require_grads).
        return original_forward(input_ids) if frozen is None else frozen.clone()
    if frozen is None:
        frozen = F.embedding(input_ids, matrix.base.weight)
    matches = input_ids[..., None] == _ids_on(matrix.row_ids, input_ids.device)
    trained = F.embedding(matches.int().argmax(-1), matrix.rows.to(frozen.dtype))
    return torch.where(matches.any(-1, keepdim=True), trained, frozen)


@contextlib.contextmanager
def borrowed_forward(module: torch.nn.Module, forward: Callable) -> Iterator[None]:
    """Within the context, calling `module` calls `forward` instead.

    Hooks stay in place; afterwards the module is as it was.
    """
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
