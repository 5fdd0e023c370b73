"""The Space's folder: the app, what it needs, and the page that the hub reads."""

import json
import shutil
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

from course_utils.publishing import licence
from course_utils.setup import folders, secrets

APP = Path(__file__).with_name("app.py")
GRADIO = (
    "6.31.0"  # brought by the hub itself, in the version that the front matter asks
)
NEEDED = ("torch", "transformers", "safetensors")


def write(
    folder: str | Path,
    model: str,
    base_model: str,
    license: str,
    examples: Iterable[str],
) -> list[str]:
    """Write a Space that chats with a model.

    folder: replaced if it is an earlier Space of this course. model: the published
    model's "owner/name". base_model: what it was made from; a Llama 3 asks for a
    sentence on the page. license: its id on the hub. examples: texts to click on.
    Returns: the files' names. Raises: ValueError as licence.check_name and
    licence.check_license, or for an access key in a text; as folders.written_whole.

    requirements.txt pins what is installed here, and so what was tried.
    """
    terms, name = licence.terms_for(base_model), model.rsplit("/", 1)[-1]
    licence.check_name(model, base_model, terms)
    licence.check_license(license, base_model, terms)
    warning = "Trained briefly, for teaching: do not rely on its answers."
    banner = f"{terms.banner}. " if terms else ""
    settings = {
        "model": model,
        "title": name,
        "description": f"{banner}{warning}",
        "examples": list(examples),
    }
    text = json.dumps(settings, indent=1, ensure_ascii=False) + "\n"
    found = secrets.find(text)
    if found:
        raise ValueError(
            f"The Space's texts hold what looks like an access token ({found[0][0]}): "
            "everybody could read it there. Remove it, and revoke it where it was made."
        )
    pins = [f"{n}=={version(n).partition('+')[0]}" for n in NEEDED]
    with folders.written_whole(folder, writer="Space") as partial:
        shutil.copyfile(APP, partial / "app.py")
        folders.write_text(partial / "space.json", text)
        folders.write_text(partial / "requirements.txt", "\n".join(pins) + "\n")
        folders.write_text(partial / "README.md", _card(settings, license, terms))
    return folders.files_in(folder)


def _card(settings: dict, license: str, terms: licence.Terms | None) -> str:
    data = SpaceCardData(
        title=settings["title"][:60],
        sdk="gradio",
        sdk_version=GRADIO,
        python_version="3.12",
        app_file="app.py",
        license=license,
        models=[settings["model"]],
    )
    notice = f"{terms.notice}\n\n" if terms else ""
    card = SpaceCard(
        f"---\n{data.to_yaml()}\n---\n\n# {settings['title']}\n\n"
        f"{settings['description']}\n\n"
        f"A chat with `{settings['model']}`. While that model is private, the Space "
        "needs a secret `HF_TOKEN` with read access to it.\n\n"
        f"{notice}"
        "On one's own machine: `pip install gradio -r requirements.txt`, then "
        "`python app.py`; `MODEL_ID` may name a local folder.\n"
    )
    return str(card)
