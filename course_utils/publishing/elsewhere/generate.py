"""A run's folder for either tool: the filled configuration, and the pairs as its rows.

Both tools take user and assistant in turns, the user last, with at most one system
message before them.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jinja2
import yaml

from course_utils import models
from course_utils.setup import folders
from course_utils.setup.profiles import Profile

# <|start_header_id|>, <|end_header_id|> and <|eot_id|> of every Llama 3 tokenizer.
LLAMA3_CONTROL_IDS = (128006, 128007, 128009)
# LLaMA-Factory's defaults are from, value, human and gpt.
_INFO = {
    "file_name": "train.json",
    "ranking": True,
    "formatting": "sharegpt",
    "columns": {name: name for name in ("messages", "chosen", "rejected")},
    "tags": {f"{name}_tag": name for name in ("role", "content", "user", "assistant")}
    | {"system_tag": "system"},
}


def axolotl(
    profile: Profile,
    mix: Iterable[dict],
    folder: str | Path,
    control_ids: Sequence[int] = LLAMA3_CONTROL_IDS,
    steps: int = 124,
    warmup_steps: int = 10,
) -> Path:
    """Write the course's run for Axolotl: axolotl.yaml and train.jsonl.

    mix: a mixing.Mix, whose training pairs are taken, or an iterable of pairs. folder:
    replaced if it is an earlier run of this function. control_ids: token ids whose rows
    are trained, as chat.use_llama3_chat returns them. steps, warmup_steps: optimizer
    steps; notebook 04's by default.
    Returns: Path of the configuration.
    Raises: ValueError naming the row that the format cannot hold; as
        folders.written_whole. Nothing is left half written.
    """
    rows = [
        {"system": system, "chosen": [*turns, chosen], "rejected": [*turns, rejected]}
        for system, turns, chosen, rejected in _conversations(mix)
    ]
    text = _filled("axolotl.yaml", profile, len(rows), steps, warmup_steps, control_ids)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return _write(folder, {"axolotl.yaml": text, "train.jsonl": lines})


def llama_factory(
    profile: Profile,
    mix: Iterable[dict],
    folder: str | Path,
    steps: int = 124,
    warmup_steps: int = 10,
) -> Path:
    """Write the course's run for LLaMA-Factory: llama_factory.yaml, dataset_info.json
    and train.json.

    Arguments, result and errors as axolotl; LLaMA-Factory cannot train single token
    rows, so there are no control_ids.
    """
    rows = [
        {
            "messages": [{"role": "system", "content": system}] * bool(system) + turns,
            "chosen": chosen,
            "rejected": rejected,
        }
        for system, turns, chosen, rejected in _conversations(mix)
    ]
    text = _filled("llama_factory.yaml", profile, len(rows), steps, warmup_steps)
    return _write(
        folder,
        {
            "llama_factory.yaml": text,
            "dataset_info.json": json.dumps({"course": _INFO}, indent=2) + "\n",
            "train.json": json.dumps(rows, ensure_ascii=False, indent=1) + "\n",
        },
    )


def _filled(
    name: str,
    profile: Profile,
    pairs: int,
    steps: int,
    warmup_steps: int,
    control_ids: Sequence[int] = (),
) -> str:
    """The configuration of this name, with the profile's settings in it."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["yaml"] = _as_yaml
    text = Path(__file__).with_name(name).read_text(encoding="utf-8")
    return environment.from_string(text).render(
        profile=profile,
        base_model=profile.ungated_copy or profile.base_model,
        pairs=pairs,
        steps=steps,
        warmup_steps=warmup_steps,
        control_ids=list(control_ids),
        linear_layers=models.LINEAR_LAYERS,
    )


def _as_yaml(value: object) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1000)
    return text.strip().removesuffix("...").strip()


def _write(folder: str | Path, files: dict[str, str]) -> Path:
    first = next(iter(files))
    with folders.written_whole(folder, writer=f"run of {first}") as partial:
        for name, text in files.items():
            folders.write_text(partial / name, text)
    return Path(folder) / first


def _conversations(mix: Iterable[dict]) -> Iterator[tuple[str, list, dict, dict]]:
    """Per pair: system text or "", turns before the answer, chosen, rejected.

    Texts are stripped: the chat templates of the course and of Axolotl do that anyway,
    LLaMA-Factory's does not.
    """
    pairs = list(getattr(mix, "train", mix))
    if not pairs:
        raise ValueError("There is no pair to write.")
    for row, pair in enumerate(pairs):
        turns = [_stripped(turn) for turn in pair["prompt"]]
        system = ""
        if turns and turns[0]["role"] == "system":
            system = turns.pop(0)["content"]
        roles = [turn["role"] for turn in turns]
        if roles != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise ValueError(
                f"row {row}, prompt: the roles are {', '.join(roles) or 'none'}. "
                "Axolotl and LLaMA-Factory take user and assistant in turns, the user "
                "last, with at most one system message before them. Drop the row."
            )
        for side in ("chosen", "rejected"):
            if [turn["role"] for turn in pair[side]] != ["assistant"]:
                raise ValueError(
                    f"row {row}, {side}: must be one assistant message. Move the turns "
                    "before it to prompt."
                )
        yield (
            system,
            turns,
            _stripped(pair["chosen"][0]),
            _stripped(pair["rejected"][0]),
        )


def _stripped(turn: dict) -> dict:
    return {"role": turn["role"], "content": turn["content"].strip()}
