"""Rows as users have them, awkward in one way each, and tokenizers that read them."""

from tiny_llama import tiny_tokenizer

from course_utils import chat


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def messages(chosen, rejected, *prompt):
    return {
        "prompt": list(prompt) or [user("What is 47 + 38?")],
        "chosen": [assistant(chosen)],
        "rejected": [assistant(rejected)],
    }


ASKED = user("Name three rivers.")
THINKING = "{% if thinking %}Think. {% endif %}"
AWKWARD = {
    "messages": messages("It is 85.", "It is 75."),
    "a system message": messages(
        "85", "75", {"role": "system", "content": "You are a helpful assistant."}, ASKED
    ),
    "several turns": messages(
        "The Rhine.", "No.", ASKED, assistant("The Elbe."), user("And two more?")
    ),
    "no prompt, messages": {
        "chosen": [ASKED, assistant("The Rhine, the Danube and the Elbe.")],
        "rejected": [ASKED, assistant("No.")],
    },
    "a prompt as string beside messages": {
        "prompt": "Name three rivers.",
        "chosen": [ASKED, assistant("The Rhine, the Danube and the Elbe.")],
        "rejected": [ASKED, assistant("No.")],
    },
    "strings": {"prompt": "What is 47 + 38?", "chosen": " It is 85.", "rejected": " 7"},
    "strings without a space between": {
        "prompt": "What is 47 + 38? It",
        "chosen": "is 85.",
        "rejected": "self is 85.",
    },
    "strings that end in a newline": {
        "prompt": "What is 47 + 38?\n",
        "chosen": "\nIt is 85.\n",
        "rejected": "It is 75.\n\n",
    },
    "no prompt, strings": {
        "chosen": "What is the capital of France? Paris.",
        "rejected": "What is the capital of France? Rome.",
    },
    "no prompt, strings that part within a word": {
        "chosen": "The capital of France is Paris.",
        "rejected": "The capital of France is Palermo.",
    },
    "an empty prompt": {"prompt": "", "chosen": "Paris.", "rejected": "Rome."},
    "a begin token in the prompt": {
        "prompt": "<|begin_of_text|>What is 47 + 38?",
        "chosen": " It is 85.",
        "rejected": " 75",
    },
    "an end token in the answer": {
        "prompt": "What is 47 + 38?",
        "chosen": " It is 85.<|eot_id|>",
        "rejected": " 75<|end_of_text|>",
    },
    "long answers": messages("yes " * 90, "no " * 80),
    "one long answer": messages("It is 85.", "no " * 120),
    "the prompt ends with the assistant": messages(
        "85.", "75.", user("What is 47 + 38?"), assistant("It is ")
    ),
    "white space around": messages("  It is 85.  ", "\n\nIt is 75.\n"),
    "other alphabets": messages("Москва 北京 🙂", "पेरिस é́"),
    "columns that nobody reads": messages("a", "b") | {"score": 3.0, "id": "x"},
    "arguments of the template": messages("It is 85.", "It is 75.")
    | {"chat_template_kwargs": {"thinking": True}},
    "one answer begins with the other": messages("It is 85.", "It is 85. No, 75."),
    "the same answer twice": messages("It is 85.", "It is 85."),
    "an answer that repeats the question": {
        "prompt": "What is 47 + 38?",
        "chosen": " What is 47 + 38? It is 85.",
        "rejected": " 75",
    },
}


def both_tokenizers():
    """Llama 3's way to cut words, and GPT-2's, which joins prompt and answer."""
    found = []
    for gpt2_split in (False, True):
        reading = tiny_tokenizer(gpt2_split)
        reading.chat_template = chat.LLAMA3_TEMPLATE + THINKING
        reading.eos_token, reading.pad_token = "<|eot_id|>", "<|end_of_text|>"
        found.append(reading)
    return found
