"""The input embeddings in the CPU's memory: training only looks rows of them up.

Llama 3's table of 128,256 rows is 1 GB in 16 bit, and a packed row reads a few
thousand of them. Looked up where rows are made, on the CPU, these travel to the GPU
with the token ids, and the table needs no place there.
"""

import torch
from transformers import Trainer

from course_utils.training.fast import head


def obstacles(trainer: Trainer) -> dict[str, bool]:
    """What keeps the input embeddings on the GPU: {reason: does it apply?}"""
    layer, output = (
        trainer.model.get_input_embeddings(),
        trainer.model.get_output_embeddings(),
    )
    matrix = head.frozen_matrix(layer)
    return {
        "there is no CUDA GPU": trainer.args.device.type != "cuda",
        "FSDP keeps a part of them in each process": trainer.is_fsdp_enabled,
        "they are trained, or do more than look up": (
            matrix is None or not head.only_looks_up(matrix)
        ),
        "the output head is the same matrix": (
            matrix is not None
            and any(p is matrix.base.weight for p in output.parameters())
        ),
    }


class CpuEmbedding:
    """The table of an embedding layer, in the CPU's memory until `put_back`.

    layer: nn.Embedding, alone or with rows trained by PEFT, without any of `obstacles`.
    Meanwhile calls of the layer look up on the CPU as well, and wait for it.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        self._layer = layer
        self._weight = head.frozen_matrix(layer).base.weight
        self._device = self._weight.device
        self._forward_before = layer.__dict__.get("forward")
        self._weight.data = self._weight.data.cpu()
        layer.forward = self._forward

    def look_up(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Rows of the table, (*input_ids.shape, H), on the CPU.

        In memory from which a GPU can fetch them while the CPU goes on.
        """
        ids = input_ids.flatten().cpu()
        rows = self._weight.new_empty(
            (len(ids), self._weight.shape[1]), pin_memory=self._device.type == "cuda"
        )
        torch.index_select(self._weight, 0, ids, out=rows)
        return rows.view(*input_ids.shape, -1)

    def _forward(self, input_ids):
        frozen = self.look_up(input_ids).to(self._device)
        return head.embed(self._layer, None, input_ids, frozen)

    def put_back(self) -> None:
        """Leave the layer as it was."""
        if self._forward_before is None:
            del self._layer.forward
        else:
            self._layer.forward = self._forward_before
        self._weight.data = self._weight.data.to(self._device)
