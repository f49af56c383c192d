"""What the study that decides makes of its results: verdicts, tables, pages, pictures."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.video.decide import pages, tables
from benchmarks.video.decide.figures import median_seed, write
from benchmarks.video.decide.measures import in_text
from benchmarks.video.decide.paired import Paired, paired
from benchmarks.video.decide.records import (
    Results,
    distances,
    mean_distance,
    mean_progress,
    progress,
    seeds_with,
    values,
)
from benchmarks.video.decide.results import read
from benchmarks.video.decide.students import BASELINE, SALT, STUDENTS
from benchmarks.video.measures import LONG, STEPS

ROOT = Path(__file__).resolve().parents[2]


def test_a_difference_has_its_mean_its_standard_error_and_the_seeds_on_each_side() -> None:
    found = paired([1.0, 2.0, 3.0, 4.0], [2.0, 2.5, 3.5, 3.0])
    assert (found.mean, found.lower) == (-0.25, 3)
    assert found.error == pytest.approx(0.4330127)
    assert found.interval == pytest.approx((-0.25 - 3.182446 * 0.4330127, 1.128040), abs=1e-4)
    assert found.text() == "-0.2500 ± 0.4330, 3 of 4 ~"
    assert found.text(1) == "-0.2 ± 0.4, 3 of 4 ~"
    assert paired([1.0], [2.0]).text() == "-1.0000, 1 of 1 ~"


@pytest.mark.parametrize(
    ("differences", "decided"),
    [
        ([-1.0] * 5 + [-1.1], True),
        ([1.0] * 5 + [1.1], True),  # decided, and worse
        ([-1.0] * 4 + [-1.1], False),  # five signs are too few
        ([-1.0, -1.1, -1.2, -0.9, -1.0, 1.0], False),  # one of six is on the other side
        ([-1.0] * 15 + [9.0], False),  # the signs alone: the mean's interval holds zero
        ([-0.01] * 4 + [0.01] * 4 + [-9.0, -9.1] * 4, False),  # the interval alone
        ([-1.0, 1.0] * 8, False),
        ([-1.0], False),
    ],
)
def test_decided_is_what_the_interval_and_the_signs_agree_on(
    differences: list[float], decided: bool
) -> None:
    assert paired(differences, [0.0] * len(differences)).decided == decided


def quality(distance: float) -> dict[str, float]:
    return {
        "distance": distance, "deviation": 2 * distance, "accuracy": 0.9, "coverage": 9.0,
        "motion": 4.0, "confidence": 0.9,
    }  # fmt: skip


def record(distance: float, best: float) -> dict[str, Any]:
    def whole(d: float, updates: int) -> dict[str, Any]:
        return {
            "updates": updates,
            "quality": {str(k): quality(d) for k in STEPS},
            "long": [quality(d)] * LONG,
            "defect": [0.001, 0.003],
            "frames": in_text(torch.zeros(len(STEPS) + LONG, 10, 8, 16)),
        }

    stages = {str(k): quality(distance) for k in (2, 4, 8)}
    progress = [{"updates": u, "selection": stages, "report": stages} for u in (25, 50)]
    where = {
        "machine": "a CPU, 1 threads",
        "torch": "2.13",
        "training_seconds": 3.0,
        "evaluation_seconds": 1.0,
    }
    return {"progress": progress, "end": whole(distance, 50), "best": whole(best, 25), **where}


def results(seeds: int, names: tuple[str, ...] = tuple(STUDENTS)) -> Results:
    """DMD's distance is a tenth of the seed's place, Salt's lower by 0.05 at the end, and by
    nothing at the best."""
    found: Results = {}
    for seed in range(seeds):
        dmd = 0.1 * (1 + (seed * 5) % seeds)
        references = {"real": quality(0.02), "teacher": quality(0.04)}
        found[seed] = {"references": record(0.1, 0.1) | references} | {
            name: record(dmd - (0.05 + 0.001 * seed) * (name == SALT), dmd) for name in names
        }
    return found


def test_the_sentence_says_what_is_decided_and_what_is_not() -> None:
    found = tables.sentence(results(6), SALT, BASELINE)
    assert found == (
        "Salt against DMD-4, 6 seeds: at the end better everywhere. "
        "At each one's best undecided everywhere."
    )
    some = results(6)
    for records in some.values():
        records[SALT]["end"]["quality"]["2"] = records[BASELINE]["end"]["quality"]["2"]
    assert "better at 1, 4 and 8 steps, the mean of 2, 4, 8, the last quarter" in tables.sentence(
        some, SALT, BASELINE
    )
    assert "; undecided at 2 steps." in tables.sentence(some, SALT, BASELINE)
    few = tables.sentence(results(5), SALT, BASELINE)
    assert few.startswith("Salt against DMD-4, 5 seeds: too few for a verdict, which needs 6.")
    assert "at the end worse everywhere" in tables.sentence(results(6), BASELINE, SALT)
    without = tables.sentence(results(6, (BASELINE, SALT)), SALT, "mixed")
    assert without.endswith("no seed has both yet.")


def test_the_answers_table_has_both_students_their_difference_and_its_mark() -> None:
    lines = tables.answer_table(results(6)).splitlines()
    assert len(lines) == 2 + 6
    assert "| Fréchet distance, 6 seeds |" in lines[0]
    assert "| -0.053 ± 0.001, 6 of 6 |" in lines[4]
    assert lines[4].endswith("| -0.105 ± 0.002, 6 of 6 |")  # the deviation is twice the distance
    assert "| +0.000 ± 0.000, 0 of 6 ~ |" in lines[7]


def test_a_comparison_takes_the_seeds_that_have_both_students() -> None:
    found = results(4)
    del found[2][SALT]
    assert len(tables.compare(found, SALT, BASELINE, mean_distance("end")).differences) == 3
    assert "DMD-8 less DMD-4" in tables.pairs_table(found, "end")
    for records in found.values():
        del records["dmd-8"]
    assert "DMD-8" not in tables.pairs_table(found, "end")
    assert "DMD-8" not in tables.students_table(found, "end")
    assert "| Salt | 3 |" in tables.students_table(found, "end")


def test_a_table_says_from_which_update_on_students_differ() -> None:
    found = results(6)
    for seed, records in found.items():
        for side, lower in zip(("8", "4", "2"), (0.06, 0.03, 0.0)):
            stages = records[SALT]["progress"]
            theirs = records[BASELINE]["progress"][1]["report"][side]["distance"]
            stages[1]["report"] = {
                **stages[1]["report"], side: quality(theirs - lower - 0.0001 * seed)
            }  # fmt: skip
    lines = tables.when_table(found, (2, 4, 8)).splitlines()
    assert lines[0].startswith("| updates, mean of 2, 4, 8 steps | Salt less DMD-4 |")
    assert lines[2].startswith("| 25 | -0.053 ± 0.001, 6 of 6 | +0.000 ± 0.000, 0 of 6 ~ |")
    assert lines[3].startswith("| 50 | -0.030 ± 0.000, 6 of 6 |")
    assert "| 50 | -0.060 ± 0.000, 6 of 6 |" in tables.when_table(found, (8,))
    for records in found.values():
        del records["mixed"]
    assert "mixed steps" not in tables.when_table(found, (8,))
    del found[0][BASELINE]  # another machine's seed, which has begun with another student
    assert "| 50 | -0.060 ± 0.000, 5 of 5 ~ |" in tables.when_table(found, (8,))


def test_the_deficit_is_a_students_own_8_steps_less_its_4() -> None:
    found = results(6, (BASELINE, SALT))
    for seed, records in found.items():
        stage = records[BASELINE]["progress"][1]
        eight = quality(stage["report"]["8"]["distance"] + 0.02 + 0.0004 * seed)
        stage["report"] = {**stage["report"], "8": eight}
    lines = tables.deficit_table(found).splitlines()
    assert lines[0] == "| updates | DMD-4 | Salt |"
    assert lines[2] == "| 25 | +0.000 ± 0.000, 0 of 6 ~ | +0.000 ± 0.000, 0 of 6 ~ |"
    assert lines[3].startswith("| 50 | +0.021 ± 0.000, 0 of 6 | +0.000 ±")


def test_the_pictured_seed_is_the_median_by_dmds_own_distance() -> None:
    found = results(7)
    order = sorted(found, key=lambda seed: found[seed][BASELINE]["end"]["long"][-1]["distance"])
    assert median_seed(found) == order[3]
    del found[order[6]]
    assert median_seed(found) == order[2]
    for records in found.values():  # what Salt does there counts for nothing
        records[SALT] = record(0.0, 0.0)
    assert median_seed(found) == order[2]


README, EVIDENCE = "README.md", "docs/evidence.md"
FEW, FOUR_AND_8, FAR = (
    ("1 step", "2 steps"),
    ("4 steps", "8 steps"),
    "last quarter of long rollouts",
)
LATER = ("mixed-sc after 1-3", "mixed-sc after 2-3")
AGAINST_DMD, MIXED, DELAYED = [(SALT, BASELINE)], [("mixed", BASELINE)], [(n, SALT) for n in LATER]


def on_the_page(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


@pytest.mark.parametrize(
    ("page", "words", "pairs", "when", "columns", "verdict"),
    [
        (
            README,
            "At its best update, in 4 or 8 steps: undecided",
            AGAINST_DMD,
            "best",
            FOUR_AND_8,
            "undecided",
        ),
        (
            README,
            "decidedly better than the same mixed steps without its term in 4 and 8 steps and in "
            "long rollouts",
            [(SALT, "mixed")],
            "end",
            [*FOUR_AND_8, FAR],
            "lower",
        ),
        (EVIDENCE, "1 and 2 steps, which go on improving", AGAINST_DMD, "best", FEW, "lower"),
        (EVIDENCE, "nowhere decidedly better than DMD-4", MIXED, "best", None, "undecided"),
        (EVIDENCE, "Weight 0.2", [("mixed-sc 0.2", SALT)], "end", [*FOUR_AND_8, FAR], "higher"),
        (
            EVIDENCE,
            "long rollouts are worse on each of eight seeds",
            DELAYED,
            "end",
            [FAR],
            "higher",
        ),
    ],
)
def test_what_the_pages_say_is_what_was_decided(
    page: str, words: str, pairs: Any, when: str, columns: Any, verdict: str
) -> None:
    found = read(ROOT / "benchmarks/results/decide")
    assert words in on_the_page(page)
    for name, other in pairs:
        for column in columns or distances(when):
            pair = tables.compare(found, name, other, distances(when)[column])
            told = "undecided" if not pair.decided else "lower" if pair.mean < 0 else "higher"
            assert told == verdict, (name, other, column, pair.text())


def test_against_dmd_on_8_steps_one_step_alone_is_decided() -> None:
    found = read(ROOT / "benchmarks/results/decide")
    told = (
        "Against DMD trained on the 8-step grid, Salt is better at 1 step at the end, and all else"
    )
    assert told in on_the_page(EVIDENCE)
    pairs = {
        (when, column): tables.compare(found, SALT, "dmd-8", measure)
        for when in ("end", "best")
        for column, measure in distances(when).items()
    }
    assert [where for where, pair in pairs.items() if pair.decided] == [("end", "1 step")]
    assert pairs["end", "1 step"].mean < 0


def test_what_the_pages_say_of_the_training_is_what_was_decided() -> None:
    found = read(ROOT / "benchmarks/results/decide")
    updates = [stage["updates"] for stage in found[0][SALT]["progress"]]

    def term(i: int) -> Paired:
        measure = mean_progress(i, "distance", (2, 4, 8))
        return tables.compare(found, SALT, "mixed", measure)

    def deficit(i: int, name: str = BASELINE) -> Paired:
        more, fewer = (values(found, list(found), name, progress(i, "distance", k)) for k in (8, 4))
        return paired(more, fewer)

    for i, update in enumerate(updates):
        assert (deficit(i).mean > 0) == (update >= 75)
        assert (deficit(i).decided and deficit(i).mean > 0) == (update >= 175)
        assert (term(i).decided and term(i).mean < 0) == (update >= 150)
        assert (term(i).decided and term(i).mean > 0) == (update <= 50)
    assert [round(term(i).mean, 3) for i in (0, 1)] == [0.001, 0.001]

    def rise(name: str, k: int) -> float:
        """From the least mean to the end's."""
        every = [statistics.fmean(values(found, list(found), name, progress(i, "distance", k)))
                 for i in range(len(updates))]  # fmt: skip
        return every[-1] - min(every)

    for k in (4, 8):
        assert 0 < rise(SALT, k) < rise(BASELINE, k) / 2
    assert "half as much at 4 and 8 steps and a third far out" in on_the_page(EVIDENCE)
    for column, (low, high) in {
        "4 steps": (0.4, 0.6),
        "8 steps": (0.4, 0.6),
        FAR: (0.25, 0.4),
    }.items():
        gains = [tables.compare(found, name, "mixed", distances("end")[column]).mean
                 for name in ("mixed-sc 0.2", SALT)]  # fmt: skip
        assert low < gains[0] / gains[1] < high
    readme = on_the_page(README)
    assert "in 8 steps (0.071 at the end); with Salt much less (0.052)" in readme
    for column in (*FOUR_AND_8, FAR):
        assert tables.compare(found, SALT, "mixed", distances("end")[column]).lower == 16
    ends = (values(found, list(found), n, distances("end")["8 steps"]) for n in (SALT, BASELINE))
    assert [f"{statistics.fmean(end):.3f}" for end in ends] == ["0.052", "0.071"]
    sooner = tables.compare(found, BASELINE, SALT, lambda record: record["best"]["updates"])
    assert sooner.decided
    assert sooner.mean < 0
    best = [tables.mean_updates(found, list(found), name, "best") for name in (SALT, BASELINE)]
    assert "({} against {})".format(*best) in on_the_page(EVIDENCE)
    told = "1.05 at 8 steps after 50 updates, 1.08 after 100, and 1.04 after 300"
    assert told in on_the_page(EVIDENCE)
    for update, deviation in ((50, "1.05"), (100, "1.08"), (300, "1.04")):
        measure = progress(updates.index(update), "deviation", 8)
        mean = statistics.fmean(values(found, list(found), BASELINE, measure))
        assert f"{mean:.2f}" == deviation
    real = statistics.fmean(r["references"]["real"]["distance"] for r in found.values())
    assert f"{real:.3f}" == "0.035"
    assert "Real videos have a distance of 0.035" in on_the_page(EVIDENCE)
    assert "gained nothing either (six seeds)" in on_the_page(EVIDENCE)
    ramp = "mixed-sc ramp 2-3"
    assert len(seeds_with(found, (ramp, SALT))) == 6
    for name in (*LATER, ramp):
        for when in ("end", "best"):
            pairs = [tables.compare(found, name, SALT, m) for m in distances(when).values()]
            assert not any(p.decided and p.mean < 0 for p in pairs)
    for name in LATER:
        far = tables.compare(found, name, SALT, distances("end")[FAR])
        assert far.lower == 0


