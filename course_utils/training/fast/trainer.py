"""PackedORPOTrainer: ORPOTrainer, with the same results in less time.

How the pairs of an optimizer step get into common rows: the Trainer fetches all
micro-batches of a step at once, in `get_batch_samples`, and then calls
`training_step` on each. Here all but the last return at once, with a loss of 0, and
the last runs the pairs of all.
Across processes gradients are averaged once, when the last row is done. The sum
of the losses, the number of steps, data order, schedules and checkpoints stay the
Trainer's own.

The loss is a sum over pairs: a pair's NLL is weighted by 1 / (tokens in the NLL of its
micro-batch), its preference term by 1 / (pairs in its micro-batch), and the Trainer
divides by the number of micro-batches, as it does for ORPOTrainer. So rows may mix
pairs of different micro-batches, and each row can go through forward and backward
alone.
"""

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
import torch
from accelerate.data_loader import BatchSamplerShard
from torch.utils.data import DataLoader
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from course_utils.models import memory
from course_utils.training import packing
from course_utils.training.batches import EvenSteps
from course_utils.training.fast import attention, cpu_embedding, graphs, waits
from course_utils.training.fast.config import (
    FastTrainingConfig,
    choose_attention,
    choose_compile,
    choose_cpu_embedding,
    choose_decode,
    choose_graphs,
    choose_token_budget,
)
from course_utils.training.fast.layers import DecoderLayers
from course_utils.training.fast.row_recording import RowRecording
from course_utils.training.fast.row_scoring import RowScoring
from course_utils.training.fast.validation import require_packable
from course_utils.training.orpo_trainer import ORPOTrainer

DEFERRED = "deferred"  # "step_groups" of a micro-batch that a later one takes along


