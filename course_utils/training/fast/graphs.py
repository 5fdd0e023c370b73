"""Rows as CUDA graphs: forward and backward recorded once, then replayed.

A row of Llama 3 8B is thousands of kernels, and a CPU can take longer to launch these
than a fast GPU to run them. A graph launches them all at once. It reads and writes the
same memory each time, so rows are copied to where it reads, and rows of another shape
need another graph.
"""

from collections.abc import Callable, Hashable
from dataclasses import replace

import torch
from transformers import Trainer

from course_utils.training import packing
from course_utils.training.fast import flat_optimizer
from course_utils.training.packing import PackedRow

TOKENS = 128  # rows are padded to a multiple of this
PAIRS = 8  # and their pairs to a multiple of this


class CudaGraph:
    """A recorded function without arguments; see torch.cuda.CUDAGraph.

    beside: an earlier one that it may share memory with, since they run in turns.
    """

    def __init__(
        self, function: Callable[[], tuple], beside: "CudaGraph | None" = None
    ) -> None:
        self._graph = torch.cuda.CUDAGraph()
        # relaxed: the data loader's thread may pin memory meanwhile, and the driver
        # load a kernel that this shape is the first to need.
        with torch.cuda.graph(
            self._graph,
            pool=beside and beside._graph.pool(),
            capture_error_mode="relaxed",
        ):
            self.result = function()

    def replay(self) -> None:
        """Run it; `result` holds until one that shares its memory is replayed."""
        self._graph.replay()


class RowGraphs:
    """Steps on rows, recorded for each shape of row.

    parameters: what is trained. device: of the model. record: CudaGraph, or what stands
    in for it where there is no GPU.

    Before its recording a step must have run once as it is, on the `placed` row, so
    that whatever is compiled, measured or tuned on first use is done.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        device: torch.device,
        record: Callable = CudaGraph,
    ) -> None:
        self._parameters = list(parameters)
        self._device = device
        self._record = record
        self._gradients = None
        self._recorded = {}
        self._room = {}  # of each of a row's tensors: what all recordings read

    def start_window(self) -> None:
        """Before the rows of an optimizer step: gradients are 0, where graphs add.

        The first time, parameters move to where an optimizer updates them at once.
        """
        if self._gradients is None:
            self._gradients = flat_optimizer.lay_flat(self._parameters)
        else:
            torch._foreach_zero_(self._gradients)
        self._hand_out()

    def record(
        self, row: PackedRow, variant: Hashable, step: Callable[[PackedRow], tuple]
    ) -> tuple[PackedRow, "CudaGraph"]:
        """Record step(row), unless a row of this shape was, without running it.

        row: packing.PackedRow on the CPU, in fixed shapes. variant: hashable, whatever
        else a recording of `step` depends on. step: from a row on the device to a tuple
        of tensors. Returns: (the row that the recording reads, the recording).
        """
        key = (variant, *(tensor.shape for tensor in row.tensors().values()))
        if key not in self._recorded:
            static = self.placed(row)
            one = next((graph for _, graph in self._recorded.values()), None)
            graph = self._record(lambda: self._added_up(step, static), beside=one)
            self._recorded[key] = static, graph
        return self._recorded[key]

    def _added_up(self, step, static):
        """step(static), its gradients added to those of earlier rows in a few kernels.

        Autograd would add each parameter's to what is there by a kernel of its own.
        """
        for parameter in self._parameters:
            parameter.grad = None
        result = step(static)
        pairs = zip(self._gradients, self._parameters, strict=True)
        found = [(total, p.grad) for total, p in pairs if p.grad is not None]
        torch._foreach_add_(*map(list, zip(*found, strict=True)))
        self._hand_out()
        return result

    def _hand_out(self):
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def run(
        self, row: PackedRow, variant: Hashable, step: Callable[[PackedRow], tuple]
    ) -> tuple[torch.Tensor, ...]:
        """Results of step(row), gradients added to the parameters'; as in `record`."""
        static, graph = self.record(row, variant, step)
        self._fill(static, row)
        graph.replay()
        return tuple(value.clone() for value in graph.result)

    def placed(self, row: PackedRow) -> PackedRow:
        """The row in the memory that recordings read."""
        tensors = row.tensors()
        static = replace(row, **{k: self._static(k, v) for k, v in tensors.items()})
        self._fill(static, row)
        return static

    def _static(self, name, tensor):
        """Memory for a tensor of a row; recordings of shorter rows read it as well."""
        numbers = tensor.numel()
        if name not in self._room or self._room[name].numel() < numbers:
            self._room[name] = tensor.new_empty(numbers, device=self._device)
        return self._room[name][:numbers].view(tensor.shape)

    def _fill(self, static, row):
        values = row.tensors()
        for name, tensor in static.tensors().items():
            packing.without_waiting(values[name], self._device, into=tensor)


def free_workspaces() -> None:
    """Free what cuBLAS holds for work outside of graphs; graphs get their own.

    32 MiB on Hopper, allocated anew when next needed.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()


def obstacles(trainer: Trainer) -> dict[str, bool]:
    """What keeps a Trainer's steps from being recorded: {reason: does it apply?}"""
    return {
        "there is no CUDA GPU": trainer.args.device.type != "cuda",
        "FSDP fetches and frees weights while it computes": trainer.is_fsdp_enabled,
        "fp16's loss scale changes from step to step": trainer.args.fp16,
        "dropout draws other numbers each time": draws(trainer.model),
    }


def draws(model: torch.nn.Module) -> bool:
    """Does a model draw random numbers in training (dropout)?"""
    return any(
        isinstance(module, torch.nn.Dropout) and module.p > 0
        for module in model.modules()
    )
