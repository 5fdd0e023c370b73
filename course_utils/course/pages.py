"""What readers see around the notebooks: HTML pages, their index, the README's map.

The pages work without network: formulas are drawn by a copy of MathJax beside them.
"""

import html
import re
import shutil
from collections.abc import Iterable, Sequence
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path

from jinja2 import DictLoader
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from course_utils.course import notebooks
from course_utils.recorded import on_gpu

# JupyterLab's own look, without its three scripts from the web.
TEMPLATE = r"""
{%- extends 'lab/index.html.j2' -%}
{%- block html_head_js_requirejs -%}{%- endblock -%}
{%- block html_head_js_mermaidjs -%}{%- endblock -%}
{%- block html_head_js_mathjax -%}
<script type="text/x-mathjax-config">
MathJax.Hub.Config({
  tex2jax: {
    inlineMath: [["$", "$"], ["\\(", "\\)"]],
    displayMath: [["$$", "$$"], ["\\[", "\\]"]],
    processEscapes: true
  },
  "HTML-CSS": {
    availableFonts: [], imageFont: null, preferredFont: null, webFont: "STIX-Web",
    linebreaks: {automatic: true}
  },
  messageStyle: "none",
  showMathMenu: false
});
</script>
<script src="mathjax/MathJax.js?config=TeX-AMS-MML_HTMLorMML-full,Safe"></script>
{%- endblock -%}
{%- block html_head_css -%}
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { --jp-cell-editor-background: #fff; } /* comments on grey are too pale */
main { max-width: 62rem; margin: 0 auto; }
.jp-RenderedImage img { max-width: 100%; }
/* A wide table or line scrolls by itself, so that the page fits a phone. */
.jp-RenderedHTMLCommon table { display: block; max-width: 100%; overflow-x: auto; }
.jp-InputArea .highlight { overflow-x: auto; }
.jp-OutputArea-output pre { overflow-x: auto; white-space: pre; }
.course-answer > summary { margin: .3rem 0 .3rem 1rem; font-family: system-ui; }
.course-nav { max-width: 62rem; margin: 0 auto; padding: .5rem 1rem;
              font: 1rem/1.5 system-ui, sans-serif; display: flex; gap: 1.5rem;
              flex-wrap: wrap; justify-content: space-between; }
.course-nav details { flex-basis: 100%; }
.course-nav ul { list-style: none; padding-left: 1rem; } /* the titles have numbers */
@media (max-width: 40rem) { .jp-Notebook { padding: .5rem; } }
@media (prefers-color-scheme: dark) {
  /* Inverting the page and back again for pictures keeps every contrast. */
  html { background: #111; }
  body { filter: invert(.93) hue-rotate(180deg); background: #fff; }
  img, .course-light { filter: invert(1) hue-rotate(180deg); }
}
@media print { .course-nav { display: none; } }
</style>
{%- endblock -%}
{%- block body_header -%}
{{ super() }}
<!-- top of page -->
{%- endblock -%}
{%- block body_footer -%}
<!-- bottom of page -->
{{ super() }}
{%- endblock -%}
{%- block output_group -%}
{%- if cell.metadata.get('jupyter', {}).get('outputs_hidden') and cell.outputs -%}
<details class="course-answer">
<summary>Show the output, when you have written down your prediction</summary>
{{ super() }}
</details>
{%- else -%}
{{ super() }}
{%- endif -%}
{%- endblock -%}
{%- block data_png scoped -%}
<div class="jp-RenderedImage jp-OutputArea-output">
<img src="data:image/png;base64,{{ output.data['image/png'] | escape_html }}"
     alt="{{ cell.metadata.get('alt', '') | escape_html }}">
</div>
{%- endblock -%}
"""
INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>The ORPO course, as run on this machine</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ text-align: left; vertical-align: top; padding: .4rem 1rem .4rem 0;
         border-bottom: 1px solid #ccc; }}
