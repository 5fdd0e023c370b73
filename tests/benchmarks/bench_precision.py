"""Does a faster trainer learn the same? Losses and adapters, against float32.

    python tests/benchmarks/bench_precision.py --shape llama3-8b --checkpoint FOLDER
    python tests/benchmarks/bench_precision.py --shape tiny --json FILE   (rehearsal)

All arms train the same 4-bit weights from the same adapter on the same pairs; the first
is TRL's trainer with float32 arithmetic. Rounding to 16 bit can do two things to the
others: let them learn something else, or hide from their own arithmetic what they have
learned. So after training every adapter's loss on the same pairs is taken twice, by the
arithmetic that trained it and by float32.

Before that, single products of the model's shapes: how much of a change far below the
last bit of W x is in the 16-bit sum of both, by three ways to compute the sum. After
it, for TRL's trainer in bf16, which matrices' adapters its own arithmetic sees.
"""

import argparse
import contextlib
import math
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

# Read when the libraries are first imported.
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
from course_utils.setup import profiles, quiet

profiles.stay_offline()
quiet.hide_library_chatter()
import bench_orpo  # noqa: E402
import bench_parts  # noqa: E402
import torch  # noqa: E402
from torch.utils import benchmark  # noqa: E402

from course_utils import models, recorded  # noqa: E402
from course_utils.setup.printing import print_safely  # noqa: E402
from course_utils.training.fast import FastTrainingConfig, matmul  # noqa: E402

REFERENCE, TRL_BF16 = "TRL, float32", "TRL, bf16"
_PLAIN = bench_parts.ladder(FastTrainingConfig())["packed rows"]
_FUSED = replace(_PLAIN, fused_lora=True)


_BY_ADDMM = "+ fused LoRA, sum by addmm_"


def arms(shape):
    """{arm: fast_config}, all in 16 bit; None for TRL's trainer."""
    return {
        TRL_BF16: None,
        "packed rows, bf16": _PLAIN,
        _BY_ADDMM: _FUSED,
        "+ fused LoRA": _FUSED,
        "fast": shape.fast,
        bench_orpo.UNSLOTH: None,  # in a process of its own
    }


def by_addmm(small_left, small_right, left, right, bias=None):
    """The small product, and the large one added to it; for matmul.added."""
    out = (small_left @ small_right).addmm_(left, right)
    return out if bias is None else out.add_(bias)


def product_first(small_left, small_right, left, right):
    """The large product, and the small one added to it."""
    return left @ right + small_left @ small_right


SUMS = {
    "W x, then + the change": product_first,
    "the change, then addmm_": by_addmm,
    "twice the change, addmm_ with beta=0.5": matmul.added,
}


