"""How long do all processes take to average an adapter's gradients?

Run by bench_scaling, under `accelerate launch`; prints a line of JSON.
"""

import json
import time

import torch
from accelerate import PartialState

ADAPTER = 41_943_040  # numbers of a LoRA of rank 16 on all linear layers of 8B
ROUNDS = 20


def main() -> None:
    state = PartialState()
    gradients = torch.ones(ADAPTER, device=state.device)
    seconds = []
    for number in range(ROUNDS):
        state.wait_for_everyone()
        _synchronize(state)
        start = time.perf_counter()
        if state.num_processes > 1:
            torch.distributed.all_reduce(gradients)
        gradients /= state.num_processes
        _synchronize(state)
        if number >= ROUNDS // 4:
            seconds.append(time.perf_counter() - start)
    assert torch.equal(gradients, torch.ones_like(gradients))
    if state.is_main_process:
        middle = sorted(seconds)[len(seconds) // 2]
        result = {
            "processes": state.num_processes,
            "mib": gradients.nbytes / 2**20,
            "milliseconds": 1000 * middle,
            "n": len(seconds),
        }
        print(json.dumps(result), flush=True)
    state.destroy_process_group()


def _synchronize(state):
    if state.device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
