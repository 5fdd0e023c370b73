"""Notebook 08: one page that needs nothing of the course."""

import ast

from transformers import AutoTokenizer

from course_utils import chat
from course_utils.course import notebooks
from course_utils.setup import places

ROOT = places.checkout()
TEXT = (ROOT / "notebooks" / "src" / "08_the_recipe.py").read_text(encoding="utf-8")
MOST_LINES = 80


def recipe_text():
    return TEXT[TEXT.index("rows = load_dataset(") : TEXT.index("# ## 3. Is it what")]


def recipe_lines():
    """Code lines from load_dataset to push_to_hub: no imports, prints or comments."""
    text = recipe_text()
    tree = ast.parse(text)
    left_out = set()
    for node in ast.walk(tree):
        call = getattr(getattr(node, "value", None), "func", None)
        is_print = isinstance(node, ast.Expr) and getattr(call, "id", "") == "print"
        if isinstance(node, ast.Import | ast.ImportFrom) or is_print:
            left_out |= {*range(node.lineno, node.end_lineno + 1)}
    lines = enumerate(text.splitlines(), 1)
    code = [(at, line.strip()) for at, line in lines if at not in left_out]
    return [line for _, line in code if line and not line.startswith("#")]


def test_the_recipe_fits_on_one_page():
    lines = recipe_lines()
    assert lines[0].startswith("rows = load_dataset(")
    assert any("push_to_hub(" in line for line in lines)
    assert 40 < len(lines) <= MOST_LINES
    assert f"these are {len(lines)} lines of code" in TEXT


def test_the_recipe_needs_no_package_of_the_course():
    cells = notebooks.from_text(TEXT).cells
    code = [c.source for c in cells if c.cell_type == "code"]
    assert not [c for c in code if "import course_utils" in c or "from course_" in c]


def test_the_recipe_s_template_is_the_course_s():
    (template,) = [
        node.value.value
        for node in ast.walk(ast.parse(recipe_text()))
        if isinstance(node, ast.Assign)
        and getattr(node.targets[0], "attr", "") == "chat_template"
    ]
    tokenizer = AutoTokenizer.from_pretrained(places.PACKAGE / "lab" / "base_model")
    chat.use_llama3_chat(tokenizer)
    messages = [
        {"role": "user", "content": " Hello\n"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "Bye"},
    ]
    for ask in (False, True):
        options = {"add_generation_prompt": ask, "tokenize": False}
        expected = tokenizer.apply_chat_template(messages, **options)
        got = tokenizer.apply_chat_template(messages, chat_template=template, **options)
        assert got == expected
