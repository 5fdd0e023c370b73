"""`python -m course_utils.publishing.gate FOLDER OUT`: the release gate's new process.

The job comes as JSON on stdin; see `gate.behave_from_folder`.
"""

import json
import sys

from course_utils.publishing.gate.release import behave_from_folder
from course_utils.setup.printing import print_safely


def main() -> None:
    behave_from_folder(sys.argv[1], sys.argv[2], **json.load(sys.stdin))


if __name__ == "__main__":
    print_safely()
    main()
