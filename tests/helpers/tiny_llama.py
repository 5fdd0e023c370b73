"""Tiny fakes shared by tests: a Llama-3-like tokenizer and a Llama of few weights.

No network, no files but what a test asks for.
"""

import functools

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_2|>",
    "<|eot_id|>",
]
TEXTS = [
    "What is the capital of France? The capital of France is Paris.",
    "You are a helpful assistant. user system assistant\n\n",
    "Name three rivers. Three rivers are the Rhine, the Danube and the Elbe.",
    "What is 47 + 38? It is 85, because 7 + 8 = 15 and 40 + 30 = 70.",
]
# Newlines are cut before the text that follows them, and never joined with it, as in
# Llama 3.
NEWLINES_APART = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"


@functools.cache
def _trained(gpt2_split):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if gpt2_split
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(NEWLINES_APART), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(gpt2_split=False):
    """A byte-level BPE tokenizer with Llama 3's special names, without a chat template.

    gpt2_split: cut words as GPT-2 does, where a newline before a word joins differently
        than at the end.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(gpt2_split)),
        bos_token="<|begin_of_text|>",
        eos_token="<|end_of_text|>",
        clean_up_tokenization_spaces=False,
    )


def tiny_model(vocab_size, hidden_size=16, seed=0, **config):
    """A random Llama with the given vocabulary, fp32, untied head."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**(settings | config)))
