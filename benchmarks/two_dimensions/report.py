"""Tables of the two-dimensional study."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.report import cell, machine_name, markdown, undecided
from benchmarks.two_dimensions.evaluation import STEPS

Record = dict[str, Any]
Students = dict[str, list[Record]]
Measure = Callable[[list[Record]], list[float]]

BASELINE = "DMD, 8-step grid"
# The students that have a row of their own at every step count.
SHOWN = ("dmd-4", "dmd-16", "sc", "sc-clean-near", "mixed", "mixed-clean-near")
RELEASE = "mixed-clean-near-composed"
FACTORIAL = ("sc", "sc-clean", "sc-near", "sc-clean-near")


def describe(device: str, scale: dict[str, Any], seeds: list[int]) -> dict[str, Any]:
    return {
        "machine": machine_name(device),
        "torch": torch.__version__,
        "scale": scale,
        "seeds": seeds,
    }


def form_of(record: Record) -> str:
    """How the term is made, where not as in eq. 8 and 9."""
    parts = []
    if record["time_weight"] == "clean":
        parts.append("1 - t_s")
    if record["nearest"] is not None:
        parts.append(f"{record['nearest']} ends")
    if record["stop_grad"] is not None:
        parts.append(f"{record['stop_grad']} constant")
    return ", ".join(parts) or "eq. 8, 9"


def name_of(record: Record) -> str:
    setting, weight = record["setting"], record["weight"]
    if setting.startswith("dmd-"):
        return f"DMD, {setting.removeprefix('dmd-')}-step grid"
    if setting.startswith("flow-map-"):
        return f"flow map, {setting.removeprefix('flow-map-')} forward updates"
    if setting == "sc" and weight == 0:
        return BASELINE
    kind = "mixed 2/4/8" if setting.startswith("mixed") else "SC-DMD"
    form = form_of(record)
    return f"{kind}, weight {weight:g}" + ("" if form == "eq. 8, 9" else f", {form}")


def by_student(results: dict[str, Any]) -> Students:
    """Records of one student under its name, one for each seed."""
    students: Students = {}
    for record in results["students"]:
        students.setdefault(name_of(record), []).append(record)
    return students


def of_settings(students: Students, settings: tuple[str, ...]) -> Students:
    return {name: rs for name, rs in students.items() if rs[0]["setting"] in settings}


def distances(records: list[Record], solver: str, steps: int) -> list[float]:
    # JSON made strings of the step counts.
    return [{int(k): v for k, v in r["distance"][solver].items()}[steps] for r in records]


def overall(solver: str) -> Measure:
    """The number by which settings are ranked: the mean distance over the four step counts."""

    def measure(records: list[Record]) -> list[float]:
        columns = [distances(records, solver, steps) for steps in STEPS]
        return [statistics.fmean(values) for values in zip(*columns)]

    return measure


def defects(records: list[Record]) -> list[float]:
    return [statistics.fmean(d for d in r["defect"] if d == d) for r in records]


def rows_of(students: Students, measures: list[Measure], baseline: list[Record]) -> list[list[str]]:
    rows = []
    for name, records in students.items():
        cells = [cell(m(records), None if records is baseline else m(baseline)) for m in measures]
        rows.append([name, *cells])
    return rows


def distance_measures(solver: str) -> list[Measure]:
    return [lambda rs, k=k: distances(rs, solver, k) for k in STEPS] + [overall(solver)]


def distance_table(students: Students, solver: str, baseline: list[Record]) -> str:
    header = ["student", *(f"{steps} steps" for steps in STEPS), "mean"]
    return markdown(header, rows_of(students, distance_measures(solver), baseline))


def composition_table(students: Students, baseline: list[Record]) -> str:
    measures: list[Measure] = [defects]
    for solver in ("consistency", "euler"):
        for key in ("rms_distance", "same_cluster"):
            measures.append(lambda rs, s=solver, k=key: [r["agreement"][s][k] for r in rs])
    header = ["student", "defect (eq. 16)", "apart, consistency", "same cluster, consistency"]
    header += ["apart, Euler", "same cluster, Euler"]
    return markdown(header, rows_of(students, measures, baseline))


def grid_of_forms(students: Students, measure: Measure) -> str:
    """Forms of the term on the 8-step grid against weights."""
    base = students[BASELINE]
    forms: dict[str, dict[float, list[Record]]] = {}
    for records in students.values():
        if records[0]["setting"].startswith("sc") and records is not base:
            forms.setdefault(form_of(records[0]), {})[records[0]["weight"]] = records
    weights = sorted({weight for form in forms.values() for weight in form})
    rows = []
    for name, form in forms.items():
        cells = [cell(measure(form[w]), measure(base)) if w in form else "" for w in weights]
        rows.append([name, *cells])
    return markdown(["form of the term", *(f"weight {w:g}" for w in weights)], rows)


def effects_table(students: Students, measure: Measure) -> str:
    """What each of the two switches adds to the measure, seed by seed."""
    by_setting: dict[str, dict[float, list[float]]] = {}
    for records in of_settings(students, FACTORIAL).values():
        values = by_setting.setdefault(records[0]["setting"], {})
        values[records[0]["weight"]] = measure(records)
    effects = {
        "1 - t_s, all ends": ("sc-clean", "sc"),
        "1 - t_s, 2 ends": ("sc-clean-near", "sc-near"),
        "2 ends, without 1 - t_s": ("sc-near", "sc"),
        "2 ends, with 1 - t_s": ("sc-clean-near", "sc-clean"),
        "both": ("sc-clean-near", "sc"),
    }
    weights = sorted(set.intersection(*(set(values) for values in by_setting.values())))
    rows = []
    for name, (on, off) in effects.items():
        pairs = [(by_setting[on][w], by_setting[off][w]) for w in weights]
        cells = [cell([a - b for a, b in zip(*p)]) + " ~" * undecided(*p) for p in pairs]
        rows.append([name, *cells])
    return markdown(["switched on", *(f"weight {w:g}" for w in weights)], rows)


def flow_map_table(students: Students) -> str:
    """Against plain DMD and the same-sized student with the term, by the sampler of each."""
    best = "SC-DMD, weight 1, 1 - t_s, 2 ends"
    against = [measure(students[best]) for measure in distance_measures("consistency")]
    rows = []
    for name, records in students.items():
        is_map = "flow map" in records[0]["distance"]
        if not is_map and name not in (BASELINE, best):
            continue
        for solver in records[0]["distance"]:
            values = [measure(records) for measure in distance_measures(solver)]
            cells = [cell(v, None if v == a else a) for v, a in zip(values, against)]
            label = name if is_map else f"{name}, {solver}"
            rows.append([label, *cells])
    return markdown(["student, sampling", *(f"{k} steps" for k in STEPS), "mean"], rows)


def tables(results: dict[str, Any]) -> dict[str, str]:
    """What the documents show, by caption."""
    students = by_student(results)
    base, shown = students[BASELINE], of_settings(students, (*SHOWN, RELEASE))
    mean = "mean distance over 2, 4, 8, 16 steps"
    return {
        f"Consistency sampling, {mean}": grid_of_forms(students, overall("consistency")),
        "Effect of the two switches on it": effects_table(students, overall("consistency")),
        "Consistency sampling": distance_table(shown, "consistency", base),
        f"Euler sampling, {mean}": grid_of_forms(students, overall("euler")),
        "Euler sampling": distance_table(shown, "euler", base),
        "Defect (eq. 16)": grid_of_forms(students, defects),
        "Composition": composition_table(shown, base),
        "Flow maps": flow_map_table(students),
    }


def text(results: dict[str, Any]) -> str:
    teacher = results["teacher"]
    seconds = sum(results["seconds"].values())
    return "\n\n".join(
        [
            f"{results['machine']}, torch {results['torch']}, {len(results['seeds'])} seeds, "
            f"{results['scale']['iterations']} iterations, {seconds:.0f} s of training",
            f"Sliced Wasserstein-2 distance (~: undecided against {BASELINE}). "
            f"Teacher, {teacher['steps']} Euler steps: {cell(teacher['distance'])}; "
            f"real points: {cell(teacher['real_distance'])}",
            *(f"{caption}\n\n{table}" for caption, table in tables(results).items()),
            ranking(by_student(results)),
        ]
    )


def ranking(students: Students) -> str:
    """The best student, and those that the seeds can't tell from it."""
    scores = {
        name: overall("consistency")(records)
        for name, records in students.items()
        if "consistency" in records[0]["distance"]
    }
    order = sorted(scores, key=lambda name: statistics.fmean(scores[name]))
    best = order[0]
    flat = [name for name in order[1:] if undecided(scores[name], scores[best])]
    lines = [f"Lowest mean distance: {best}, {cell(scores[best])}"]
    lines += [f"  undecided against it: {name}, {cell(scores[name])}" for name in flat]
    return "\n".join(lines)
