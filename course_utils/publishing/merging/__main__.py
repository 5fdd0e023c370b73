"""`python -m course_utils.publishing.merging BASE ADAPTER OUT`"""

import argparse
import sys

import torch

from course_utils import models
from course_utils.publishing.merging.streamed import merge
from course_utils.setup.printing import print_safely


def main(arguments: list[str] | None = None) -> int:
    """Returns: the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.publishing.merging",
        description="Merge a LoRA adapter into its base, one layer at a time.",
    )
    parser.add_argument("base", help="folder or hub id of the base")
    parser.add_argument("adapter", help="folder with adapter and tokenizer")
    parser.add_argument(
        "out", help="folder to write; an earlier merged model there is replaced"
    )
    parser.add_argument(
        "--no-nf4", action="store_true", help="trained on a 16-bit base"
    )
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    options = parser.parse_args(arguments)
    try:
        tokenizer = models.load_tokenizer(options.adapter)
        dtype = getattr(torch, options.dtype)
        nf4 = not options.no_nf4
        merge(options.base, options.adapter, options.out, tokenizer, nf4, dtype)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"merged into {options.out}; prove it before you publish it")
    return 0


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
