"""Decoder layers while a packed row runs through them: compiled, some checkpointed."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from course_utils.training.fast.config import FastTrainingConfig, compile_backend
from course_utils.training.fast.fused_lora import RoundedAdapters, fused_forward
from course_utils.training.fast.graphs import draws

GIB = 2**30


def layers_that_fit(budget_bytes: float, bytes_per_layer: float, layers: int) -> int:
    """How many of `layers` can keep their activations within a budget."""
    if bytes_per_layer <= 0:
        return layers
    return min(layers, int(budget_bytes // bytes_per_layer))


def saved_bytes(
    function: Callable[[], Any], there: Iterable[torch.Tensor]
) -> tuple[Any, int]:
    """(result, bytes) of a call: what autograd keeps of it for backward.

    Tensors in `there`, such as parameters, do not count: they are there anyway. What
    several operations keep counts once.
    """
    there = {tensor.untyped_storage().data_ptr() for tensor in there}
    storages = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    kept = storages.keys() - there
    return result, sum(storages[pointer] for pointer in kept)


class DecoderLayers:
    """The decoder layers of a model, patched for packed rows.

    model: any transformers or PEFT model. fast_config: fast.FastTrainingConfig.
    compile_layers: False, True or a backend's name. by_triton: see lora.fused_forward.
    round_once: see lora.RoundedAdapters, who need the adapters in one piece.

    `patch_model` gives every layer another forward. It differs from the old one only
    within `packed_row`; whatever checkpointing the model had is taken over.
    `unpatch` leaves the layers as they were. In between, do not deepcopy the model: a
    copy would keep calling the original's layers.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        fast_config: FastTrainingConfig,
        compile_layers: str | bool,
        by_triton: bool = False,
        round_once: bool = True,
    ) -> None:
        self.layers = [
            module
            for module in model.modules()
            if isinstance(module, GradientCheckpointingLayer)
        ]
        self._model = model
        self._levers = fast_config
        self._compile = compile_layers
        self._by_triton = by_triton
        self._rounded = RoundedAdapters()
        self._round_once = round_once
        self._bytes_per_token = None  # of one layer; measured at the first row
        self._keeping = len(self.layers)
        # Without dropout nothing is drawn that a second forward would have to repeat.
        self._draws = draws(model)
        # The compiler keeps whatever enters a matrix product of the backward pass, such
        # as the widest tensor of a layer, silu(gate) * up; made again from what is kept
        # anyway, without any product, it costs next to nothing.
        self._setting = functorch_config.patch(
            ban_recompute_materialized_backward=False
        )
        self._running = False

    def patch_model(self) -> None:
        """Put the forwards on. Reads now which checkpointing the model wants."""
        self._before = [
            (layer, layer.__dict__.get("forward"), layer.gradient_checkpointing)
            for layer in self.layers
        ]
        self._wanted = any(layer.gradient_checkpointing for layer in self.layers)
        if self._levers.fused_lora:
            for module in self._model.modules():
                self._fuse(module)
        for number, layer in enumerate(self.layers):
            layer.gradient_checkpointing = False
            layer.forward = self._dispatch(number, layer.forward)
        self._setting.__enter__()

    def _fuse(self, module):
        forward = fused_forward(module, module.forward, self._by_triton, self._rounded)
        if forward is not None:
            self._before.append((module, module.__dict__.get("forward"), None))
            module.forward = forward

    def unpatch(self) -> None:
        """Leave all modules as they were before `patch_model`."""
        self._setting.__exit__(None, None, None)
        for module, forward, checkpointed in reversed(self._before):
            if forward is None:
                del module.forward
            else:
                module.forward = forward
            if checkpointed is not None:
                module.gradient_checkpointing = checkpointed

    @contextlib.contextmanager
    def packed_row(self, tokens: int) -> Iterator[None]:
        """Within the context the model's forward serves a row of `tokens` tokens."""
        self._prepare(tokens)
        self._running = True
        try:
            yield
        finally:
            self._running = False
            self._rounded.forget()

    def _prepare(self, tokens):
        """Decide, before a row of `tokens` tokens, how many layers keep activations."""
        if self._levers.activation_gib is None:
            self._keeping = 0 if self._wanted else len(self.layers)
        elif self._levers.activation_gib == 0:
            self._keeping = 0
        elif self._bytes_per_token is None:
            self._keeping = 1  # the first, which is measured
        else:
            self._keeping = layers_that_fit(
                self._levers.activation_gib * GIB,
                self._bytes_per_token * tokens,
                len(self.layers),
            )

    def _dispatch(self, number, original):
        packed = original

        def again(*args, **kwargs):
            return checkpoint(
                original,
                *args,
                use_reentrant=False,
                preserve_rng_state=self._draws,
                **kwargs,
            )

        if self._compile:
            # The checkpoint inside: the compiler then sees that backward has no use for
            # the layer's last product, and does not compute that one again.
            backend = compile_backend(self._compile)
            packed = torch.compile(packed, backend=backend)
            again = torch.compile(again, backend=backend)

        def forward(hidden, *args, **kwargs):
            if not self._running or not torch.is_grad_enabled():
                return original(hidden, *args, **kwargs)
            if number == 0 and self._round_once:
                self._rounded.refresh(hidden.device)
            if self._compile:
                _tokens_vary(hidden, kwargs)
            if number < self._keeping:
                if number == 0 and self._must_measure():
                    return self._measure(packed, hidden, *args, **kwargs)
                return packed(hidden, *args, **kwargs)
            return again(hidden, *args, **kwargs)

        return forward

    def _must_measure(self):
        return self._levers.activation_gib and self._bytes_per_token is None

    def _measure(self, packed, hidden, *args, **kwargs):
        layer = self.layers[0]
        there = [*layer.parameters(), *self._rounded.within(layer)]
        result, size = saved_bytes(lambda: packed(hidden, *args, **kwargs), there)
        self._bytes_per_token = size / (hidden.shape[0] * hidden.shape[1])
        return result


def _tokens_vary(hidden, kwargs):
    """Tell the compiler which size differs between rows, so that it compiles once."""
    torch._dynamo.maybe_mark_dynamic(hidden, 1)
    torch._dynamo.maybe_mark_dynamic(kwargs["position_ids"], 1)
    for tensor in kwargs["position_embeddings"]:
        torch._dynamo.maybe_mark_dynamic(tensor, 1)
    ends = [kwargs.get(name) for name in ("cu_seq_lens_q", "cu_seq_lens_k")]
    for tensor in (*kwargs.get("key_order", ()), *ends):
        if tensor is not None:
            torch._dynamo.maybe_mark_dynamic(tensor, 0)
