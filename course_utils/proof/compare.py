"""Proof that a merged model is the one that was trained and evaluated.

Knows: a trained model, the merged model, and the folder that it was saved to.
Does not know: training, how the merge was made, what happens to the folder afterwards.

    python -m course_utils.proof FOLDER

answers prompts (JSON on stdin) from a saved folder and from nothing else. `prove_equal`
runs it as a new process, so that no object in memory can stand in for a file that was
not saved.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# 1e-4 nats a token change the log-prob of an answer of 100 tokens by about 0.01 nats.
# Rounding stays below it and a merge into another base does not (notebook 06).
MAX_KL = 1e-4
MIN_AGREEMENT = 0.9  # a single near-tie turns the rest of a greedy answer
BATCH = 32


@dataclass(frozen=True)
class Proof:
    """How far the merged model is from the trained one, on n prompts.

    max_logit_difference, kl: over the tokens of the trained model's greedy answers; kl
        is KL(trained || merged) in nats, mean over these tokens.
    greedy_agreement: share of prompts with the same greedy tokens.
    ended_trained, ended: share of answers that end with the turn's end token.
    vocabulary_unchanged, finite, no_quantization_config: of the merged model.
    reloaded_agreement: as greedy_agreement, for the saved folder read by a new process
        with nothing but its own defaults; None if no folder was given.
    failures: what forbids publishing, in words; empty if nothing does.
    """

    n: int
    answer_tokens: int
    max_logit_difference: float
    kl: float
    greedy_agreement: float
    ended_trained: float
    ended: float
    vocabulary_unchanged: bool
    finite: bool
    no_quantization_config: bool
    reloaded_agreement: float | None
    failures: tuple

    @property
    def passed(self):
        return not self.failures

    def __str__(self):
        measured = {k: v for k, v in asdict(self).items() if k != "failures"}
        lines = [
            f"{name:23s} {value:.3g}" if isinstance(value, float) else
            f"{name:23s} {'not asked' if value is None else value}"
            for name, value in measured.items()
        ]  # fmt: skip
        lines += [f"- {failure}" for failure in self.failures]
        return "\n".join([*lines, "PASSED" if self.passed else "REFUSED"])


def prove_equal(
    trained,
    merged,
    tokenizer,
    prompts,
    folder=None,
    max_new_tokens=112,
    max_kl=MAX_KL,
    min_agreement=MIN_AGREEMENT,
):
    """Compare a merged model with the trained one that was evaluated.

    trained, merged: causal language models. tokenizer: with chat template, and the end
    of the turn as eos. prompts: list of lists of messages. folder: where merged and its
    tokenizer were saved; also proved if given.
    Returns: Proof. Raises: ValueError without prompts; RuntimeError with the new
    process's last words if it cannot read the folder.
    """
    if not prompts:
        raise ValueError("A proof needs prompts, and there are none.")
    eos = tokenizer.eos_token_id
    questions = _encode(tokenizer, prompts)
    pad = tokenizer.pad_token_id
    wanted = _greedy(trained, questions, pad, eos, max_new_tokens)
    written = _greedy(merged, questions, pad, eos, max_new_tokens)
    kl, largest, count = _distance(trained, merged, questions, wanted)
    reloaded = None
    if folder is not None:
        answers = _answers_of_new_process(folder, prompts, max_new_tokens)
        reloaded = _share(map(list.__eq__, written, answers))
    measured = {
        "n": len(prompts),
        "answer_tokens": count,
        "max_logit_difference": largest,
        "kl": kl,
        "greedy_agreement": _share(map(list.__eq__, wanted, written)),
        "ended_trained": _share(answer[-1:] == [eos] for answer in wanted),
        "ended": _share(answer[-1:] == [eos] for answer in written),
        "vocabulary_unchanged": _vocabulary(merged) == _vocabulary(trained),
        "finite": all(bool(p.isfinite().all()) for p in merged.parameters()),
        "no_quantization_config": not _is_quantized(merged, folder),
        "reloaded_agreement": reloaded,
    }
    return Proof(**measured, failures=_failures(measured, max_kl, min_agreement))


def _failures(m, max_kl, min_agreement):
    """What forbids publishing. m: {name of a Proof's field: value}."""
    rules = [
        (
            not m["kl"] <= max_kl,  # written so that NaN counts too
            f"KL is {m['kl']:.1e} nats a token, more than {max_kl:g}",
        ),
        (
            m["greedy_agreement"] < min_agreement,
            f"{m['greedy_agreement']:.0%} of the greedy answers agree, fewer than "
            f"{min_agreement:.0%}",
        ),
        (m["ended_trained"] == 0, "no answer ends, not even the trained model's"),
        (
            m["ended"] < m["ended_trained"] - (1 - min_agreement),
            f"{m['ended']:.0%} of the answers end; {m['ended_trained']:.0%} did before",
        ),
        (not m["vocabulary_unchanged"], "the vocabulary has another size"),
        (not m["finite"], "a weight is NaN or infinite"),
        (not m["no_quantization_config"], "a quantization config is left"),
        (
            m["reloaded_agreement"] not in (None, 1.0),
            "the saved folder answers otherwise in a new process (is the end token in "
            "its generation config?)",
        ),
    ]
    return tuple(words for broken, words in rules if broken)


def _share(hits):
    hits = list(hits)
    return sum(hits) / len(hits)


def _vocabulary(model):
    tables = (model.get_input_embeddings(), model.get_output_embeddings())
    return [table.weight.shape[0] for table in tables], model.config.vocab_size


def _is_quantized(model, folder):
    if getattr(model.config, "quantization_config", None) is not None:
        return True
    saved = Path(folder or ".") / "config.json"
    return folder is not None and "quantization_config" in json.loads(saved.read_text())


def _encode(tokenizer, prompts):
    texts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    # The template has written the BOS.
    return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]


