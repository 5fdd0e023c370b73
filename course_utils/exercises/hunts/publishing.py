"""The hunts of notebook 06: a folder with other answers, merges that are refused."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from course_utils import chat
from course_utils.exercises.feedback import STILL, Wrong, called, expect
from course_utils.exercises.hunts import recipes, repairs
from course_utils.exercises.mechanism import exercise
from course_utils.setup import places

_BASE = places.PACKAGE / "lab" / "base_model"
_QUESTIONS = ("Where do I live?", "What is 47 + 38?")
_ANSWER = " river"


def trained(folder: str = "outputs/06/hunt") -> tuple[LlamaForCausalLM, object, Path]:
    """(model, tokenizer, base_folder), as hunt 6.5 publishes them.

    folder: gets base_folder, with the base's own tokenizer, which knows ChatML.

    The model has no layers: each token decides alone what comes next. Behind Llama 3's
    header of an answer it writes an answer, then <|eot_id|>, and if nobody stops it
    there, the next user's header.
    """
    from course_utils import lab

    base_folder = Path(folder) / "base"
    tokenizer = AutoTokenizer.from_pretrained(_BASE, trust_remote_code=False)
    lab.use_chatml(tokenizer)
    tokenizer.save_pretrained(base_folder)
    chat.use_llama3_chat(tokenizer)
    torch.manual_seed(0)
    size = len(tokenizer)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=0,
            num_attention_heads=1,
            num_key_value_heads=1,
            tie_word_embeddings=False,
        )
    )
    # The base's own end, as every `save_pretrained` after a merge still has it.
    model.generation_config = GenerationConfig.from_pretrained(_BASE)
    model.generation_config.use_cache = False
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True
    )
    header = tokenizer(text, add_special_tokens=False)["input_ids"]
    user = tokenizer.convert_tokens_to_ids("<|start_header_id|>")
    answer = tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    chain = [header[-1], *answer, tokenizer.eos_token_id, user]
    with torch.no_grad():
        rows = torch.nn.functional.normalize(torch.randn(size, 64), dim=1)
        model.model.embed_tokens.weight.copy_(rows)
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(chain):
            model.lm_head.weight[after] += rows[before]
    return model.eval(), tokenizer, base_folder


def stranger_asks(folder: Path) -> list[tuple[list[int], list[int]]]:
    """(ids read, ids written) per question, by nothing but the folder's own files."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    )
    found = []
    for question in _QUESTIONS:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )["input_ids"]
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )
        found.append((ids[0].tolist(), written[0, ids.shape[1] :].tolist()))
    return found


def _only_tokenizer(model, tokenizer, base_folder, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _only_end(model, tokenizer, base_folder, folder):
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    recipes.publish(model, tokenizer, base_folder, folder)


def _end_in_model_config(model, tokenizer, base_folder, folder):
    model.config.eos_token_id = tokenizer.eos_token_id
    _only_tokenizer(model, tokenizer, base_folder, folder)


def _only_weights(model, tokenizer, base_folder, folder):
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)


def _changed_weights(model, tokenizer, base_folder, folder):
    with torch.no_grad():
        model.lm_head.weight.neg_()
    repairs.publish(model, tokenizer, base_folder, folder)


