"""Preflight: is this machine ready, what will it run, and how long does that take?"""

import html
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement

from course_utils.setup import places, profiles, threads
from course_utils.setup.hardware import attention_implementation

DISTRIBUTION = "orpo-course"
OK, WARNING, PROBLEM = "ok", "warning", "PROBLEM"


class PreflightError(RuntimeError):
    """The set-up is broken; the message lists every problem and what to do about it."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. advice: what to do; empty where all is well."""

    name: str
    value: str
    verdict: str = OK
    advice: str = ""


@dataclass(frozen=True)
class Report:
    """What `check` found, to print or to show in Jupyter.

    findings: tuple of Finding.
    minutes: {notebook: (minutes, profile of that run)}, of those that recorded one.
    """

    choice: profiles.Choice
    hardware: profiles.Hardware
    findings: tuple
    minutes: dict

    def __str__(self) -> str:
        names = [*(finding.name for finding in self.findings), *self.minutes]
        width, lines = max(map(len, names)), []
        for found in self.findings:
            lines.append(f"{found.name:<{width}}  {found.verdict:<7}  {found.value}")
            if found.advice:
                lines.append(" " * (width + 11) + found.advice)
        for notebook, (minutes, profile) in self.minutes.items():
            lines.append(f"{notebook:<{width}}  {minutes:.1f} min on `{profile}`")
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self):
        rows = [
            (f.name, f.verdict, f"{f.value}. {f.advice}" if f.advice else f.value)
            for f in self.findings
        ]
        for notebook, (minutes, profile) in self.minutes.items():
            rows.append((notebook, f"{minutes:.1f} min", f"recorded on {profile}"))
        cell = '<td style="text-align:left">'
        cells = ("".join(f"{cell}{html.escape(c)}</td>" for c in row) for row in rows)
        return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def check(
    environ: Mapping[str, str] | None = None,
    hardware: profiles.Hardware | None = None,
    thorough: bool = False,
    installed_version: Callable[[str], str] | None = None,
) -> Report:
    """Look at everything that can be wrong before a notebook begins.

    environ: where the COURSE_ and HF_ variables are looked up. hardware: a
        profiles.Hardware; this machine's by default. thorough: also import TRL's ORPO,
        which takes seconds. installed_version: a function from a library's name to its
        version, importlib.metadata.version by default.
    Returns: Report.
    Raises: PreflightError listing every problem found: Python or a library outside the
        declared versions, an impossible COURSE_ variable, a base
        model that is missing, or that only the unreachable hub has. Tight memory and
        disk only warn.
    """
    environ = os.environ if environ is None else environ
    hardware = hardware or profiles.probe()
    findings = [Finding("hardware", str(hardware)), _threads(environ), _python()]
    findings += _libraries(installed_version or importlib.metadata.version)
    findings.append(_orpo(thorough))
    choice = None
    try:
        choice = profiles.choose(environ, hardware)
    except (ValueError, FileNotFoundError) as error:
        findings.append(Finding("profile", "cannot be chosen", PROBLEM, str(error)))
    if choice:
        findings.append(Finding("profile", f"{choice.profile.name} ({choice.reason})"))
        findings += _needs(choice.profile, hardware, environ)
        findings.append(_attention(hardware))
    problems = [finding for finding in findings if finding.verdict == PROBLEM]
    if problems:
        listed = "\n".join(f"- {f.name}: {f.value}. {f.advice}" for f in problems)
        raise PreflightError(f"This set-up cannot run the course:\n{listed}")
    return Report(choice, hardware, tuple(findings), recorded_minutes())


def requirements() -> list[Requirement]:
    """The packaging Requirements of the notebooks: the package's and the extra's.

    Read from the installed distribution, or else from the clone's pyproject.toml.
    """
    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        project = places.project()
        declared = project["dependencies"] + project["optional-dependencies"]["course"]
    parsed = [Requirement(line) for line in declared]
    course = {"extra": "course"}
    return [r for r in parsed if r.marker is None or r.marker.evaluate(course)]


