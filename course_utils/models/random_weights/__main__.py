"""`python -m course_utils.models.random_weights FOLDER [--shape llama3-8b]`"""

import argparse
import sys

from course_utils.models.random_weights.checkpoint import SHAPES, write
from course_utils.setup.printing import print_safely


def main(arguments: list[str] | None = None) -> int:
    """Returns: the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.models.random_weights",
        description="Write a checkpoint of random weights in Llama 3 8B's shape.",
    )
    parser.add_argument("folder", help="a folder that is not there yet")
    parser.add_argument("--shape", choices=list(SHAPES), default="llama3-8b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        done = write(options.folder, options.shape, options.seed)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"wrote {done['parameters']:,} random weights, {done['bytes'] / 1e9:.2f} GB in "
        f"{done['files']} files, in {done['seconds']:.0f} s on {done['device']}"
    )
    print(f"use it: COURSE_BASE_MODEL={options.folder}")
    return 0


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