class PackedORPOTrainer(RowScoring, RowRecording, ORPOTrainer):
    """Drop-in for ORPOTrainer: change the class name only.

    Takes its arguments and `fast_config`, a fast.FastTrainingConfig, to switch parts
    off. Loss, gradients and logged metrics equal ORPOTrainer's to rounding.

    Raises: ValueError at construction, as ORPOTrainer, and if the model is of a kind
        that cannot be packed (says why).
    """

    def __init__(
        self, *args: Any, fast_config: FastTrainingConfig | None = None, **kwargs: Any
    ) -> None:
        self.fast_config = fast_config or FastTrainingConfig()
        super().__init__(*args, **kwargs)
        require_packable(self.model, self)
        self.data_collator = _WithPairs(self.data_collator)
        device = self.args.device
        self.attention, self.attention_reason = choose_attention(
            self.fast_config.attention, device, self._computing_dtype()
        )
        self.compile_layers, self.compile_reason = choose_compile(
            self.fast_config.compile_layers, self.attention, device
        )
        self.triton_decode, self.decode_reason = choose_decode(
            self.fast_config.triton_decode, device
        )
        self.embeddings_on_cpu, self.embeddings_reason = choose_cpu_embedding(
            self.fast_config.embeddings_on_cpu, cpu_embedding.obstacles(self)
        )
        self.cuda_graphs, self.graphs_reason = choose_graphs(
            self.fast_config.cuda_graphs, self.attention, graphs.obstacles(self)
        )
        wanted = self.fast_config.token_budget
        self.fast_config = replace(self.fast_config, token_budget=1)  # until chosen
        self.token_budget, self.budget_reason = choose_token_budget(
            wanted, functools.partial(memory.spare_gib, self, False), device
        )
        self.fast_config = replace(self.fast_config, token_budget=self.token_budget)
        if self.fast_config.activation_gib == "auto":
            spare = memory.spare_gib(self) if device.type == "cuda" else None
            self.fast_config = replace(self.fast_config, activation_gib=spare)
        if self.fast_config.run_ahead:
            self.accelerator.dataloader_config.non_blocking = True
        self.rows_must_match = self.is_fsdp_enabled
        # The whole model in every process: what accelerate would wrap in DDP.
        kind = self.accelerator.distributed_type.value  # MULTI_GPU, MULTI_CPU, FSDP ...
        self._is_replicated = kind.startswith("MULTI_")
        if self._is_replicated:
            self.accelerator.prepare_model = functools.partial(
                self.accelerator.prepare_model, evaluation_mode=True
            )
        self._graphs = None  # while training with them: its RowGraphs
        self._layers = None  # while the model is patched: its DecoderLayers
        self._attention_before = None
        self._table = None  # while it is patched: its embeddings, if on the CPU
        self._scores = []  # of the rows of the present optimizer step
        self._head_verified = False

    def _computing_dtype(self):
        """The dtype of attention's queries."""
        if self.args.bf16:
            return torch.bfloat16
        return torch.float16 if self.args.fp16 else self.model.dtype

    # ---- the model, patched for packed rows ----

    def patch_model(self) -> None:
        """Prepare the model for packed rows; training and evaluation do it."""
        if self._layers is not None:
            return
        config = self.model.config
        self._attention_before = config._attn_implementation
        attention.register()
        config._attn_implementation = attention.NAME
        self._layers = DecoderLayers(
            self.model,
            self.fast_config,
            self.compile_layers,
            self.triton_decode,
            round_once=not self.is_fsdp_enabled,
        )
        self._layers.patch_model()
        if self.embeddings_on_cpu:
            self._table = cpu_embedding.CpuEmbedding(self.model.get_input_embeddings())

    def unpatch(self) -> None:
        """Leave the model as it was before `patch_model`."""
        if self._layers is not None:
            self._layers.unpatch()
            self._layers = self._graphs = None
            if self._table is not None:
                self._table.put_back()
                self._table = None
            self.model.config._attn_implementation = self._attention_before

    def _trained(self):
        return [p for p in self.model.parameters() if p.requires_grad]

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        if self._is_replicated:  # all begin with the adapter of the first, as in DDP
            for parameter in self._trained():
                torch.distributed.broadcast(parameter.data, src=0)
        optimizer_runs = (
            waits.optimizer_runs_ahead()
            if self.fast_config.run_ahead
            else contextlib.nullcontext()
        )
        try:
            with optimizer_runs:
                return super().train(*args, **kwargs)
        finally:
            self.unpatch()

    def _save_optimizer_and_scheduler(self, output_dir):
        waits.catch_up()
        super()._save_optimizer_and_scheduler(output_dir)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        before = self._layers
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            if before is None:
                self.unpatch()

    # ---- one optimizer step ----

    def get_train_dataloader(self) -> DataLoader:
        loader = super().get_train_dataloader()
        shard = loader.batch_sampler
        if isinstance(shard, BatchSamplerShard) and self.fast_config.packing:
            sides = ("chosen_input_ids", "rejected_input_ids")
            columns = self.train_dataset.with_format("arrow").select_columns([*sides])
            table = columns[:]
            lengths = [pc.list_value_length(table[side]) for side in sides]
            shard.batch_sampler = EvenSteps(
                shard.batch_sampler,
                pc.add(*lengths).to_pylist(),
                self.args.world_size,
                self.args.gradient_accumulation_steps,
            )
        return loader

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict], num_batches: int, device: torch.device
    ) -> tuple[list[dict], Any]:
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.fast_config.packing and batches:
            groups = [_pairs(batch) for batch in batches]
            for batch in batches[:-1]:
                batch["step_groups"] = DEFERRED
            batches[-1]["step_groups"] = groups
        return batches, items

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        groups = inputs.get("step_groups") or [_pairs(inputs)]
        if groups is DEFERRED:
            return torch.zeros((), device=self.args.device)
        if isinstance(model, torch.nn.DataParallel):
            raise ValueError(
                "several GPUs in one process (DataParallel) are not supported. Start "
                "with `accelerate launch`, or show one GPU with CUDA_VISIBLE_DEVICES=0."
            )
        rows = self._pack(groups)
        passes = rows + self._idle_rows(rows)
        if self.cuda_graphs and self._graphs is None:
            self._start_graphs(model, groups, rows, num_items_in_batch)
        take = self._recorded_step if self.cuda_graphs else self._step
        loss, scores = 0, []
        for number, row in enumerate(passes):
            last = number == len(passes) - 1
            sync = contextlib.nullcontext() if last else self.accelerator.no_sync(model)
            with sync:
                row_loss, row_scores = take(model, row, num_items_in_batch, number == 0)
            loss = loss + row_loss
            scores.append(row_scores)
        if self._is_replicated:
            self._average_gradients()
        scores = scores[: len(rows)]
        for metrics in self._metrics(groups, rows, scores):
            self.store_metrics(metrics)
        return loss

    def _average_gradients(self):
        """Over all processes, once a step, in the place of DDP.

        DDP exchanges gradients while the last pass computes them, from hooks that a
        CUDA graph cannot hold, and keeps the nodes that add gradients up on a stream
        that cannot wait for one. An adapter's gradients are small: 170 MB at 8B.
        """
        trained = self._trained()
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.accelerator.num_processes
        parts = flat.split([gradient.numel() for gradient in gradients])
        for parameter, gradient, mean in zip(trained, gradients, parts, strict=True):
            parameter.grad = gradient.copy_(mean.view_as(gradient))

    def _step(self, model, row, num_items_in_batch, _first=False):
        """(loss, scores) of a row, after its backward pass; scores as in _row_loss."""
        loss = super().training_step(model, {"row": row}, num_items_in_batch)
        return loss, self._scores.pop()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict,
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict]:
        if "row" not in inputs:
            return super().compute_loss(
                model, inputs, return_outputs, num_items_in_batch
            )
        with self._autocast():
            loss, scores = self._row_loss(model, inputs["row"])
        self._scores.append(scores)
        return loss.to(self.args.device)

    def get_batch_loss_metrics(
        self, model: torch.nn.Module, batch: dict
    ) -> tuple[torch.Tensor, dict]:
        groups = [_pairs(batch)]
        rows = self._pack(groups)
        with self._autocast():
            losses, scores = zip(
                *(self._row_loss(model, row) for row in rows), strict=True
            )
        (metrics,) = self._metrics(groups, rows, scores)
        return sum(losses), metrics

    def _pack(self, groups, slots=None):
        """packing.pack_step, in shapes that suit attention and graphs.

        For the patched model: where the embeddings are on the CPU, it looks them up.
        """
        self.patch_model()
        multiple = 1 if self.attention == "sdpa" else attention.FLEX_BLOCK
        if self.cuda_graphs:
            multiple = graphs.TOKENS
            slots = slots or self._slots([pair for group in groups for pair in group])
        rows = packing.pack_step(
            groups,
            self.fast_config.token_budget if self.fast_config.packing else 1,
            share_prefix=self.fast_config.shared_prefix,
            multiple=multiple,
            slots=slots,
            nll_scope=self.args.nll_scope,
        )
        if self._table is None:
            return rows
        return [
            replace(row, embeddings=self._table.look_up(row.input_ids)) for row in rows
        ]

    def _slots(self, pairs):
        """Pairs that every row of a step of these has room for."""
        return -(-len(pairs) // graphs.PAIRS) * graphs.PAIRS

    def _idle_rows(self, rows):
        """Rows without weight, up to the largest number of rows of any process.

        Only where processes must pass through the layers equally often (FSDP gathers a
        layer's weights each time); it costs a synchronisation a step.
        """
        if not self.rows_must_match:
            return []
        count = torch.tensor(len(rows), device=self.args.device)
        most = int(self.accelerator.gather(count).max())
        nothing = torch.zeros_like(rows[-1].nll_weight)
        idle = replace(rows[-1], nll_weight=nothing, pair_weight=nothing)
        return [idle] * (most - len(rows))


class _WithPairs:
    """A collator's batch, plus its Pairs: they stay on the CPU, where rows are made."""

    def __init__(self, collator):
        self.collator = collator

    def __call__(self, features):
        batch = self.collator(features)
        batch["pairs"] = [
            packing.pair_from_row(row, f"row {number} of a batch")
            for number, row in enumerate(features)
        ]
        return batch


def _pairs(batch):
    return batch["pairs"] if "pairs" in batch else packing.pairs_from_batch(batch)