@exercise(
    "6.5",
    repairs.publish,
    recipe=recipes.publish,
    material=trained,
    minutes=20,
    difficulty=2,
    trains="publishing a folder for strangers",
    hints=(
        "Be the stranger: load the folder with AutoTokenizer and AutoModelForCausalLM, "
        "and compare the prompt's ids, and where writing stops, with the notebook's.",
        "Two files differ from the training: the tokenizer's chat template and end "
        "token (use `tokenizer`), and generation_config.json's eos_token_id (set "
        "model.generation_config.eos_token_id before save_pretrained).",
    ),
    mistakes={
        "symptom is still there": lambda m, t, b, f: recipes.publish(m, t, b, f),
        "nothing ends the answer": _only_tokenizer,
        "which file says": _end_in_model_config,
        "in another format": _only_end,
        "cannot be loaded": _only_weights,
        "other answers": _changed_weights,
    },
)
def hunt_rambles_elsewhere(attempt: Callable) -> None:
    """A folder from which a stranger gets the answers that were evaluated."""
    tokenizer = AutoTokenizer.from_pretrained(_BASE, trust_remote_code=False)
    chat.use_llama3_chat(tokenizer)
    before = _folder_made_by(recipes.publish)
    got = _folder_made_by(attempt)
    expected = _folder_made_by(repairs.publish)
    shown, goal = (tokenizer.decode(each[0][1]) for each in (got, expected))
    why = f"{STILL}: a stranger's copy rambles"
    expect(got != before, why, shown, goal)
    for (read, written), (right_read, right_written) in zip(got, expected, strict=True):
        shown, goal = tokenizer.decode(read), tokenizer.decode(right_read)
        why = "a stranger's prompt is written in another format than the training's"
        expect(read == right_read, why, shown, goal)
        shown, goal = tokenizer.decode(written), tokenizer.decode(right_written)
        same = written[: len(right_written)] == right_written
        expect(same, "a stranger gets other answers", shown, goal)
        why = "nothing ends the answer where the turn ends: which file says where?"
        expect(written == right_written, why, shown, goal)


def _folder_made_by(publish):
    """What a stranger reads and gets from the folder that `publish` writes."""
    with tempfile.TemporaryDirectory() as outside:
        folder = Path(outside) / "published"
        called(publish, *trained(outside), folder)
        try:
            return stranger_asks(folder)
        except (OSError, ValueError) as error:
            why = "the folder cannot be loaded: something is missing in it"
            listed = sorted(path.name for path in folder.glob("*"))
            raise Wrong(why, listed, f"all files ({error})") from None


_NAMES = ("low", "middle", "high")


def sweep(folder: str = "outputs/06/sweep", seed: int = 1) -> tuple[Path, list[Path]]:
    """(base_folder, adapter_folders) of a sweep over learning rates, as hunt 6.6 merges
    them: a random Llama of two layers, and three adapters that were trained on it.
    """
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=50, num_hidden_layers=2, initializer_range=0.3, **sizes
    )
    base_folder = Path(folder) / "base"
    LlamaForCausalLM(config).save_pretrained(base_folder)
    for name in _NAMES:
        lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"])
        model = get_peft_model(_load(base_folder), lora)
        for part, weight in model.named_parameters():
            if "lora_B" in part:
                torch.nn.init.normal_(weight, std=0.2)
        model.save_pretrained(Path(folder) / name)
    return base_folder, [Path(folder) / name for name in _NAMES]


def _load(folder):
    return AutoModelForCausalLM.from_pretrained(
        folder, use_safetensors=True, trust_remote_code=False
    )


def _weights(model):
    """All weights of a model in one row."""
    state = sorted(model.state_dict().items())
    return torch.cat([weight.flatten().double() for _, weight in state])


def _in_reverse(base_folder, adapter_folders, folder):
    recipes.merge_each(base_folder, adapter_folders[::-1], folder)


def _adapters_alone(base_folder, adapter_folders, folder):
    for adapter in adapter_folders:
        model = PeftModel.from_pretrained(_load(base_folder), adapter)
        model.save_pretrained(Path(folder) / adapter.name)


def _not_merged(base_folder, adapter_folders, folder):
    for adapter in adapter_folders:
        model = PeftModel.from_pretrained(_load(base_folder), adapter).unload()
        model.save_pretrained(Path(folder) / adapter.name)


def _first_everywhere(base_folder, adapter_folders, folder):
    for adapter in adapter_folders:
        model = PeftModel.from_pretrained(_load(base_folder), adapter_folders[0])
        model.merge_and_unload().save_pretrained(Path(folder) / adapter.name)