</style>
</head>
<body>
<h1>The ORPO course, as run on this machine</h1>
<table>
<tr><th>notebook</th><th>finding</th><th>minutes</th></tr>
{rows}
</table>
</body>
</html>
"""
README_BEGIN = "<!-- notebooks: made by `make notebooks` -->"
README_END = "<!-- end of notebooks -->"
# What a page never uses: another output's fonts, speech rules, translations.
# nbconvert closes each piece of HTML for itself, so that a fold would stay empty.
_FOLD = re.compile(r"<details>\s*<summary>(.*?)</summary>", re.DOTALL)
_SECTION = re.compile(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', re.DOTALL)
MATHJAX_UNUSED = shutil.ignore_patterns("a11y", "SVG", "localization")


def write_page(
    notebook: NotebookNode, page: Path, pictures: Path, order: Sequence[str] = ()
) -> None:
    """Write `notebook` as a readable HTML page.

    page: the path to write; pictures: the folder that the notebook's own relative
    image links start from (the images go into the page). order: the names of all pages
    in reading order; the page leads to its neighbours.
    """
    shown = deepcopy(notebook)
    # What is there for Colab is noise on a page that a laptop made, and the badge's
    # picture comes from the web.
    badge = shown.metadata.get("course", {}).get("fills", {}).get("badge")
    shown.cells = [
        cell for cell in shown.cells if "colab" not in cell.metadata.get("tags", [])
    ]
    for number, cell in enumerate(shown.cells, 1):
        cell.metadata.alt = notebooks.caption(shown, number)
        if badge:
            cell.source = cell.source.replace(badge, "")
        if cell.cell_type == "markdown":
            cell.source = _FOLD.sub(r"\n\n@@fold \1@@\n\n", cell.source)
            cell.source = cell.source.replace("</details>", "\n\n@@end of fold@@\n\n")
    exporter = HTMLExporter(
        extra_loaders=[DictLoader({"course.html.j2": TEMPLATE})],
        template_file="course.html.j2",
        embed_images=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    title = notebooks.heading(notebook) or page.stem
    resources = {"metadata": {"name": title, "path": str(pictures)}}
    text, _ = exporter.from_notebook_node(shown, resources)
    text = re.sub("<p>@@fold (.*?)@@</p>", r"<details><summary>\1</summary>", text)
    text = text.replace("<p>@@end of fold@@</p>", "</details>")
    links = _links(page.stem, order)
    text = text.replace("<!-- top of page -->", _navigation(links + _contents(text)))
    text = text.replace("<!-- bottom of page -->", _navigation(links))
    page.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write_text(page, text)
    _copy_mathjax(page.parent / "mathjax")


def _links(name, order):
    """Links to the page before, the index and the page after, as HTML."""
    place = order.index(name) if name in order else None
    before = order[place - 1] if place else None
    after = order[place + 1] if place is not None and order[place + 1 :] else None
    found = [('<a href="index.html">All notebooks</a>')]
    if before:
        found.insert(0, f'<a rel="prev" href="{before}.html">← {_spoken(before)}</a>')
    if after:
        found.append(f'<a rel="next" href="{after}.html">{_spoken(after)} →</a>')
    return "".join(found)


def _spoken(name):
    return html.escape(name.replace("_", " "))


def _contents(text):
    """The sections of a page, folded, as HTML."""
    entries = "".join(
        f'<li><a href="#{anchor}">{title.strip()}</a></li>'
        for anchor, title in _SECTION.findall(text)
    )
    return f"<details><summary>Contents</summary><ul>{entries}</ul></details>"


def _navigation(content):
    return f'<nav class="course-nav">{content}</nav>'


def _copy_mathjax(folder):
    if not folder.exists():
        package = find_spec("jupyter_server_mathjax")
        static = Path(package.origin).parent / "static"
        shutil.copytree(static, folder, ignore=MATHJAX_UNUSED)


def write_index(rows: list[dict], index: Path) -> None:
    """Write the page that leads to the others.

    rows: dicts with title, finding, minutes (text) and page (a file name beside it).
    """
    lines = []
    for row in rows:
        title, finding = html.escape(row["title"]), html.escape(row["finding"])
        link = f'<a href="{html.escape(row["page"])}">{title}</a>'
        lines.append(
            f"<tr><td>{link}</td><td>{finding}</td><td>{row['minutes']}</td></tr>"
        )
    index.parent.mkdir(parents=True, exist_ok=True)
    notebooks.write_text(index, INDEX.format(rows="\n".join(lines)))


def readme_map(paths: Iterable[Path]) -> str:
    """The README's table of the notebooks at `paths`, from their own records.

    Where a run of them on a GPU was recorded, more columns show it, and a line below
    the table says what was run.
    """
    rehearsed = on_gpu.load()
    gpu = {row["notebook"]: row for row in on_gpu.table(rehearsed)}
    columns = [name for name in next(iter(gpu.values()), {}) if name != "notebook"]
    more = "".join(f" {column} |" for column in columns)
    lines = [
        f"| | question | minutes | memory |{more} |",
        f"|---|---|---|---|{'---|' * len(columns)}---|",
    ]
    for path in paths:
        notebook = notebooks.read(path)
        number, _, question = notebooks.heading(notebook).partition(" · ")
        question = question.replace("|", r"\|")  # a bar would end the column
        record = notebooks.run_record(notebook)
        minutes = f"{record['seconds'] / 60:.1f}" if record else "–"
        memory = f"{record['peak_memory_gib']:.1f} GiB" if record else "–"
        link = f"[{number}](notebooks/{path.name})"
        badge = notebooks.colab_badge(path.stem)
        row = gpu.get(number, {})
        cells = "".join(f" {row.get(column, '–')} |" for column in columns)
        lines.append(f"| {link} | {question} | {minutes} | {memory} |{cells} {badge} |")
    if columns:
        lines += ["", f"Columns with a profile's name: {on_gpu.caption(rehearsed)}"]
    return "\n".join(lines)


def updated_readme(text: str, paths: Iterable[Path]) -> str:
    """The README's `text` with its map of notebooks made anew.

    Raises: ValueError if the two comments that enclose the map are not there.
    """
    if README_BEGIN not in text or README_END not in text:
        raise ValueError(
            f"README.md must hold the lines {README_BEGIN} and {README_END}: "
            "the map of notebooks is written between them."
        )
    before, _, rest = text.partition(README_BEGIN)
    _, _, after = rest.partition(README_END)
    return f"{before}{README_BEGIN}\n{readme_map(paths)}\n{README_END}{after}"
