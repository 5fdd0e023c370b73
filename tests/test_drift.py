"""Every call that the course makes of a library is still there, under its name.

Which calls those are is read from the code: what it imports, and the keywords that it
passes. A release that moves or renames one is named here, with its version.
"""

import ast
import importlib
import inspect
import re
import sys
import types
from importlib.metadata import version

import pytest
import torch
import transformers

from course_utils.setup import places

LIBRARIES = (
    *("transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes"),
    *("torch", "scipy", "huggingface_hub", "tokenizers", "safetensors"),
)
ONLY_WITH_CUDA = "torch._C._cuda_"  # a CPU build of torch has none of these
GONE = "trl.experimental.orpo"  # may leave: test_without_trl_orpo.py
ROOT = places.checkout()
FILES = sorted(
    [*places.PACKAGE.rglob("*.py"), *(ROOT / "notebooks" / "src").glob("*.py")]
)


def calls(code):
    """(library's dotted name, keywords passed to it) for all that `code` imports.

    A name counts with no keywords too: then it only has to be there.
    """
    # A notebook's text has its magic command as a comment, alone below an `if`.
    tree = ast.parse(code.replace("    # %pip", "    pass  # %pip"))
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
    ours = {
        name: dotted
        for name, dotted in names.items()
        if dotted.split(".")[0] in LIBRARIES and not dotted.startswith(GONE)
    }
    for dotted in ours.values():
        yield dotted, frozenset()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, _, rest = ast.unparse(node.func).partition(".")
            if first in ours and rest.replace(".", "").isidentifier() | (not rest):
                keywords = frozenset(k.arg for k in node.keywords if k.arg)
                yield ours[first] + (f".{rest}" if rest else ""), keywords


def found(dotted):
    """The object of that dotted name. Raises: AssertionError, naming the version."""
    library, *parts = dotted.split(".")
    here = library
    thing = importlib.import_module(library)
    for part in parts:
        here += f".{part}"
        try:
            thing = getattr(thing, part)
        except AttributeError:
            try:
                thing = importlib.import_module(here)
            except ImportError as error:
                raise AssertionError(
                    f"{library} {version(library)} has no {here}"
                ) from error
    return thing


def check(dotted, keywords):
    """Raises: AssertionError that names call, keyword and version."""
    thing = found(dotted)
    if isinstance(thing, types.ModuleType) or not keywords:
        return
    try:
        parameters = inspect.signature(thing).parameters.values()
    except ValueError:
        return  # written in C: only the call itself would tell
    if any(each.kind == each.VAR_KEYWORD for each in parameters):
        return  # it takes any keyword
    if isinstance(thing, type) and issubclass(thing, transformers.PretrainedConfig):
        return  # so does a model's configuration, which keeps what it does not know
    library = dotted.split(".")[0]
    unknown = sorted(keywords - {each.name for each in parameters})
    assert not unknown, (
        f"{dotted} of {library} {version(library)} takes no {', '.join(unknown)}"
    )


@pytest.mark.parametrize(
    "path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_what_the_course_calls_is_there(path):
    broke = []
    for dotted, keywords in set(calls(path.read_text(encoding="utf-8"))):
        if dotted.startswith(ONLY_WITH_CUDA) and not torch.cuda.is_available():
            continue
        try:
            check(dotted, keywords)
        except AssertionError as error:
            broke.append(str(error))
    assert not broke, "\n".join(sorted(broke))


def test_the_calls_that_matter_are_among_them():
    made = {}
    for path in FILES:
        for dotted, keywords in calls(path.read_text(encoding="utf-8")):
            made.setdefault(dotted, set()).update(keywords)
    assert {"args", "train_dataset"} <= made["trl.SFTTrainer"]
    assert {"beta"} <= made["trl.DPOConfig"]
    assert "load_in_4bit" in made["transformers.BitsAndBytesConfig"]
    assert "r" in made["peft.LoraConfig"]
    assert len(made) > 50


@pytest.mark.parametrize("moved", ["SFTTrainer", "DPOTrainer", "SFTConfig"])
def test_a_trainer_that_left_trl_is_named(moved, monkeypatch):
    found(f"trl.{moved}")
    monkeypatch.setitem(sys.modules, "trl", types.ModuleType("trl"))
    message = rf"trl {re.escape(version('trl'))} has no trl\.{moved}"
    with pytest.raises(AssertionError, match=message):
        found(f"trl.{moved}")


def test_a_renamed_keyword_is_named_with_the_version():
    wrong = [*calls("from trl import DPOConfig\nDPOConfig('x', betta=0.1)")]
    with pytest.raises(AssertionError, match=r"trl\.DPOConfig of trl .* no betta"):
        check(*wrong[-1])
