"""Benchmarks through EleutherAI's lm-evaluation-harness, the real package.

    python -m course_utils.evaluation.benchmarks nous --model FOLDER --out FILE.json
    python -m course_utils.evaluation.benchmarks compare FIRST.json SECOND.json
    python -m course_utils.evaluation.benchmarks lab --model FOLDER --out FILE.json

Modules: `harness` (the one call), `nous` (the article's suite), `lab` (tasks made from
the small world, which need no network).
"""