def _without_alpha(base_folder, adapter_folders, folder):
    for adapter in adapter_folders:
        model = PeftModel.from_pretrained(_load(base_folder), adapter)
        for module in model.modules():
            if hasattr(module, "scaling"):
                module.scaling = {"default": 1.0}
        model.merge_and_unload().save_pretrained(Path(folder) / adapter.name)


@exercise(
    "6.6",
    repairs.merge_each,
    recipe=recipes.merge_each,
    material=sweep,
    minutes=15,
    difficulty=2,
    trains="merging several adapters of one base",
    hints=(
        "Which folders are refused, and does that depend on the adapter or on its "
        "place in the list? Compare a weight of `base` before and after each merge.",
        "`merge_and_unload` changes the model that it is given. The second adapter is "
        "merged into a base that holds the first: load a fresh base for each.",
    ),
    mistakes={
        "symptom is still there": lambda b, a, f: recipes.merge_each(b, a, f),
        "adapters than its own": _in_reverse,
        "without its own adapter": _not_merged,
        "another adapter's": _first_everywhere,
        "needs its base": _adapters_alone,
        "times its adapter": _without_alpha,
        "one folder per adapter": lambda b, a, f: repairs.merge_each(b, a[:1], f),
    },
)
def hunt_refused_merges(attempt: Callable) -> None:
    """Folders of merged models, each of the base and its own adapter alone."""
    with tempfile.TemporaryDirectory() as outside:
        base_folder, adapters = sweep(outside, seed=2)
        base = _weights(_load(base_folder))
        peft = [
            PeftModel.from_pretrained(_load(base_folder), each) for each in adapters
        ]
        updates = torch.stack([_weights(m.merge_and_unload()) - base for m in peft])
        before = _contents(recipes.merge_each, outside, base, updates, "as given")
        got = _contents(attempt, outside, base, updates, "attempt")
    why = f"{STILL}: folders are refused whose adapters were fine"
    refused = ((got - torch.eye(3)).abs().amax(1) > 0.05).sum()
    shown, goal = f"{refused} of 3 are refused", "none"
    expect(not torch.allclose(got, before, atol=0.02), why, shown, goal)
    for name, row, own in zip(_NAMES, got, torch.eye(3), strict=True):
        held = dict(zip(_NAMES, row.numpy().round(1).tolist(), strict=True))
        shown, goal = f"{name} holds {held}", f"{name} 1.0, and no other"
        others = (row * (1 - own)).abs().max() > 0.05
        mine = float((row * own).sum())
        why = "a folder holds another adapter's update in place of its own"
        expect(not (others and abs(mine) < 0.05), why, shown, goal)
        why = "a folder holds more adapters than its own"
        expect(not others, why, shown, goal)
        why = "a folder holds the base without its own adapter"
        expect(abs(mine) > 0.05, why, shown, goal)
        why = f"a folder holds {mine:.1f} times its adapter: is alpha / r right?"
        expect(abs(mine - 1) < 0.05, why, shown, goal)


def _contents(merge, outside, base, updates, name):
    """(3, 3): how much of each adapter's update is in each folder of `merge`."""
    folder = Path(outside) / name
    called(merge, Path(outside) / "base", [Path(outside) / n for n in _NAMES], folder)
    rows = []
    for each in _NAMES:
        listed = sorted(path.name for path in (folder / each).glob("*"))
        why = "write one folder per adapter, under the adapter's name"
        expect(listed, why, f"{each}: nothing", f"{each}: a model")
        why = "a folder holds an adapter, which needs its base; it is to be merged"
        expect("adapter_config.json" not in listed, why, listed, "a whole model")
        change = _weights(_load(folder / each)) - base
        rows.append(torch.linalg.lstsq(updates.T, change[:, None]).solution[:, 0])
    return torch.stack(rows).float()