def arrivals(config, tokens, draws=5):
    """{sum: {"outputs x inputs": {"arrived": [share of the change], "microseconds"}}}

    config: whose matrices. tokens: of a row. The change is an adapter's after its first
    step of 8e-6: A as PEFT draws it, B's entries that far from 0.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hidden, inner = config.hidden_size, config.intermediate_size
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    found = {name: {} for name in SUMS}
    for outputs, inputs in (
        (hidden, hidden),
        (keys, hidden),
        (inner, hidden),
        (hidden, inner),
    ):
        for seed in range(draws):
            generator = torch.Generator(device).manual_seed(seed)

            def drawn(*sizes, generator=generator):
                return torch.randn(*sizes, generator=generator, device=device)

            weight = (drawn(outputs, inputs) * config.initializer_range).bfloat16()
            x = drawn(tokens, inputs).bfloat16()
            low = drawn(16, inputs).bfloat16() * (3 * inputs) ** -0.5
            up = 8e-6 * drawn(outputs, 16).bfloat16().sign()
            factors = 2 * x @ low.t(), up.t(), x, weight.t()
            change = factors[0].double() @ up.t().double()
            plain = x.double() @ weight.t().double()
            for name, added in SUMS.items():
                row = found[name].setdefault(f"{outputs} x {inputs}", {"arrived": []})
                gain = (added(*factors).double() - plain) * change
                row["arrived"].append(float(gain.sum() / change.square().sum()))
                if seed == 0:
                    timer = benchmark.Timer(
                        "added(*factors)", globals={"added": added, "factors": factors}
                    )
                    row["microseconds"] = 1e6 * timer.blocked_autorange().median
    return found


def main(arguments=None):
    """Returns: the record that --json writes."""
    start = time.perf_counter()
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parse(arguments)
    shape = bench_parts.SHAPES[options.shape]
    lengths = bench_orpo.lengths_of(options, shape)
    found = {"losses": {}, "own": {}, "judged": {}, "before": {}}
    with tempfile.TemporaryDirectory() as scratch:
        scratch = Path(scratch)
        options.checkpoint = options.checkpoint or f"{scratch}/twin"

        def prepare(in_16_bit):
            changes = shape.changes | {
                "bf16": in_16_bit,
                "logging_steps": 1,
                "warmup_steps": 0,
                "lr_scheduler_type": "constant",
            }
            return bench_parts.Prepared(
                replace(shape, changes=changes),
                options.checkpoint,
                lengths,
                options.seed,
            )

        def train(prepared, name, fast_config):
            adapter = {}

            def then(trainer):
                found["own"][name] = loss_on_its_pairs(trainer)
                adapter.update(adapter_of(trainer))

            sum_by_addmm = mock.patch.object(matmul, "added", by_addmm)
            with sum_by_addmm if name == _BY_ADDMM else contextlib.nullcontext():
                result = bench_parts.run_arm(
                    prepared,
                    fast_config,
                    {},
                    1,
                    options.steps - 1,
                    options.seed,
                    scratch / "run",
                    then=then,
                )
            found["losses"][name] = result[0]["losses"]
            print(f"{name}, trained", file=sys.stderr, flush=True)
            return adapter

        def train_unsloth(adapter):
            """From the adapter that the others start from."""
            start = scratch / "start.pt"
            torch.save(adapter, start)
            result = bench_orpo.run_unsloth(
                argparse.Namespace(
                    **vars(options) | UNSLOTHS_RUN | {"steps": options.steps - 1}
                ),
                rounded.shape,
                lengths,
                scratch,
                start=str(start),
            )
            name = bench_orpo.UNSLOTH
            found["losses"][name] = result[0]["losses"]
            found["own"][name] = result[0]["own_loss"]
            return torch.load(result[0]["adapter"])

        exact = prepare(in_16_bit=False)
        found["arrived"] = arrivals(
            exact.model_and_tokenizer()[0].config, shape.fast.token_budget
        )
        adapters = {REFERENCE: train(exact, REFERENCE, None)}
        rounded = prepare(in_16_bit=True)
        judge = bench_parts.make_trainer(
            exact, None, {}, 1, options.seed, scratch / "run"
        )
        found["before"] = loss_on_its_pairs(judge)
        untrained = adapter_of(judge)
        wanted = {n: f for n, f in arms(shape).items() if n in options.arms}
        for name, fast_config in [(REFERENCE, None), *wanted.items()]:
            if name == bench_orpo.UNSLOTH:
                adapters[name] = train_unsloth(untrained)
            elif name not in adapters:
                adapters[name] = train(rounded, name, fast_config)
            take(judge, adapters[name])
            found["judged"][name] = loss_on_its_pairs(judge)
            if name == TRL_BF16 and options.by_matrix:
                trainers = (
                    judge,
                    bench_parts.make_trainer(
                        rounded, None, {}, 1, options.seed, scratch / "run"
                    ),
                )
                found["by_matrix"] = seen_by_matrix(*trainers, adapters[name])
                rounded.give_back(trainers[1])
            record = recorded.describe_run(command(arguments), start) | {
                "shape": options.shape,
                "recipe": exact.recipe,
                "seed": options.seed,
                "steps": options.steps,
                "lengths": bench_orpo.describe_lengths(lengths, exact),
                **found,
            }
            if options.json:  # after each arm, so that a time limit loses nothing
                bench_orpo.save(record, options.json)
    print(table(record))
    return record


# As the others train here: one step, then the rest in one lap, each one logged.
UNSLOTHS_RUN = {"warmup": 1, "laps": 1, "profile": False, "sixteen_bit": False}


def loss_on_its_pairs(trainer):
    """Mean loss on what the trainer trains on, by its own arithmetic.

    In training mode, which is the same without dropout: in the other one bitsandbytes
    rearranges weights on a CPU, and who trains them afterwards learns less.
    """
    batches = trainer.get_train_dataloader()
    with torch.no_grad():
        losses = [float(trainer.compute_loss(trainer.model, b)) for b in batches]
    if hasattr(trainer, "unpatch"):
        trainer.unpatch()
    return sum(losses) / len(losses)


def seen_by_matrix(judge, own, adapter):
    """Of what one kind of matrix learned: does the trainer's own arithmetic see it?

    {"q_proj": {"own", "float32"}}: how much that kind's adapter alone, with the others
    as before training, lowers the loss, in nats, by either arithmetic.
    """
    nothing = {n: v if "lora_A" in n else 0 * v for n, v in adapter.items()}
    trainers, found = {"own": own, "float32": judge}, {}
    for trainer in trainers.values():
        take(trainer, nothing)
    before = {name: loss_on_its_pairs(t) for name, t in trainers.items()}
    for kind in models.LINEAR_LAYERS:
        only = {n: adapter[n] if f".{kind}." in n else v for n, v in nothing.items()}
        found[kind] = {}
        for name, trainer in trainers.items():
            take(trainer, only)
            found[kind][name] = before[name] - loss_on_its_pairs(trainer)
    take(judge, adapter)
    return found


def adapter_of(trainer):
    """{name: tensor} of what a trainer trains, on the CPU."""
    return {
        name: parameter.detach().float().cpu()
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }


def take(trainer, adapter):
    """Put another trainer's adapter in the place of this one's."""
    own = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    for name, parameter in own.items():
        parameter.data.copy_(adapter[name])


def parse(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    twins = [name for name, shape in bench_parts.SHAPES.items() if shape.twin]
    parser.add_argument("--shape", choices=twins, required=True)
    parser.add_argument("--checkpoint", help="the twin's folder; written if absent")
    # With few pairs, each seen again and again, a learning rate as small as the
    # recipe's shows.
    parser.add_argument("--pairs", type=int, default=64, help="different pairs")
    parser.add_argument("--lengths", help="JSON list of [prompt, chosen, rejected]")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for everything that was measured")
    known = arms(bench_parts.SHAPES["tiny"])
    usual = [name for name in known if name != bench_orpo.UNSLOTH]
    parser.add_argument("--arms", nargs="+", choices=known, default=usual)
    parser.add_argument("--unsloth-path", help="folder with unsloth and its needs")
    parser.add_argument(
        "--by-matrix", action="store_true", help=f"what {TRL_BF16} sees of which matrix"
    )
    options = parser.parse_args(arguments)
    if options.steps < 2:
        parser.error("--steps must be at least 2")
    return options


def command(arguments):
    """The command line, with names in the place of one machine's paths."""
    return bench_orpo.command(arguments).replace("bench_orpo", "bench_precision")


def table(record):
    """The results as text, one line per arm."""
    lines = [f"{'sum of W x and a change':40s} {'matrix':14s} arrived         µs"]
    for name, rows in record["arrived"].items():
        for matrix, row in rows.items():
            low, high = min(row["arrived"]), max(row["arrived"])
            lines.append(
                f"{name:40s} {matrix:14s} {low:5.2f} ... {high:4.2f}"
                f" {row['microseconds']:6.0f}"
            )
    lines += [
        f"{'arm':36s} {'mean loss':>10s} {'own loss':>10s} {'in float32':>10s}",
        f"{'before training':36s} {'':10s} {'':10s} {record['before']:10.5f}",
    ]
    for name, losses in record["losses"].items():
        mean = sum(losses) / len(losses)
        own, judged = record["own"][name], record["judged"].get(name, math.nan)
        lines.append(f"{name:36s} {mean:10.5f} {own:10.5f} {judged:10.5f}")
    for kind, gain in record.get("by_matrix", {}).items():
        lines.append(f"{kind:36s} {gain['own']:21.5f} {gain['float32']:10.5f} lower")
    return "\n".join(lines)


if __name__ == "__main__":
    print_safely()
    main()
