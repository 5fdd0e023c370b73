"""`python -m course_utils.proof FOLDER`: see `compare`."""

from course_utils.proof.compare import main

if __name__ == "__main__":
    main()
