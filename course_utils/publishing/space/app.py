"""A chat with one model: the whole Space.

It needs gradio, torch, transformers, and `space.json` beside it, which names the model.
MODEL_ID names another one, such as a folder on this machine.
"""

import functools
import json
import os
from pathlib import Path

SETTINGS = Path(__file__).with_name("space.json")


def settings():
    """{"model", "title", "description", "examples"}, the model as MODEL_ID wants it."""
    found = json.loads(SETTINGS.read_text(encoding="utf-8"))
    return found | {"model": os.environ.get("MODEL_ID") or found["model"]}


@functools.cache
def load(name):
    """(model, tokenizer), on the GPU if there is one. Private ones need HF_TOKEN."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(name, use_safetensors=True).eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, AutoTokenizer.from_pretrained(name)


def answer(message, history, temperature=0.0, max_new_tokens=256):
    """The model's next turn, as text.

    message: what was just typed. history: earlier turns, {"role", "content"} each, as
    Gradio keeps them. temperature 0 takes the likeliest token every time.
    Raises: ValueError if the conversation fills what the model can read.
    """
    import torch

    model, tokenizer = load(settings()["model"])
    turns = [{"role": t["role"], "content": _text(t["content"])} for t in history]
    text = tokenizer.apply_chat_template(
        [*turns, {"role": "user", "content": message}],
        add_generation_prompt=True,
        tokenize=False,
    )
    # The template has written the special tokens.
    inputs = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    inputs = {
        name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")
    }
    length = inputs["input_ids"].shape[1]
    room = model.config.max_position_embeddings - length
    if room < 1:
        raise ValueError(f"The conversation has {length} tokens: start a new one.")
    sampling = {"do_sample": True, "temperature": temperature} if temperature else {}
    with torch.no_grad():
        out = model.generate(
            **inputs, max_new_tokens=min(int(max_new_tokens), room), **sampling
        )
    return tokenizer.decode(out[0, length:], skip_special_tokens=True).strip()


def _text(content):
    """A turn's text; Gradio keeps a list of parts."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def build():
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
            gradio.Slider(0, 1.5, 0.0, label="Temperature"),
            gradio.Slider(16, 512, 256, step=16, label="Longest answer, in tokens"),
        ],
    )


if __name__ == "__main__":
    load(settings()["model"])  # before the first visitor waits for it
    build().launch()