def recorded_minutes() -> dict[str, tuple[float, str]]:
    """{notebook: (minutes, profile)} of the committed notebooks that recorded a run."""
    if not places.in_checkout():
        return {}
    found = {}
    for path in sorted((places.checkout() / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        record = metadata.get("course", {})
        if "seconds" in record:
            found[path.stem] = (record["seconds"] / 60, record.get("profile", "?"))
    return found


def _threads(environ):
    try:
        number, reason = threads.choose_threads(environ)
    except ValueError as error:
        return Finding("threads", "cannot be chosen", PROBLEM, str(error))
    return Finding("threads", f"{number} ({reason})")


def _python():
    version = platform.python_version()
    major, minor = platform.python_version_tuple()[:2]
    if (3, 11) <= (int(major), int(minor)) < (3, 14):
        return Finding("python", version)
    return Finding("python", version, PROBLEM, "Use Python 3.11, 3.12 or 3.13.")


def _libraries(installed_version):
    """One line for all that fit, and one for each library that does not."""
    fitting, wrong = [], []
    for requirement in requirements():
        name = requirement.name
        command = f'pip install "{name}{requirement.specifier}"'
        try:
            version = installed_version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version and requirement.specifier.contains(version, prereleases=True):
            fitting.append(f"{name} {version}")
            continue
        value = "is not installed"
        if version:
            value = f"is {version}, and the course needs {requirement.specifier}"
        advice = f"Run `{command}` and restart the kernel."
        wrong.append(Finding(name, value, PROBLEM, advice))
    return [Finding("libraries", ", ".join(fitting)), *wrong]


def _orpo(thorough):
    """Is TRL's ORPO there? Only the comparisons with it are left out where it is not.

    Found by its file, without importing TRL.
    """
    name = "trl.experimental.orpo"
    spec = importlib.util.find_spec("trl")
    folders = spec.submodule_search_locations if spec else []
    if not any(Path(folder, "experimental", "orpo").is_dir() for folder in folders):
        return Finding(name, "is not there: what it gave is shown as recorded")
    if thorough:
        try:
            with warnings.catch_warnings():
                # "Experimental, may change": the course has a trainer of its own.
                warnings.filterwarnings("ignore", message=".*trl.experimental")
                importlib.import_module(name)
        except ImportError as error:
            shown = f"does not import ({error}): what it gave is shown as recorded"
            return Finding(name, shown)
        return Finding(name, "imports")
    return Finding(name, "is there")


def _needs(profile, hardware, environ):
    """What the profile asks of this machine: GPU, model, memory, disk, hub."""
    if profile.name != "cpu" and not hardware.cuda:
        yield Finding(
            "GPU",
            "none",
            WARNING,
            f"Profile {profile.name} is meant for a GPU and will be very slow here.",
        )
    if profiles.is_hub_id(profile.base_model):
        yield Finding("base model", f"{profile.base_model}, from the hub")
    else:
        yield _local_model(profile)
    yield _memory(profile, hardware)
    if profile.needs_hub:
        yield _disk(profile, environ)
        yield _hub(profile, environ)


def _attention(hardware):
    """Which attention the model is loaded with, and why; flash-attn is optional."""
    flash = importlib.util.find_spec("flash_attn") is not None
    name, reason = attention_implementation(hardware.capability, flash)
    return Finding("attention", f"{name} ({reason})")


def _local_model(profile):
    try:
        profiles.require_checkpoint(profile.base_model)
    except FileNotFoundError as error:
        return Finding("base model", "is missing", PROBLEM, str(error))
    own = profile.base_model == str(profiles.lab_model_folder())
    # No absolute path: committed notebooks show this.
    name = "the course's own" if own else f"folder {Path(profile.base_model).name}"
    size = sum(f.stat().st_size for f in Path(profile.base_model).glob("*.safetensors"))
    return Finding("base model", f"{name}, {size / 1e6:,.1f} MB of weights")


def _memory(profile, hardware):
    free = free_memory_gib(hardware)
    value = f"{free:.1f} GiB free, {profile.needs_gib:g} needed"
    advice = "Close other notebooks and programs, or expect to run out."
    return _enough("memory", free >= profile.needs_gib, value, advice)


def _enough(name, enough, value, advice):
    return Finding(name, value) if enough else Finding(name, value, WARNING, advice)


def free_memory_gib(hardware: profiles.Hardware) -> float:
    """Free memory of the GPU, or of the machine where there is none."""
    if hardware.cuda:
        import torch

        return torch.cuda.mem_get_info()[0] / 2**30
    import psutil

    return psutil.virtual_memory().available / 2**30


def _disk(profile, environ):
    cache = _hub_cache(environ)
    while not cache.exists():
        cache = cache.parent
    free = shutil.disk_usage(cache).free / 2**30
    value = f"{free:.0f} GiB free for the hub's cache, {profile.disk_gib:g} needed"
    advice = "Free some, or point HF_HOME to a larger disk before starting the kernel."
    return _enough("disk", free >= profile.disk_gib, value, advice)


def _hub_cache(environ):
    return Path(environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def _hub(profile, environ):
    if not profiles.is_offline(environ):
        return Finding("hub", "reachable")
    advice = (
        "Point COURSE_BASE_MODEL and COURSE_DATA to local folders, or set "
        "COURSE_PROFILE=cpu."
    )
    wanted = filter(None, (profile.base_model, profile.ungated_copy))
    cached = [
        (_hub_cache(environ) / "hub" / f"models--{name.replace('/', '--')}").is_dir()
        for name in wanted
    ]
    if profiles.is_hub_id(profile.base_model) and not any(cached):
        value = f"not reachable, and its cache has no {profile.base_model}"
        return Finding("hub", value, PROBLEM, advice)
    value = "not reachable: only what its cache holds can be loaded"
    return Finding("hub", value, WARNING, advice)
