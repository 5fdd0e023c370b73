"""The model card: measured JSON as a page, and nothing that is not in it.

A figure that the JSON does not hold reads "not measured".
"""

import io
import json
import math
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from course_utils.data import sources
from course_utils.publishing import licence
from course_utils.setup.printing import markdown_table
from course_utils.setup.profiles import WORLD, is_hub_id

NOT_MEASURED = "not measured"
REQUIRED = ("name", "base_model", "license", "data", "settings")
COST = {
    "minutes": "wall time (minutes)",
    "peak_gib": "peak memory (GiB)",
    "energy_kwh": "energy (kWh)",
}
CURVES = "curves.png"
POINTS = 8  # rows of the curves' table


def describe_sources(pairs: list[dict], data: str) -> dict[str, dict]:
    """What a mix is made of, for results["data"]["sources"].

    pairs: the pairs that were trained on, each with "source". data: where the rows came
    from, as in a profile: "world", "hub" or a folder.
    Returns: {source: {"pairs", "license", "repo"}}, licences from the data cards; rows
    of the small world are the course's own. Raises: KeyError for an unknown source.
    """
    cards, found = sources.cards(), {}
    for pair in pairs:
        name = pair["source"]
        if name not in found:
            own = {"license": "apache-2.0", "repo": "the course's small world"}
            theirs = {"license": cards[name].license, "repo": cards[name].repo}
            found[name] = {"pairs": 0, **(own if data == WORLD else theirs)}
        found[name]["pairs"] += 1
    return found


def card(
    results: dict, gate: dict | None = None, terms: licence.Terms | None = None
) -> ModelCard:
    """The model card, from measured results and nothing else.

    results: {"name", "base_model", "license", "data": {"description", "sources":
        as describe_sources, or {name: pairs}; "pairs": their sum}, "settings": {...}};
        and, where measured, "evaluation": [{"model", "metric", "value", "low", "high",
        "n", "seeds"}, ...], "curves": [{"step", ...}, ...], "cost": {"minutes",
        "peak_gib", "energy_kwh", ...}, "run": {...}, "limits": str,
        "notes": str, words of your own.
    gate: the release gate's record. terms: licence.Terms that the model is bound to, if
        they were read from its agreement.
    Returns: huggingface_hub.ModelCard.
    Raises: ValueError naming what is missing, not finite, or does not add up; as
    licence.check_name and licence.check_license.
    """
    missing = [key for key in REQUIRED if not results.get(key)]
    if missing:
        raise ValueError(f"The card needs {', '.join(missing)} in its results.")
    _require_finite(results, "results")
    terms = terms or licence.terms_for(results["base_model"])
    licence.check_name(results["name"], results["base_model"], terms)
    licence.check_license(results["license"], results["base_model"], terms)
    model = results["name"].rsplit("/", 1)[-1]
    parts = [
        f"---\n{_metadata(results, model).to_yaml()}\n---",
        f"# {model}",
        f"**{terms.banner}.**" if terms else "",
        f"Fine-tuned with ORPO from: {results['base_model']}. Every figure below was "
        "copied by code from `results.json` and `release_gate.json`, which lie beside "
        "this card.",
        results.get("notes", ""),
        _licence(results, terms),
        _data(results["data"]),
        "## Settings\n\n" + _pairs_table(results["settings"], "setting", "value"),
        _curves(results.get("curves")),
        _evaluation(results.get("evaluation")),
        _gate(gate),
        _cost(results.get("cost") or {}),
        f"## Limits\n\n{results.get('limits') or 'None were written down.'}",
        _run(results.get("run")),
    ]
    made = ModelCard("\n\n".join(part for part in parts if part) + "\n")
    return ModelCard(str(made))  # read back by the hub's own parser


def _metadata(results, model):
    rows = results.get("evaluation") or []
    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type="held-out",
            dataset_name=f"held-out items (n = {row['n']})",
            metric_type=row["metric"],
            metric_value=row["value"],
        )
        for row in rows
        if row["model"] == "merged" and row.get("value") is not None
    ]
    entries = results["data"]["sources"].values()
    repos = [e["repo"] for e in entries if isinstance(e, dict) and e.get("repo")]
    base = results["base_model"]
    return ModelCardData(
        # The hub accepts ids of its own here; the text names any base.
        base_model=base if is_hub_id(base) else None,
        datasets=[repo for repo in repos if is_hub_id(repo)] or None,
        license=results["license"],
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["orpo", "trl"],
        model_name=model,
        eval_results=scores or None,
    )


def _licence(results, terms):
    if terms is None:
        return f"## Licence\n\n{results['license']}"
    return (
        f"## Licence\n\n{terms.agreement}: its text is in `{licence.LICENCE}`, its "
        f"notice in `{licence.NOTICE}`. {terms.notice} Use is bound by the Acceptable "
        "Use Policy that the agreement names."
    )


