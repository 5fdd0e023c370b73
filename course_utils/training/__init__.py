"""The trainer as a command: one GPU, several, or a CPU, through accelerate.

    python -m course_utils.training --profile a100 --output runs/a100
    accelerate launch --config_file CONFIG \
        --num_processes 2 -m course_utils.training --profile a100 --output runs/a100

Nothing is imported here, so that the command can set the libraries' variables first.
"""
