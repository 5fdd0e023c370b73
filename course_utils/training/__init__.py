"""The trainer as a command: one GPU, several, or a CPU, through accelerate.

    python -m course_utils.training --profile a100 --output runs/a100
    accelerate launch --config_file CONFIG \
        --num_processes 2 -m course_utils.training --profile a100 --output runs/a100

Knows: nothing itself; see `options` (what can be asked for), `batches` (how processes
share a step), `run` (the flow of notebook 04), `lost` (when a process dies). Nothing is
imported here, so that the command can set the libraries' variables first.
"""
