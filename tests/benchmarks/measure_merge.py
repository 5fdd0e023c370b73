"""How much memory a merge takes, measured on a random-weights checkpoint.

    python tests/benchmarks/measure_merge.py SCRATCH [--record]

writes 16 GB twice at 8B. SCRATCH/twin and SCRATCH/adapter are used again if they are
there; remove the folder afterwards. Nothing here was trained, so nothing here is about
quality.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from course_utils import chat, models, recorded
from course_utils.models import random_weights, shards
from course_utils.publishing.merging.adapter import Adapter, read_adapter
from course_utils.setup import folders, places
from course_utils.setup.printing import print_safely

GIB = 2**30
RECORD = places.PACKAGE / "recorded" / "merge_at_8b.json"
# The other way, as a notebook would write it: the entire model in memory.
BY_PEFT = """
import sys, torch
from peft import PeftModel
from course_utils.models import load_model, nf4_config
base, adapter, out = sys.argv[1:]
nf4 = nf4_config(torch.bfloat16)
model = load_model(base, dtype=torch.bfloat16, quantization_config=nf4).dequantize()
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
"""


def write_random_adapter(
    base: str | Path, folder: str | Path, rank: int = 16, alpha: int = 32, seed: int = 0
) -> None:
    """A LoRA adapter of random values on all linear layers and the chat tokens' rows.

    folder: not there yet, or an earlier random adapter. Written as PEFT writes a
    trained one, with the tokenizer; the model is never in memory.
    """
    tokenizer = models.load_tokenizer(base)
    ids = chat.use_llama3_chat(tokenizer)
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=models.LINEAR_LAYERS,
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": ids, "lm_head": ids},
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(models.load_config(base))
        state = get_peft_model_state_dict(get_peft_model(model, lora))
    draw = torch.Generator().manual_seed(seed)
    tensors = {
        name: 0.02 * torch.randn(value.shape, generator=draw)
        for name, value in state.items()
    }
    with folders.written_whole(folder, 0, "random adapter", [base]) as partial:
        lora.save_pretrained(partial)
        file = partial / "adapter_model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        tokenizer.save_pretrained(partial)
        models.record_base(partial, base)


def measured(command: list[str]) -> dict[str, float]:
    """Run a command. Returns: {"peak_gib", "cpu_minutes", "minutes"}.

    peak_gib: the most memory it had in use at a time, files mapped into it included.
    Raises: RuntimeError with its last words if it fails. Not on Windows.
    """
    # A process of its own between, because the figures are of all children ever.
    script = (
        "import json, resource, subprocess, sys;"
        "done = subprocess.run(sys.argv[1:]);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN);"
        "print(json.dumps([done.returncode, used.ru_maxrss, used.ru_utime"
        " + used.ru_stime]))"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script, *command],
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    code, peak, seconds = json.loads(done.stdout.splitlines()[-1])
    if code:
        raise RuntimeError(f"{command[:4]} failed: {done.stderr.strip()[-300:]}")
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "peak_gib": peak * unit / GIB,
        "cpu_minutes": seconds / 60,
        "minutes": (time.perf_counter() - start) / 60,
    }


def largest_errors(
    base: str | Path, adapter: str | Path, merged: str | Path, layers: list[int]
) -> dict[str, float]:
    """How far merged tensors are from PEFT's own layers, one layer at a time.

    layers: numbers of the decoder layers to look at.
    Returns: {tensor: largest difference, in steps of bfloat16 at that value}. Rounding
    once gives at most half a step, PEFT's in bfloat16 more.
    """
    read, before = read_adapter(adapter), shards.Reader(base)
    after = shards.Reader(merged)
    wanted = [
        name
        for name in before
        if any(name.startswith(f"model.layers.{number}.") for number in layers)
    ]
    found = {}
    for name in [*wanted, *read.rows, "model.norm.weight"]:
        exact = by_peft(name, before.read(name), read)
        difference = (after.read(name).float() - exact).abs()
        step = 2.0 ** (torch.floor(torch.log2(exact.abs().clamp(min=1e-30))) - 7)
        found[name] = float((difference / step).max())
    return found


def by_peft(name: str, weight: torch.Tensor, adapter: Adapter) -> torch.Tensor:
    """One tensor as bitsandbytes' and PEFT's modules merge it, in float32."""
    if name in adapter.updates:
        low, high = adapter.updates[name]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        quantised = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(device)
        values = bnb.functional.dequantize_4bit(quantised.data, quantised.quant_state)
        dense = torch.nn.Linear(low.shape[1], high.shape[0], bias=False, device="meta")
        dense.weight = torch.nn.Parameter(values.float().cpu())
        alpha = adapter.scales[name] * low.shape[0]
        lora = LoraConfig(r=low.shape[0], lora_alpha=alpha, target_modules=["0"])
        model = get_peft_model(torch.nn.Sequential(dense), lora)
        layer = model.base_model.model[0]
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(low)
            layer.lora_B["default"].weight.copy_(high)
        return model.merge_and_unload()[0].weight.detach()
    if name in adapter.rows:
        ids, rows = adapter.rows[name]
        return weight.float().index_copy(0, torch.tensor(ids), rows.float())
    return weight.float()


def rehearse(scratch: str | Path, shape: str) -> dict:
    """Merge a random adapter into random weights. Returns: what was measured."""
    scratch = Path(scratch)
    base, adapter, out = (scratch / name for name in ("twin", "adapter", "merged"))
    if not base.is_dir():
        random_weights.write(base, shape)
    if not adapter.is_dir():
        write_random_adapter(base, adapter)
    config = models.load_config(base)
    command = [sys.executable, "-m", "course_utils.publishing.merging"]
    cost = measured([*command, str(base), str(adapter), str(out)])
    last = config.num_hidden_layers - 1
    errors = largest_errors(base, adapter, out, sorted({0, last // 2, last}))
    sizes = [Path(file).stat().st_size for file in set(out.glob("*.safetensors"))]
    return {
        "shape": shape,
        "parameters": sum(
            torch.Size(size).numel() for size, _ in shards.Reader(out).shapes().values()
        ),
        "weights_gib": sum(sizes) / GIB,
        "streamed": cost,
        "tensors_compared": len(errors),
        "largest_error_in_steps": max(errors.values()),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("scratch", help="a folder with room for the checkpoint, twice")
    parser.add_argument(
        "--shape", choices=list(random_weights.SHAPES), default="llama3-8b"
    )
    parser.add_argument("--whole", action="store_true", help="PEFT's way too")
    parser.add_argument("--record", action="store_true", help="keep it as recorded")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    found = rehearse(options.scratch, options.shape)
    if options.whole:
        scratch = Path(options.scratch)
        read = [str(scratch / name) for name in ("twin", "adapter")]
        with folders.written_whole(scratch / "whole", 0, "merge by PEFT") as out:
            command = [sys.executable, "-c", BY_PEFT, *read, str(out)]
            found["whole"] = measured(command)
    print(json.dumps(found, indent=1))
    if options.record:
        kept = {"merges": {}}
        if RECORD.is_file():
            kept = json.loads(RECORD.read_text(encoding="utf-8"))
        whole = " --whole" * options.whole
        run = recorded.describe_run(
            "python tests/benchmarks/measure_merge.py SCRATCH "
            f"--shape {options.shape}{whole} --record",
            start,
        )
        kept["merges"][options.shape] = {**run, **found}
        folders.write_text(RECORD, json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    print_safely()
    main()
