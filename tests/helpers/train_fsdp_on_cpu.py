"""`course_utils.training` under FSDP2 on a CPU, where accelerate itself refuses to.

accelerate runs FSDP on accelerators only; torch's fully_shard also runs on CPUs with
gloo. Here accelerate is told that gloo is what several GPUs use.
"""

import os
import sys

import torch.distributed as dist
from accelerate.state import PartialState
from accelerate.utils import DistributedType

from course_utils.training.__main__ import main

os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
dist.init_process_group("gloo")
PartialState._prepare_backend = lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)

if __name__ == "__main__":
    sys.exit(main())
