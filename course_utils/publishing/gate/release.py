"""The release gate: may this folder be published as the model that was trained?"""

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from course_utils import models, recorded
from course_utils.publishing.gate import files
from course_utils.publishing.gate.behaviour import (
    Behaviour,
    Distance,
    Observation,
    distance,
    encode,
    greedy,
    logits_along,
)
from course_utils.publishing.gate.gate_record import GATE_FILE, write_record

# 1e-4 nats per token change the log-prob of an answer of 100 tokens by about 0.01 nats.
MAX_KL = 1e-4
MAX_LOGIT_DIFFERENCE = 0.5  # nats, the largest over all tokens and the vocabulary
# The trained model differs from itself when it is computed another way. The merge may
# differ by a multiple of that noise; if the noise is larger than this, nothing can be
# proved.
NOISE_FACTOR = 3
MAX_NOISE_KL = 3e-3
MIN_SAME_TOKENS = 0.99
MIN_SAME_ANSWERS = 0.9  # one near-tie turns the rest of a greedy answer
MIN_STOPS = 0.95
BEHAVIOUR, ANSWERS = "logits.safetensors", "answers.json"


@dataclass(frozen=True)
class Check:
    """One condition. measured, limit: in words; failure: what to say if it fails."""

    name: str
    passed: bool
    measured: str
    limit: str
    failure: str = ""


@dataclass(frozen=True)
class Gate:
    """The checks, and the Distance of the folder's model, None if it was not run."""

    checks: tuple[Check, ...]
    distance: Distance | None

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def failures(self) -> tuple[str, ...]:
        return tuple(check.failure for check in self.checks if not check.passed)

    def __str__(self) -> str:
        rows = [
            f"{'ok' if c.passed else 'NO':3s} {c.name:38s} {c.measured:>16s}  {c.limit}"
            for c in self.checks
        ]
        rows += [f"- {failure}" for failure in self.failures]
        return "\n".join([*rows, "PASSED" if self.passed else "REFUSED"])


def release_gate(
    observation: Observation,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    command: str = "release_gate",
) -> Gate:
    """Check a saved model against the trained one, and leave the record in its folder.

    observation: of the trained model, by `observe`. folder: what would be published:
        merged weights, configuration, tokenizer. tokenizer: the one of the training.
        command: what ran this, for the record.
    Returns: Gate. `release_gate.json` in the folder says the same, of these files only.
    Raises: FileNotFoundError without the folder; RuntimeError with the new process's
    last words if it cannot run the folder: then the folder has no record.

    The folder is run by a new process with nothing but its own defaults, so that no
    object in memory stands in for a file that was not saved. At 8B, free the trained
    model first.
    """
    start, folder = time.perf_counter(), Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} to check.")
    (folder / GATE_FILE).unlink(missing_ok=True)
    o, found = observation, None
    checks = check_files(folder, o, tokenizer)
    if all(check.passed for check in checks):
        behaviour = run_folder(folder, o)
        found = distance(o.reference, behaviour, o.end)
        checks += check_behaviour(found, o, behaviour.questions)
    gate = Gate(tuple(checks), found)
    measured = {
        "n": len(o.prompts),
        "distance": asdict(found) if found else None,
        "noise": asdict(o.noise),
    }
    run = recorded.describe_run(command, start)
    write_record(folder, [asdict(c) for c in checks], _plain(measured), run)
    return gate


def check_files(
    folder: Path, observation: Observation, tokenizer: PreTrainedTokenizerBase
) -> list[Check]:
    """Checks of the files alone; what needs the weights is left out without them."""
    o = observation
    checks = [
        _words("no file that can run code", files.runnable(folder)),
        _words("weights and settings complete", files.incomplete(folder)),
    ]
    if not all(check.passed for check in checks):
        return checks
    return [
        *checks,
        _words("weights finite", files.not_finite(folder)),
        _words("nothing left of NF4 or adapter", files.left_over(folder)),
        _words("same vocabulary", files.other_vocabulary(folder, o.vocabulary)),
        _words("chat format", files.other_chat(folder, tokenizer, o.prompts)),
        _words("end of turn in generation config", files.does_not_stop(folder, o.end)),
    ]


def _words(name, wrong):
    return Check(name, not wrong, "no" if wrong else "yes", "yes", "; ".join(wrong))