def _data(data):
    rows, total = [], 0
    for name, entry in data["sources"].items():
        entry = entry if isinstance(entry, dict) else {"pairs": entry}
        total += entry["pairs"]
        rows.append(
            {
                "source": name,
                "pairs": entry["pairs"],
                "licence": entry.get("license") or "not stated",
                "from": entry.get("repo") or "not stated",
            }
        )
    if "pairs" in data and data["pairs"] != total:
        raise ValueError(
            f"The sources' pairs sum to {total}, but the data say {data['pairs']}."
        )
    summed = f"\n\nTogether {data['pairs']} pairs." if "pairs" in data else ""
    return f"## Data\n\n{data['description']}\n\n{table(rows)}{summed}"


def _curves(points):
    if not points:
        return f"## Training\n\nCurves: {NOT_MEASURED}."
    last = len(points) - 1
    shown = sorted({round(last * i / (POINTS - 1)) for i in range(POINTS)})
    measured = ", ".join(name for name in points[0] if name != "step")
    return (
        f"## Training\n\n![{measured} over the optimizer steps]({CURVES})\n\n"
        f"{table([points[i] for i in shown])}"
    )


def _evaluation(rows):
    if not rows:
        return f"## Evaluation\n\nScores: {NOT_MEASURED}."
    columns = ["model", "metric", "value", "low", "high", "n", "seeds"]
    columns += [key for key in rows[0] if key not in columns]
    full = [{key: row.get(key, NOT_MEASURED) for key in columns} for row in rows]
    return (
        "## Evaluation\n\n`low` and `high` bound the 95 % interval over n held-out "
        f"items.\n\n{table(full)}"
    )


def _gate(gate):
    head = "## Is this the model that was evaluated?\n\n"
    if gate is None:
        return f"{head}The merged weights against the trained model: {NOT_MEASURED}."
    verdict = "passed" if gate["passed"] else "REFUSED"
    checks = [
        {
            "check": check["name"],
            "measured": check["measured"],
            "limit": check["limit"],
            "verdict": "passed" if check["passed"] else "refused",
        }
        for check in gate["checks"]
    ]
    n = gate["measured"].get("n", NOT_MEASURED)
    return (
        f"{head}The release gate {verdict} this folder (prompts: {n}).\n\n"
        f"{table(checks)}"
    )


def _cost(cost):
    rows = {label: cost.get(key, NOT_MEASURED) for key, label in COST.items()}
    rows |= {key: value for key, value in cost.items() if key not in COST}
    return f"## Cost of the training\n\n{_pairs_table(rows, 'what', 'measured')}"


def _run(run):
    shown = json.dumps(run, indent=1, ensure_ascii=False) if run else None
    return "## Run\n\n" + (f"```json\n{shown}\n```" if shown else "Not recorded.")


def _pairs_table(values, first, second):
    return table([{first: k, second: v} for k, v in values.items()])


def table(rows: list[dict]) -> str:
    """Rows of dicts as a markdown table; floats with four digits."""
    head = list(rows[0])
    cells = ([_shown(row.get(column, NOT_MEASURED)) for column in head] for row in rows)
    return markdown_table(head, cells)


def _shown(value):
    if value is None or value in ((), [], {}):
        return "none"
    if isinstance(value, dict):
        value = ", ".join(f"{k}: {_shown(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _require_finite(value, where):
    if isinstance(value, dict):
        for key, part in value.items():
            _require_finite(part, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            _require_finite(part, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(
            f"{where} is {value}. What was not measured is left out of the results."
        )


def draw_curves(points: list[dict], path: Path) -> None:
    """The curves as a PNG: log-probs together, each other figure by itself."""
    from matplotlib.figure import Figure

    from course_utils import plots

    steps = [point["step"] for point in points]
    names = [name for name in points[0] if name != "step"]
    both = [name for name in names if name in plots.STYLES]
    groups = ([both] if both else []) + [[n] for n in names if n not in both]
    figure = Figure(figsize=(3 * len(groups), 2.6), dpi=80, layout="constrained")
    axes = figure.subplots(1, len(groups), squeeze=False)[0]
    for ax, group in zip(axes, groups, strict=True):
        for name in group:
            ax.plot(
                steps,
                [point[name] for point in points],
                plots.STYLES.get(name, "-"),
                color=plots.COLOURS.get(name, "black"),
                label=name,
            )
        title, unit = " and ".join(group), ""
        if group is both:
            ax.legend(frameon=False, fontsize=8)
            unit = "log-prob per token (nats)"
        plots.tidy(ax, title, "optimizer step", unit)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    path.write_bytes(picture.getvalue())
