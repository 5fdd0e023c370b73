"""A tiny Llama whose adapter has learned three answers and when to stop."""

import torch
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_model, tiny_tokenizer

from course_utils import chat, models

QUESTIONS = ["What is 47 + 38?", "Name three rivers.", "What is the capital of France?"]
ANSWERS = ["It is 85.", "Three rivers are the Rhine, the Danube.", "Paris."]
PROMPTS = [[{"role": "user", "content": question}] for question in QUESTIONS]


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    chat.use_llama3_chat(tokenizer)
    return tokenizer


def base_model(tokenizer):
    return tiny_model(len(tokenizer), hidden_size=128, seed=3)


def trained_model(tokenizer, steps=100):
    """A PeftModel on base_model, with trained token rows."""
    control = tokenizer.convert_tokens_to_ids(["<|start_header_id|>", "<|eot_id|>"])
    lora = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=models.LINEAR_LAYERS,
        task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": control, "lm_head": control},
    )
    torch.manual_seed(0)
    model = get_peft_model(base_model(tokenizer), lora)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    rows = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        said = [*prompt, {"role": "assistant", "content": answer}]
        ids, start = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (
                tokenizer.apply_chat_template(said, tokenize=False),
                tokenizer.apply_chat_template(
                    prompt, tokenize=False, add_generation_prompt=True
                ),
            )
        )
        labels = [-100] * len(start) + ids[len(start) :]
        rows.append((torch.tensor([ids]), torch.tensor([labels])))
    for _ in range(steps):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