def check_behaviour(
    found: Distance, observation: Observation, questions: list[list[int]]
) -> list[Check]:
    """Checks of what the folder's model does. found: Distance from the trained one."""
    noise, reference = observation.noise, observation.reference
    max_kl = max(MAX_KL, NOISE_FACTOR * noise.kl.value)
    max_logit = max(MAX_LOGIT_DIFFERENCE, NOISE_FACTOR * noise.max_logit_difference)
    same_tokens = min(MIN_SAME_TOKENS, noise.same_next_token - (1 - MIN_SAME_TOKENS))
    same_answers = MIN_SAME_ANSWERS * noise.same_answers.value
    stops = found.stop_is_argmax
    ended = found.reference_ended - (1 - MIN_STOPS)
    same_prompts = [] if questions == reference.questions else ["other ids were read"]
    measured = [  # name, passed (NaN never does), measured, limit
        (
            "trained model agrees with itself",
            noise.kl.value <= MAX_NOISE_KL,
            f"KL {noise.kl.value:.1e}",
            f"<= {MAX_NOISE_KL:g} nats per token",
        ),
        (
            "KL of trained and published",
            found.kl.value <= max_kl,
            f"{found.kl.value:.1e}",
            f"<= {max_kl:.1e} nats per token",
        ),
        (
            "largest logit difference",
            found.max_logit_difference <= max_logit,
            f"{found.max_logit_difference:.2g}",
            f"<= {max_logit:.2g}",
        ),
        (
            "same next token",
            found.same_next_token >= same_tokens,
            f"{found.same_next_token:.1%}",
            f">= {same_tokens:.1%} of {found.tokens}",
        ),
        (
            "same greedy answers",
            found.same_answers.value >= same_answers,
            f"{found.same_answers.value:.0%}",
            f">= {same_answers:.0%} of {found.n}",
        ),
        (
            "end of turn is argmax after an answer",
            stops is not None and stops >= MIN_STOPS,
            "none ended" if stops is None else f"{stops:.0%}",
            f">= {MIN_STOPS:.0%}",
        ),
        (
            "answers end by themselves",
            found.ended >= ended,
            f"{found.ended:.0%}",
            f">= {ended:.0%}",
        ),
    ]
    return [
        _words("a new process reads the same prompts", same_prompts),
        *(Check(*m, f"{m[0]}: {m[2]}, and the limit is {m[3]}") for m in measured),
    ]


def run_folder(folder: Path, observation: Observation) -> Behaviour:
    """Behaviour of the model in the folder, from a new process.

    Raises: RuntimeError with the process's last words if it fails.
    """
    o = observation
    job = {
        "prompts": o.prompts,
        "answers": o.reference.answers,
        "max_new_tokens": o.max_new_tokens,
    }
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-m", "course_utils.publishing.gate", str(folder), out],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise RuntimeError(f"A new process cannot run the folder {folder}: {last}")
        said = json.loads((Path(out) / ANSWERS).read_text(encoding="utf-8"))
        logits = load_file(Path(out) / BEHAVIOUR)
    rows = tuple(logits[str(i)] for i in range(len(o.prompts)))
    return Behaviour(said["questions"], said["answers"], rows)


def behave_from_folder(
    folder: str | Path,
    out: str | Path,
    prompts: list[list[dict]],
    answers: list[list[int]],
    max_new_tokens: int,
) -> None:
    """What the new process does: run the folder with its own defaults, write to `out`.

    answers: the reference's, to take the logits along. The weights stay in the dtype
    that the folder says.
    """
    model = models.load_model(folder).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    tokenizer = models.load_tokenizer(folder)
    questions, pad = encode(tokenizer, prompts), tokenizer.pad_token_id
    own = greedy(model, questions, pad, max_new_tokens)
    logits = logits_along(model, questions, answers, pad)
    tensors = {str(i): rows.contiguous() for i, rows in enumerate(logits)}
    save_file(tensors, Path(out) / BEHAVIOUR)
    said = json.dumps({"questions": questions, "answers": own})
    (Path(out) / ANSWERS).write_text(said, encoding="utf-8", newline="\n")


def _plain(value):
    """The same for JSON, which knows no NaN: that becomes the word."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
