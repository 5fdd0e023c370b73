"""A chat with one model: the whole Space.

It needs gradio, torch, transformers, and `space.json` beside it, which names the model.
MODEL_ID names another one, such as a folder on this machine.

A visitor may send anything, also without the page. So roles, lengths and numbers have
bounds, and a text that spells one of the model's control tokens stays text.
"""

import functools
import json
import os
import threading
from pathlib import Path

SETTINGS = Path(__file__).with_name("space.json")
MAX_MESSAGE = 8_000  # characters
MAX_HISTORY = 32_000  # characters of all earlier turns
MAX_TURNS = 64
MAX_NEW_TOKENS = 512
MAX_TEMPERATURE = 1.5
# Visitors come at the same time, and neither a tokenizer nor a card's memory is made
# for that: one after the other.
ONE_AT_A_TIME = threading.RLock()


def settings() -> dict:
    """{"model", "title", "description", "examples"}, the model as MODEL_ID wants it."""
    found = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return found | {"model": os.environ.get("MODEL_ID") or found["model"]}


@functools.cache
def load(name: str) -> tuple:
    """(model, tokenizer), on the GPU if there is one. Private ones need HF_TOKEN."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # Left open, transformers would ask at the keyboard whether to run a model's code.
    model = AutoModelForCausalLM.from_pretrained(
        name, use_safetensors=True, trust_remote_code=False
    ).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def answer(
    message: str,
    history: list[dict],
    temperature: float = 0.0,
    max_new_tokens: int = 256,
) -> str:
    """The model's next turn, as text.

    message: what was just typed. history: earlier turns, {"role", "content"} each, as
    Gradio keeps them. temperature 0 takes the likeliest token every time.
    Raises: ValueError for a role other than user and assistant, for a text or number
    out of bounds, and if the conversation fills what the model can read.
    """
    temperature = _number("temperature", temperature, 0, MAX_TEMPERATURE)
    wanted = int(_number("length of the answer", max_new_tokens, 1, MAX_NEW_TOKENS))
    turns = [*_turns(history), {"role": "user", "content": _text(message)}]
    if len(turns[-1]["content"]) > MAX_MESSAGE:
        raise ValueError(f"A message has at most {MAX_MESSAGE} characters.")
    with ONE_AT_A_TIME:
        return _answer(turns, temperature, wanted)


def _answer(turns: list[dict], temperature: float, wanted: int) -> str:
    import torch

    model, tokenizer = load(settings()["model"])
    ids = _ids(tokenizer, turns)
    room = model.config.max_position_embeddings - len(ids)
    if room < 1:
        raise ValueError(f"The conversation has {len(ids)} tokens: start a new one.")
    inputs = torch.tensor([ids], device=model.device)
    sampling = {"do_sample": True, "temperature": temperature}
    if temperature < 0.01:  # so cold that nothing is left to draw
        sampling = {"do_sample": False}
    with torch.no_grad():
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=min(wanted, room),
            **sampling,
        )
    return tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True).strip()


def _ids(tokenizer, turns: list[dict]) -> list[int]:
    """Token ids of the conversation, with no control token but the template's own.

    A space goes behind the first character of each control token that a text spells.
    """
    control = [t.content for t in tokenizer.added_tokens_decoder.values() if t.special]
    control = sorted({*control, *tokenizer.all_special_tokens}, key=len, reverse=True)

    def rendered(texts: list[str]) -> list[int]:
        named = [t | {"content": c} for t, c in zip(turns, texts, strict=True)]
        text = tokenizer.apply_chat_template(
            named, add_generation_prompt=True, tokenize=False
        )
        # The template has written the special tokens.
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    plain = []
    for turn in turns:
        text = turn["content"]
        for token in control:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        plain.append(text)
    ids, special = rendered(plain), set(tokenizer.convert_tokens_to_ids(control))
    own = rendered(["x"] * len(turns))
    if sum(i in special for i in ids) != sum(i in special for i in own):
        raise ValueError("The text spells a control token of the model.")
    return ids


def _turns(history: list[dict]) -> list[dict]:
    if not isinstance(history, list) or len(history) > MAX_TURNS:
        raise ValueError(f"A conversation has at most {MAX_TURNS} turns: start anew.")
    turns = []
    for turn in history:
        if not isinstance(turn, dict) or turn.get("role") not in ("user", "assistant"):
            raise ValueError("A conversation has turns of user and assistant only.")
        turns.append({"role": turn["role"], "content": _text(turn.get("content"))})
    if sum(len(turn["content"]) for turn in turns) > MAX_HISTORY:
        raise ValueError("The conversation is too long: start a new one.")
    return turns


def _text(content: str | list[dict]) -> str:
    """A turn's text; Gradio keeps a list of parts."""
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        texts = [part.get("text") for part in parts if part.get("type") == "text"]
        content = "".join(texts) if all(isinstance(t, str) for t in texts) else None
    if not isinstance(content, str):
        raise ValueError("A message is text.")
    return content.encode("utf-8", "replace").decode("utf-8")  # no half characters


def _number(what: str, value: float, lowest: float, highest: float) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not lowest <= value <= highest:  # NaN is not
        raise ValueError(f"The {what} is a number from {lowest} to {highest}.")
    return float(value)


def build() -> object:
    """The page, as a gradio.ChatInterface."""
    import gradio

    def chat(message, history, temperature, max_new_tokens):
        try:
            return answer(message, history, temperature, max_new_tokens)
        except ValueError as error:
            raise gradio.Error(str(error)) from error

    found = settings()
    return gradio.ChatInterface(
        chat,
        title=found["title"],
        description=found["description"],
        examples=[[example, 0.0, 256] for example in found["examples"]],
        cache_examples=False,
        run_examples_on_click=False,
        additional_inputs=[
            gradio.Slider(0, MAX_TEMPERATURE, 0.0, label="Temperature"),
            gradio.Slider(
                16, MAX_NEW_TOKENS, 256, step=16, label="Longest answer, in tokens"
            ),
        ],
    )


if __name__ == "__main__":
    load(settings()["model"])  # before the first visitor waits for it
    build().queue(max_size=32).launch()
