"""The Space's folder: the app, what it needs, and the page that the hub reads.

Knows: the hub's front matter for a Space. Does not know: how to push it, Gradio.
"""

import json
import shutil
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from course_utils.publishing import licence
from course_utils.setup import folders

APP = Path(__file__).with_name("app.py")
GRADIO = (
    "6.31.0"  # brought by the hub itself, in the version that the front matter asks
)
NEEDED = ("torch", "transformers", "safetensors")


def write(folder, model, base_model, license, examples):
    """Write a Space that chats with a model.

    folder: replaced if it is there. model: the published model's "owner/name".
    base_model: what it was made from; a Llama 3 asks for a sentence on the page.
    license: its id on the hub. examples: texts to click on.
    Returns: the files' names. Raises: ValueError as licence.check_name.

    requirements.txt pins what is installed here, and so what was tried.
    """
    licence.check_name(model, base_model)
    terms, name = licence.terms_for(base_model), model.rsplit("/", 1)[-1]
    warning = "Trained briefly, for teaching: do not rely on its answers."
    banner = f"{terms.banner}. " if terms else ""
    settings = {
        "model": model,
        "title": name,
        "description": f"{banner}{warning}",
        "examples": list(examples),
    }
    with folders.written_whole(folder, replace=True) as partial:
        shutil.copyfile(APP, partial / "app.py")
        text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
        (partial / "space.json").write_text(text, encoding="utf-8", newline="\n")
        pins = [f"{n}=={version(n).partition('+')[0]}" for n in NEEDED]
        (partial / "requirements.txt").write_text(
            "\n".join(pins) + "\n", encoding="utf-8", newline="\n"
        )
        _card(settings, license).save(partial / "README.md")
    return sorted(path.name for path in Path(folder).iterdir())


def _card(settings, license):
    data = SpaceCardData(
        title=settings["title"][:60],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version="3.12",
        app_file="app.py",
        license=license,
        models=[settings["model"]],
    )
    return SpaceCard(
        f"---\n{data.to_yaml()}\n---\n\n# {settings['title']}\n\n"
        f"{settings['description']}\n\n"
        f"A chat with `{settings['model']}`. While that model is private, the Space "
        "needs a secret `HF_TOKEN` with read access to it.\n\n"
        "On one's own machine: `pip install gradio -r requirements.txt`, then "
        "`python app.py`; `MODEL_ID` may name a local folder.\n"
    )