@torch.no_grad()
def _greedy(model, questions, pad, eos, max_new_tokens):
    """Token ids of each greedy answer, up to and including the end token.

    eos: None leaves it to the model's own generation config where to stop.
    """
    model.eval()
    answers = []
    stop = {} if eos is None else {"eos_token_id": eos}
    for start in range(0, len(questions), BATCH):
        batch = questions[start : start + BATCH]
        width = max(map(len, batch))
        ids = torch.tensor([[pad] * (width - len(q)) + q for q in batch])
        mask = torch.tensor([[0] * (width - len(q)) + [1] * len(q) for q in batch])
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            **stop,
        )[:, width:].tolist()
        for answer in out:
            while answer and answer[-1] == pad:
                answer.pop()
            answers.append(answer)
    return answers


@torch.no_grad()
def _distance(trained, merged, questions, answers):
    """(mean KL, largest logit difference, tokens) over the answers' tokens."""
    total, largest, count = 0.0, 0.0, 0
    for question, answer in zip(questions, answers, strict=True):
        ids = torch.tensor([question + answer])
        # The positions that predict the answer's tokens: one before each.
        first, last = (
            model(ids.to(model.device), logits_to_keep=len(answer) + 1).logits[0, :-1]
            for model in (trained, merged)
        )
        first, last = first.double(), last.double().to(first.device)
        log_p, log_q = first.log_softmax(-1), last.log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
        largest = max(largest, float((first - last).abs().max()))
        count += len(answer)
    return total / max(count, 1), largest, count


def _answers_of_new_process(folder, prompts, max_new_tokens):
    job = json.dumps({"prompts": prompts, "max_new_tokens": max_new_tokens})
    done = subprocess.run(
        [sys.executable, "-m", "course_utils.proof", str(folder)],
        input=job,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"A new process cannot use the folder {folder}: {last}")
    return json.loads(done.stdout.splitlines()[-1])


def answer_from_folder(folder, prompts, max_new_tokens=112):
    """Greedy token ids from a saved folder, with its own template and end token."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    if torch.cuda.is_available():
        model = model.to("cuda")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    questions = _encode(tokenizer, prompts)
    return _greedy(model, questions, tokenizer.pad_token_id, None, max_new_tokens)


def main():
    job = json.load(sys.stdin)
    print(json.dumps(answer_from_folder(sys.argv[1], **job)))
