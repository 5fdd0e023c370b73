"""`python -m course_utils.publishing.export FOLDER FILE.gguf`"""

import argparse
import sys

from course_utils.publishing.export.gguf_file import TYPES, to_gguf
from course_utils.setup.printing import print_safely


def main(arguments: list[str] | None = None) -> int:
    """Returns: the process's exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m course_utils.publishing.export",
        description="Write a merged model as one GGUF file.",
    )
    parser.add_argument("folder", help="a merged model's folder")
    parser.add_argument("file", help="the file to write, ending in .gguf")
    parser.add_argument("--dtype", choices=list(TYPES), default="float16")
    options = parser.parse_args(arguments)
    try:
        size = to_gguf(options.folder, options.file, options.dtype)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"wrote {size / 1e6:,.1f} MB to {options.file}")
    return 0


if __name__ == "__main__":
    print_safely()
    sys.exit(main())