def test_the_seeds_of_the_own_terms_are_as_many_as_the_page_says() -> None:
    found = read(ROOT / "benchmarks/results/decide")
    words = {3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
    ours, matched = (words[len(seeds_with(found, (n,)))] for n in ("moments", "extrapolated"))
    page = on_the_page("docs/evidence/decide.md")
    assert f"{ours.capitalize()} and {matched} of the eight planned seeds" in page


def test_every_block_is_made_of_results_that_are_there(tmp_path: Path) -> None:
    for names in (tuple(STUDENTS), (BASELINE, SALT)):
        for name, block in pages.BLOCKS.items():
            text = block(results(6, names))
            assert text.strip(), name
            assert "nan" not in text, name
            assert "nan" not in block(results(1, names)), name
    assert write(tmp_path, results(6), (8, 16))
    for stem in ("frames", "training"):
        assert (tmp_path / f"decide_{stem}.png").stat().st_size > 5_000


def test_a_page_is_filled_where_it_says_so_and_nowhere_else() -> None:
    text = "before\n<!-- decide: seed -->\nold\n<!-- end -->\nafter\n"
    filled = pages.filled(text, results(3))
    assert filled == (
        "before\n<!-- decide: seed -->\n\nSeed 2, the median by DMD's own distance: "
        "DMD-4 has 0.200 and 0.200, Salt has 0.148 and 0.148.\n\n"
        "<!-- end -->\nafter\n"
    )
    assert pages.filled(filled, results(3)) == filled


def test_only_the_pages_that_are_out_of_date_are_written(tmp_path: Path) -> None:
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / page).write_text("no block\n")
    page = tmp_path / pages.PAGES[0]
    page.write_text("<!-- decide: answer -->\n<!-- end -->\n")
    assert pages.refresh(tmp_path, results(6)) == [page]
    assert "Salt against DMD-4, 6 seeds" in page.read_text()
    assert pages.refresh(tmp_path, results(6)) == []


def test_the_documents_show_the_recorded_results() -> None:
    recorded = read(ROOT / "benchmarks/results/decide")
    shown = set()
    for page in pages.PAGES:
        text = (ROOT / page).read_text()
        assert pages.filled(text, recorded) == text, f"{page}: run the study with --tables"
        shown |= set(re.findall(r"<!-- decide: (.*) -->", text))
    assert shown == set(pages.BLOCKS)
