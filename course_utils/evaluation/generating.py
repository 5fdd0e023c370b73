"""What a model writes, and the verifier's word on it."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.data import world
from course_utils.evaluation.scoring import autocast


@dataclass(frozen=True)
class Generation:
    """What a model wrote after a prompt, and whether it ended its turn by itself."""

    text: str
    ended: bool


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict]],
    temperature: float,
    max_new_tokens: int = 112,
    batch_size: int = 70,
    seed: int = 0,
) -> list[Generation]:
    """One answer per prompt. temperature 0: greedy; otherwise plain sampling (top-p 1).

    prompts: list of lists of messages. Returns: list of Generation in the same order.
    The turn's end token is the tokenizer's eos token.
    """
    torch.manual_seed(seed)
    texts = [
        tokenizer.apply_chat_template(p, add_generation_prompt=True, tokenize=False)
        for p in prompts
    ]
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    sampling = (
        {"do_sample": False}
        if temperature == 0
        else {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    )
    out = [None] * len(texts)
    was_training = model.training
    model.eval()
    for at in range(0, len(order), batch_size):
        batch = order[at : at + batch_size]
        inputs = tokenizer(
            [texts[i] for i in batch],
            add_special_tokens=False,  # the template has written them
            return_tensors="pt",
            padding=True,
            padding_side="left",
            return_token_type_ids=False,
        ).to(model.device)
        with autocast(model):
            ids = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **sampling,
            )[:, inputs["input_ids"].shape[1] :]
        for i, answer in zip(batch, ids, strict=True):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            out[i] = Generation(text, bool((answer == tokenizer.eos_token_id).any()))
    model.train(was_training)
    return out


@dataclass(frozen=True)
class Verdicts:
    """The verifier's word on N generations of the small world; all arrays (N,) bool."""

    content: np.ndarray
    manners: np.ndarray
    ending: np.ndarray
    ended: np.ndarray

    @property
    def good(self) -> np.ndarray:
        return self.content & self.manners & self.ending & self.ended


def verify_generations(
    prompts: list[list[dict]], generations: list[Generation]
) -> Verdicts:
    """Judge generations exactly, by program; only the small world's prompts can be."""
    verdicts = [
        world.verify(prompt, g.text)
        for prompt, g in zip(prompts, generations, strict=True)
    ]
    columns = np.array(verdicts, dtype=bool).reshape(-1, 3).T
    return Verdicts(*columns, np.array([g.ended for g in generations], dtype=bool))
