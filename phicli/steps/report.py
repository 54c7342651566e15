"""The report: what manifests, evaluation, benchmarks and a search say, on one page."""

import contextlib
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from phicli.artifacts import stages
from phicli.artifacts.names import BENCHMARK, EVALUATION, REPORT, SEARCH
from phicli.artifacts.places import check_own_place
from phicli.artifacts.reading import read_json
from phicli.config.measuring import ReportConfig
from phicli.errors import BadInput, Missing
from phicli.reporting import evaluated, trained
from phicli.reporting.charts import Chart, thinned
from phicli.reporting.pages import MADE_BY, render
from phicli.reporting.reading import MOST, NAME, Named, entries, figure, in_words, shown, table
from phicli.reporting.searched import search_parts
from phicli.reporting.speeds import measured_with, speed_rows
from phicli.steps import telling
from phicli.steps.inventory import Kept, Made
from phicli.units import duration, size
from phicli.version import __version__

DIGITS = 16  # of a fingerprint that are shown
SUFFIXES = {"html": ".html", "markdown": ".md"}


def report(config: ReportConfig) -> Path:
    """Write what is known of a model's results on one page: ROOT/report.html, ROOT/report.md or `output`.

    Returns:
        the page's file.

    Raises:
        Missing: nothing made under the root yet; no such benchmark; no space or permission. BadInput: a benchmark or
            the search is damaged; something else stands at the page's place.
    """
    target = Path(config.output or config.root_folder / (REPORT + SUFFIXES[config.format]))
    check_own_place(target, MADE_BY, "report")
    stages.write_text(target, render(config.format, **collect(config)))
    return target


def collect(config: ReportConfig) -> dict[str, Any]:
    """The parts of the page, as the templates of `phicli/reporting` take them."""
    root = config.root_folder
    made = [one for one in Kept(root.name, root, config.model).made if one.step != "damaged"][:MOST]
    search = search_parts(stages.read_sealed(root / SEARCH, "phicli search --force") or {})
    if not made and not search:
        raise Missing("nothing to report on here yet", where=root, hint="phicli run")
    results = [one for one in made if one.place.is_dir()]
    qualities = [(_name(one), table(one.about, "quality")) for one in results]
    evaluation = next((one.about for one in made if one.place.name == EVALUATION), {})
    benchmarks = [_read_benchmark(path) for path in _benchmarks(config)]
    speeds, answers = speed_rows(benchmarks), evaluated.answers(evaluation)
    missing = {"quality: phicli evaluate": evaluation, "speed: phicli benchmark": speeds,
               "answers side by side: phicli evaluate --generate 3": answers}
    charts: list[Chart | None] = [trained.loss_chart(*one) for one in qualities]
    charts += [trained.error_chart(*one) for one in qualities]
    return {
        "title": f"{root.resolve().name}: what phicli made",
        "subtitle": f"{Path(config.model).name[:NAME]}; phicli {__version__}, "
                    f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}",
        "tiles": list(_tiles(results, evaluation, speeds)), "chain": [_link(one) for one in results],
        "stages": evaluated.stage_rows(evaluation), "measured_on": evaluated.measured_on(evaluation),
        "intervals": evaluated.has_intervals(evaluation), "charts": [chart for chart in charts if chart],
        "curves": [{"name": name, "points": [[shown(value) for value in point] for point in thinned(points)]}
                   for name, quality in qualities if (points := trained.curve(quality))],
        "errors": [Named(name, ", ".join(f"{error:.2%}" for error in errors))
                   for name, quality in qualities if (errors := trained.layer_errors(quality))],
        "speeds": speeds, "speed_on": measured_with(benchmarks), "answers": answers,
        "search": search,
        "origins": [row for one in results for row in _origins(one)],
        "settings": [Named(_name(one), in_words(table(one.about, "settings"))) for one in results],
        "missing": [line for line, there in missing.items() if not there],
    }


def _benchmarks(config: ReportConfig) -> list[Path]:
    """Files named, or what `phicli benchmark` left. Raises Missing: one that is named is not there."""
    named = [Path(name) for name in config.benchmark]
    for path in named:
        if not path.is_file():
            raise Missing("no such file", where=path, hint=f"phicli benchmark --output {shlex.quote(str(path))}")
    usual = config.root_folder / BENCHMARK
    return named or ([usual] if usual.is_file() else [])


def _read_benchmark(path: Path) -> Any:
    """The figures of phicli's benchmark or another program. Raises BadInput: there are none in the file."""
    document = read_json(path)
    if not speed_rows([document]):
        raise BadInput("no figures of a benchmark", where=path,
                       hint="phicli benchmark --output FILE", also=["llama-bench -o json > FILE"])
    return document


def _name(one: Made) -> str:
    return f"{one.place.parent.name}/{one.place.name}" if one.is_adapter else one.place.name


def _link(one: Made) -> Named:
    seconds = figure(one.about.get("seconds"))
    gave = ""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError, OverflowError, BadInput):
        gave = _gave(one)  # its manifest may lack any figure
    return Named(f"{one.step}: {_name(one)}", size(one.bytes) + (f", {duration(seconds)}" if seconds else ""), gave)


def _gave(one: Made) -> str:
    manifest = stages.read_manifest(one.place)
    assert manifest is not None  # it was there
    if one.step == "finetune":
        return telling.trained(manifest.quality)
    tell = {"quantize": telling.quantized, "optimize": telling.built}.get(one.step)
    return tell(one.place, manifest) if tell else ""


def _tiles(results: Sequence[Made], evaluation: Mapping[str, Any],
           speeds: Iterable[Mapping[str, Any]]) -> Iterable[Named]:
    """The figures that tell most."""
    weights = next((count for one in results if (count := figure(table(one.about, "quality").get("source_bytes")))), 0)
    if weights and results[-1].step == "optimize":  # there is one, which has said how large they are
        yield Named("Size", size(results[-1].bytes), f"of weights of {size(weights)}")
    measured = [(str(row.get("stage"))[:NAME], row) for row in entries(evaluation.get("stages"))]
    for title, key, digits, tuned in (("KL to the original", "kl", 3, False), ("Perplexity", "perplexity", 4, True)):
        known = [(name, value) for name, row in measured if (value := figure(row.get(key))) is not None
                 and (bool(row.get("adapter")) == tuned or name == "original")]
        if len(known) > 1 or (known and key == "kl"):
            first = f"; {known[0][0]} {shown(known[0][1])}" if tuned else ""
            yield Named(title, shown(known[-1][1], digits), f"{known[-1][0]}{first}")
    for row in [row for row in speeds if row["decode"]][:1]:
        yield Named("Decoding", f"{row['speed']} tokens/s", row["what"])


def _origins(one: Made) -> list[dict[str, str]]:
    """Each input of a result: the last part of its path, and the beginning of its fingerprint."""
    known = table(one.about, "origins")
    return [{"result": _name(one), "input": str(name)[:NAME], "fingerprint": str(content)[:DIGITS],
             "name": Path(str(table(known, name).get("path", ""))).name[:NAME]}
            for name, content in list(table(one.about, "inputs").items())[:MOST]]
