"""Does llama.cpp answer from the GGUF file as transformers does from the folder?

    python tests/benchmarks/compare_gguf.py FOLDER [--record]

needs llama-cpp-python, which compiles for some minutes and is not installed with the
course: `pip install llama-cpp-python`.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from course_utils import models, recorded
from course_utils.data import world
from course_utils.publishing.export.gguf_file import to_gguf
from course_utils.publishing.gate import distance
from course_utils.publishing.gate.behaviour import (
    Behaviour,
    encode,
    greedy,
    logits_along,
)
from course_utils.setup import folders, places
from course_utils.setup.printing import print_safely

RECORD = places.PACKAGE / "recorded" / "gguf.json"
PROMPTS = 140


def answers_of_transformers(
    folder: str | Path, prompts: list[list[dict]], max_new_tokens: int = 112
) -> tuple[Behaviour, int]:
    """(Behaviour of the saved model, with its own defaults, and its end token)."""
    model = models.load_model(folder).eval()
    tokenizer = models.load_tokenizer(folder)
    questions, pad = encode(tokenizer, prompts), tokenizer.pad_token_id
    answers = greedy(model, questions, pad, max_new_tokens)
    logits = logits_along(model, questions, answers, pad)
    return Behaviour(questions, answers, logits), tokenizer.eos_token_id


def answers_of_llama_cpp(
    path: str | Path,
    folder: str | Path,
    prompts: list[list[dict]],
    reference: Behaviour,
    max_new_tokens: int = 112,
) -> Behaviour:
    """Behaviour of the GGUF file along a reference's answers.

    Its questions are the prompts' text as llama.cpp itself cuts it into tokens; its
    answers and logits are those after the reference's questions.
    """
    from llama_cpp import Llama

    longest = max(len(q) + len(a) for q, a in _pairs(reference))
    context = max(longest, max(map(len, reference.questions)) + max_new_tokens) + 1
    model = Llama(str(path), n_ctx=context, logits_all=True, verbose=False)
    end, tokenizer = model.token_eos(), models.load_tokenizer(folder)
    questions, answers, logits = [], [], []
    for prompt, (question, answer) in zip(prompts, _pairs(reference), strict=True):
        text = tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, tokenize=False
        )
        ids = model.tokenize(text.encode(), add_bos=False, special=True)
        questions.append(list(ids))
        answers.append(_greedy(model, question, end, max_new_tokens))
        model.reset()
        model.eval(question + answer)
        rows = model.scores[len(question) - 1 : len(question) + len(answer) - 1]
        logits.append(torch.from_numpy(rows.copy()))
    model.close()
    return Behaviour(questions, answers, tuple(logits))


def _pairs(behaviour):
    return list(zip(behaviour.questions, behaviour.answers, strict=True))


def _greedy(model, question, end, max_new_tokens):
    answer = []
    for token in model.generate(question, temp=0.0, repeat_penalty=1.0):
        answer.append(token)
        if token == end or len(answer) == max_new_tokens:
            return answer


def compare(
    folder: str | Path,
    prompts: list[list[dict]],
    dtype: str,
    reference: Behaviour,
    end: int,
) -> dict:
    """How far the GGUF file of a folder is from the folder.

    reference, end: from answers_of_transformers. Returns: {"dtype", "bytes",
    "same_prompt_tokens": share of prompts, "distance": Distance as dict}.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.gguf"
        size = to_gguf(folder, path, dtype)
        other = answers_of_llama_cpp(path, folder, prompts, reference)
    same = [a == b for a, b in zip(reference.questions, other.questions, strict=True)]
    return {
        "dtype": dtype,
        "bytes": size,
        "same_prompt_tokens": sum(same) / len(same),
        "distance": asdict(distance(reference, other, end)),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a merged model of the lab")
    parser.add_argument("--record", action="store_true", help="keep it as recorded")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    pairs = world.test_pairs(PROMPTS // len(world.SOURCES))
    prompts = [pair["prompt"] for pair in pairs]
    reference, end = answers_of_transformers(options.folder, prompts)
    files = []
    for dtype in ("float32", "float16", "bfloat16"):
        files.append(compare(options.folder, prompts, dtype, reference, end))
        print(json.dumps(files[-1]))
    if options.record:
        program = "python tests/benchmarks/compare_gguf.py"
        command = f"{program} {options.folder} --record"
        run = recorded.describe_run(command, start)
        run["versions"] |= recorded.versions(("gguf", "llama_cpp_python"))
        text = json.dumps({**run, "files": files}, indent=1, ensure_ascii=False)
        folders.write_text(RECORD, text + "\n")


if __name__ == "__main__":
    print_safely()
    main()
