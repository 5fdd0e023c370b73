"""Publishing a model: its name, its card, its upload.

Knows: Llama 3's naming rule, the hub's model card, the hub's client.
Does not know: how anything was measured. A card holds measured JSON and nothing else,
and `upload` refuses a folder whose proof failed.
"""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.utils import validate_repo_id

from course_utils.profiles import is_hub_id
from course_utils.proof import MAX_KL, Proof, prove_equal

__all__ = [
    "MAX_KL",
    "Proof",
    "Upload",
    "card",
    "check_name",
    "is_llama3",
    "prove_equal",
    "upload",
    "write_card",
]

RESULTS = "results.json"
CARD = "README.md"
# From the Meta Llama 3 Community License, 1.b.i and 1.b.iii.
BANNER = "Built with Meta Llama 3"
NOTICE = (
    "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © "
    "Meta Platforms, Inc. All Rights Reserved."
)
REQUIRED = ("name", "base_model", "license", "data", "settings", "evaluation", "proof")
# Whatever else lies in the folder (optimizer states, logs, a .env) stays here.
SENT = ("*.safetensors", "*.json", "*.jinja", CARD, "LICENSE", "NOTICE")


def is_llama3(base_model):
    """Does this hub id or folder name a Llama 3 (or 3.x) model?"""
    return bool(re.search(r"llama[-_ ]?3", base_model, re.IGNORECASE))


def check_name(name, base_model):
    """Refuse a name that a derivative of Llama 3 may not have, or that the hub rejects.

    name: "owner/model" or "model". base_model: hub id of what it was trained from.
    Returns: name. Raises: ValueError saying what the licence asks for.
    Source: Meta Llama 3 Community License, 1.b.i. Llama 3.1 and later have licences of
    their own: read them; the same rule is applied here.
    """
    validate_repo_id(name)
    model = name.rsplit("/", 1)[-1]
    if is_llama3(base_model) and not re.match(r"Llama[-_]?3(?!\d)", model):
        raise ValueError(
            f"{model!r} is made from {base_model}, whose licence asks that the name of "
            'a distributed derivative begins with "Llama 3", as Llama-3-8B-ORPO does.'
        )
    return name


def card(results):
    """The model card, from measured results and nothing else.

    results: {"name", "base_model", "license", "data": {"description", "sources": {name:
        pairs}}, "settings": {...}, "evaluation": [{"model", "metric", "value", "low",
        "high", "n", "seeds"}, ...], "proof": a Proof as dict}; "run" and "limits" are
        shown if there.
    Returns: huggingface_hub.ModelCard.
    Raises: ValueError naming what is missing, or as check_name.
    """
    missing = [key for key in REQUIRED if not results.get(key)]
    if missing:
        raise ValueError(f"The card needs {', '.join(missing)}: measure them first.")
    check_name(results["name"], results["base_model"])
    model = results["name"].rsplit("/", 1)[-1]
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out pairs (n = {row['n']})",
            metric_type=row["metric"],
            metric_value=row["value"],
        )
        for row in results["evaluation"]
        if row["model"] == "merged"
    ]
    data = ModelCardData(
        # The hub accepts ids of its own here; the text names any base.
        base_model=results["base_model"] if is_hub_id(results["base_model"]) else None,
        license=results["license"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["orpo", "trl"],
        model_name=model,
        eval_results=scores or None,
    )
    sources = [{"source": k, "pairs": v} for k, v in results["data"]["sources"].items()]
    settings = [{"setting": k, "value": v} for k, v in results["settings"].items()]
    proof = [{"check": k, "value": v} for k, v in results["proof"].items()]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {model}",
        BANNER if is_llama3(results["base_model"]) else "",
        f"Fine-tuned with ORPO from: {results['base_model']}.",
        f"## Data\n\n{results['data']['description']}\n\n{_table(sources)}",
        f"## Settings\n\n{_table(settings)}",
        "## Evaluation\n\n`low` and `high` bound the 95 % interval over n held-out "
        f"items.\n\n{_table(results['evaluation'])}",
        "## Is this the model that was evaluated?\n\nMerged weights against the "
        f"trained model:\n\n{_table(proof)}",
        f"## Limits\n\n{results['limits']}" if results.get("limits") else "",
        f"## Run\n\n```json\n{json.dumps(results['run'], indent=1)}\n```"
        if results.get("run")
        else "",
    ]
    return ModelCard("\n\n".join(part for part in parts if part) + "\n")


def _table(rows):
    """Rows of dicts as a markdown table; floats with four digits."""

    def shown(value):
        if value is None or value in ((), []):
            return "none"
        value = f"{value:.4g}" if isinstance(value, float) else str(value)
        return value.replace("|", "\\|")

    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[shown(row[column]) for column in head] for row in rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def write_card(results, folder):
    """Write card, results and, for Llama 3, its notice into the model's folder."""
    folder = Path(folder)
    card(results).save(folder / CARD)
    text = json.dumps(results, indent=1, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    if is_llama3(results["base_model"]):
        (folder / "NOTICE").write_text(NOTICE + "\n", encoding="utf-8")


@dataclass(frozen=True)
class Upload:
    """What goes, or went, to the hub: {file: bytes}; and what stays behind."""

    repo_id: str
    files: dict
    left: tuple
    sent: bool

    def __str__(self):
        verb = "sent to" if self.sent else "dry run, would be sent to"
        lines = [f"{verb} {self.repo_id} (private):"]
        lines += [
            f"  {size / 1e3:10,.1f} kB  {name}" for name, size in self.files.items()
        ]
        lines += [f"  stays here     {name}" for name in self.left]
        return "\n".join(lines)


def upload(folder, send=False, environ=os.environ):
    """Send a finished folder to the hub; by default only say what would be sent.

    folder: with the merged model, its tokenizer, and what `write_card` wrote; the name
        comes from its results. send: really send, into a private repository, with the
        token in HF_TOKEN, which is never printed.
    Returns: Upload.
    Raises: FileNotFoundError if card or results are missing, or Llama 3's licence text
        for a derivative of it; ValueError if the proof did not pass;
        PermissionError for send=True without HF_TOKEN.
    """
    folder = Path(folder)
    results = _finished(folder)
    everything = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in everything}
    sent = {n: s for n, s in files.items() if any(Path(n).match(p) for p in SENT)}
    plan = Upload(results["name"], sent, tuple(n for n in files if n not in sent), send)
    if not send:
        return plan
    token = environ.get("HF_TOKEN", "").strip()
    if not token:
        raise PermissionError("Set HF_TOKEN to a token with write access to upload.")
    api = HfApi(token=token)
    api.create_repo(results["name"], private=True, exist_ok=True)
    api.upload_folder(
        repo_id=results["name"], folder_path=folder, allow_patterns=list(sent)
    )
    return plan


def _finished(folder):
    """The folder's results, if it may be published."""
    for name in (CARD, RESULTS, "config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}. Save the merged model and its tokenizer "
                "there, and call write_card with the measured results."
            )
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    check_name(results["name"], results["base_model"])
    failures = results["proof"]["failures"]
    if failures:
        raise ValueError(
            f"The proof failed, so nothing is sent: {'; '.join(failures)}."
        )
    if is_llama3(results["base_model"]) and not (folder / "LICENSE").is_file():
        raise FileNotFoundError(
            f"{folder} holds no LICENSE: whoever passes on a derivative of Llama 3 "
            "passes on a copy of its licence. Copy it from the base's repository."
        )
    return results
