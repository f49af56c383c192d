"""`salt-losses report`: what a log folder holds is on the page, and the page works in a browser."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.pages.browser import Browser, find
from salt_losses.cli import main
from salt_losses.cli.report import figures
from salt_losses.cli.report.curves import Axis, number, of_step_count, series, value_range
from salt_losses.cli.report.figures import HEIGHT, TOP, figure
from salt_losses.cli.report.measures import HEALTH, TERMS, Measure
from salt_losses.cli.report.page import page
from salt_losses.cli.report.read import Run, read_runs

STEPS = (2, 4, 8)


def line(iteration: int, **numbers: float) -> str:
    k = STEPS[iteration // 5 % 3]
    values = {"salt/num_steps": float(k), "salt/dmd_loss": k + iteration / 1000}
    return json.dumps({"iteration": iteration, **values, **numbers}) + "\n"


def write_log(folder: Path, lines: int = 60, **numbers: float) -> Path:
    folder.mkdir(parents=True)
    text = "".join(line(5 * i, **numbers) for i in range(lines))
    (folder / "salt_metrics.jsonl").write_text(text)
    return folder


def write_sweeps(folder: Path, iterations: tuple[int, ...], ending: str = "") -> None:
    for shade, iteration in enumerate(iterations):
        inner = folder / "salt_sweeps" / f"iteration_{iteration:06d}"
        inner.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (32, 16), (40 * shade % 256, 90, 120))
        picture.save(inner / f"sheet{ending}.png")
        picture.save(inner / f"steps_4{ending}.gif")
        numbers = {
            "iteration": iteration,
            "weights": "ema" if ending else "student",
            "step_counts": [1, 2, 4],
            "agreement": {"1-2": 0.2, "1-4": 0.1, "2-4": 0.5 + shade / 10},
            "defect": {"times": [1.0, 0.9, 0.0], "per_interval": [0.01, math.nan], "mean": 0.01},
        }
        (inner / f"sweep{ending}.json").write_text(json.dumps(numbers))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "run")


def read(folder: Path) -> Run:
    return read_runs([folder])[0]


def page_of(*folders: Path, sweeps: int = 40) -> str:
    return page(read_runs(list(folders)), 1e9, sweeps)


def test_a_curve_holds_the_updates_of_one_step_count_and_no_other(log: Path) -> None:
    run = read(log)
    for k in STEPS:
        pairs = of_step_count(run, "salt/dmd_loss", k)
        assert len(pairs) == 20
        assert all(value == k + iteration / 1000 for iteration, value in pairs)
    text = page_of(log)
    dmd = text[text.index('id="salt/dmd_loss"') :].split("</figure>")[0]
    labels = re.findall(r'class="end s(\d)"[^>]*>([^<]*)<', dmd)
    assert sorted(labels) == [("0", "K = 2"), ("1", "K = 4"), ("2", "K = 8")]
    assert dmd.count("<polyline") == 3
    assert dmd.count("<circle") == 60


def test_a_curves_bins_are_medians_of_all_its_points() -> None:
    points = [(float(i), float(i % 7)) for i in range(1000)]
    curve = series("", 0, points)
    assert len(curve.bins) == 48
    assert all(b.low <= b.median <= b.high for b in curve.bins)
    assert {b.median for b in curve.bins} == {3.0}
    few = series("", 0, points[:5])
    assert [(b.x, b.median) for b in few.bins] == points[:5]


@pytest.mark.parametrize("torn", ['{"iteration": 300, "salt/nu', "{", '{"iteration": 300'])
def test_a_last_line_that_is_half_written_is_left_out(log: Path, torn: str) -> None:
    path = log / "salt_metrics.jsonl"
    path.write_text(path.read_text() + torn)
    run = read(log)
    assert len(run.lines) == 60
    assert any("last line is not finished" in remark for remark in run.remarks)
    # The run goes on, and the line is finished.
    path.write_text(path.read_text()[: -len(torn)] + line(300))
    run = read(log)
    assert len(run.lines) == 61
    assert run.remarks == []


def test_lines_that_are_no_metrics_are_counted_and_the_others_shown(log: Path) -> None:
    path = log / "salt_metrics.jsonl"
    path.write_bytes(b'garbage\xff\n[1]\n{"no": "iteration"}\n\n' + path.read_bytes())
    run = read(log)
    assert len(run.lines) == 60
    assert run.remarks == ["salt_metrics.jsonl: 3 lines could not be read"]
    assert run.unread == 3


def test_a_run_that_went_back_to_a_checkpoint_has_each_iteration_once(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run", 10)
    with (log / "salt_metrics.jsonl").open("a") as file:
        file.write("".join(line(5 * i, **{"salt/sc_loss": 1.0}) for i in range(6, 12)))
    run = read(log)
    assert [x["iteration"] for x in run.lines] == [5 * i for i in range(12)]
    assert ["salt/sc_loss" in x for x in run.lines] == [False] * 6 + [True] * 6
    assert "4 updates that it then made again" in run.remarks[0]


def test_accumulated_lines_of_one_update_count_as_their_mean(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run", 2)
    values = [1.0, 2.0, 6.0]
    with (log / "salt_metrics.jsonl").open("a") as file:
        file.write("".join(line(10, **{"salt/sc_loss": value}) for value in values))
    last = read(log).lines[-1]
    assert last["iteration"] == 10
    assert last["salt/sc_loss"] == 3.0


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("later", [1, 3])
def test_an_update_that_is_made_again_right_at_a_resume_is_replaced(
    tmp_path: Path, accumulated: int, recorded: bool, later: int
) -> None:
    log = write_log(tmp_path / "run", 0)
    made = [(5 * i, 1.0) for i in range(4)] + [(5 * i, 2.0) for i in range(3, 3 + later)]
    lines = [line(i, **{"salt/sc_loss": v}) for i, v in made for _ in range(accumulated)]
    (log / "salt_metrics.jsonl").write_text("".join(lines))
    if recorded:
        started(log, (1.0, 0), (2.0, 15))
    run = read(log)
    replaced = recorded or later > 1
    assert [x["salt/sc_loss"] for x in run.lines[:3]] == [1.0] * 3
    assert {x["salt/sc_loss"] for x in run.lines[3:]} == ({2.0} if replaced else {1.5})
    assert any("1 update that" in remark for remark in run.remarks) is replaced


def test_a_resume_with_another_accumulation_keeps_all_of_an_updates_lines(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run", 0)
    made = [(0, 1.0), (5, 1.0), (10, 9.0), (10, 1.0), (10, 2.0), (15, 1.0), (15, 2.0), (20, 1.0)]
    text = "".join(line(i, **{"salt/sc_loss": v}) for i, v in made)
    (log / "salt_metrics.jsonl").write_text(text)
    started(log, (1.0, 0), (2.0, 10))
    assert [x["salt/sc_loss"] for x in read(log).lines] == [1.0, 1.0, 1.5, 1.5, 1.0]


HUGE = "9" * 400


def test_numbers_of_400_digits_are_infinite_wherever_they_are(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = log / "salt_metrics.jsonl"
    whole = path.read_text()
    for huge in (HUGE, "-" + HUGE, "1e400", "1e308", HUGE * 20):
        path.write_text(f'{whole}{{"iteration": 300, "salt/dmd_loss": {huge}}}\n')
        assert not math.isfinite(read(log).lines[-1]["salt/dmd_loss"])
        assert main(["report", str(log)]) == 1
    path.write_text(f'{{"iteration": {HUGE}, "salt/dmd_loss": 1}}\n{whole}')
    (log / "salt_alarms.jsonl").write_text(f'{{"iteration": {HUGE}, "cause": "x"}}\n')
    start = f'{{"iteration": {HUGE}, "time": {HUGE}}}'
    (log / "salt_run.json").write_text(f'{{"settings": {{"seed": {HUGE}}}, "starts": [{start}]}}')
    write_sweeps(log, (0, 50, 100))
    broken = [f'{{"iteration": {HUGE}}}', '{"step_counts": ["x"]}', '{"step_counts": 4}']
    for i, text in enumerate(broken):
        (log / "salt_sweeps" / f"iteration_{50 * i:06d}" / "sweep.json").write_text(text)
    assert main(["report", str(log)]) == 0
    assert "Traceback" not in capsys.readouterr().err
    assert sum("sweep.json: could not be read" in remark for remark in read(log).remarks) == 3


def test_what_is_not_finite_is_said_and_not_drawn(log: Path) -> None:
    path = log / "salt_metrics.jsonl"
    path.write_text(path.read_text() + line(300, **{"salt/dmd_loss": math.nan}))
    text = page_of(log)
    assert "Not finite in 1 update." in text
    assert "nan" not in re.sub(r"<script>.*</script>", "", text)


def test_an_old_log_has_no_health_section_and_a_new_one_has_its_numbers(tmp_path: Path) -> None:
    assert 'id="health"' not in page_of(write_log(tmp_path / "old"))
    new = write_log(tmp_path / "new", **{m.key: 0.5 for m in (*HEALTH, *TERMS)})
    text = page_of(new)
    assert all(f'id="{measure.key}"' in text for measure in (*HEALTH, *TERMS))


def test_the_healthy_range_is_shaded_where_its_values_are() -> None:
    curve = series("K = 4", 0, [(float(i), i / 10) for i in range(11)])
    drawn = figure([curve], "", "", (0, 10), (0.0, 1.0, False), healthy=(0.25, 0.5))
    y, height = map(
        float, re.findall(r'class="healthy".* y="([\d.]+)".* height="([\d.]+)"', drawn)[0]
    )
    axis = Axis(0.0, 1.0, HEIGHT - 32, TOP)
    assert y == pytest.approx(axis(0.5), abs=0.1)
    assert y + height == pytest.approx(axis(0.25), abs=0.1)
    above = figure([curve], "", "", (0, 10), (0.0, 1.0, False), healthy=(0.5, None))
    assert f'y="{TOP:.1f}"' in above
    assert "healthy" not in figure([curve], "", "", (0, 10), (0.0, 1.0, False))


def test_a_critic_smaller_than_the_teacher_may_lag_as_far_as_at_the_start(tmp_path: Path) -> None:
    key = "salt/health/critic_lag"
    for name, first, expected in (("same", -0.01, "below 0."), ("smaller", 0.25, "below 0.25.")):
        log = write_log(tmp_path / name, **{key: first})
        text = page_of(log)
        assert f"Shaded: healthy, {expected}" in text[text.index(f'id="{key}"') :]


def test_healthy_ranges_have_a_lower_end_below_their_upper_one() -> None:
    shaded = [m for m in HEALTH if m.healthy is not None]
    assert shaded
    for measure in shaded:
        low, high = measure.healthy or (None, None)
        assert low is not None or high is not None
        assert low is None or high is None or low < high


def test_several_runs_share_a_figure_for_each_step_count_and_one_value_axis(
    tmp_path: Path,
) -> None:
    logs = [write_log(tmp_path / name) for name in ("a", "b")]
    text = page_of(*logs)
    dmd = text[text.index('id="salt/dmd_loss"') :].split("</figure>")[0]
    assert re.findall("<h4>([^<]*)</h4>", dmd) == ["K = 2", "K = 4", "K = 8"]
    assert dmd.count("<svg") == 3
    assert dmd.count("<polyline") == 6
    ticks = [re.findall(r'text-anchor="end">([^<]*)<', svg) for svg in dmd.split("<svg")[1:]]
    assert ticks[0] == ticks[1] == ticks[2]


def test_settings_that_differ_between_runs_come_first(tmp_path: Path) -> None:
    logs = [write_log(tmp_path / name) for name in ("a", "b")]
    for log, weight in zip(logs, (0.3, 1.0)):
        record = {"settings": {"sc": {"weight": weight}, "seed": 0}, "trainer": "Self Forcing"}
        (log / "salt_run.json").write_text(json.dumps(record | {"versions": {"torch": "2.13"}}))
    text = page_of(*logs)
    differ, same = text[text.index("What differs") :].split("What is the same")
    assert re.findall("<th scope=row>(.*?)</th>", differ) == ["sc.weight"]
    assert re.findall("<td class=text>(.*?)</td>", differ) == ["0.3", "1.0"]
    assert "seed" in same
    assert "version: torch" in same


def test_an_old_runs_settings_come_from_its_last_checkpoint(log: Path) -> None:
    for step, seed in ((5, 1), (10, 2)):
        folder = log / f"checkpoint_model_{step:06d}"
        folder.mkdir()
        (folder / "salt.json").write_text(json.dumps({"settings": {"seed": seed}, "iteration": 5}))
    assert read(log).settings == {"seed": 2}


def test_alarms_are_listed_and_marked_at_their_iteration(log: Path) -> None:
    alarm = {"iteration": 100, "cause": "critic", "message": "the critic <has> run away"}
    (log / "salt_alarms.jsonl").write_text(json.dumps(alarm) + "\n" + '{"iteration": 10')
    text = page_of(log)
    assert "the critic &lt;has&gt; run away" in text
    assert text.count('class="alarm"') == text.count("<svg") > 0


def started(log: Path, *starts: tuple[float, int]) -> None:
    values = [{"time": time, "iteration": iteration} for time, iteration in starts]
    (log / "salt_run.json").write_text(json.dumps({"settings": {}, "starts": [*values, "torn"]}))


def test_alarms_and_sweeps_that_a_later_start_makes_again_are_cut_as_the_curves_are(
    log: Path,
) -> None:
    write_sweeps(log, (0, 100, 200))
    for iteration, time in ((0, 25.0), (100, 15.0)):  # the second start has made the first again
        path = log / "salt_sweeps" / f"iteration_{iteration:06d}" / "sweep.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"time": time}))
    alarms = [(50, 12.0), (90, 15.0), (90, 29.0), (200, None)]
    (log / "salt_alarms.jsonl").write_text(
        "".join(json.dumps({"iteration": i, "time": t}) + "\n" for i, t in alarms)
    )
    expected = {
        ((10.0, 0),): ([50, 90, 90], [0, 100]),  # what has no time is of an older version
        ((10.0, 0), (20.0, 80)): ([50, 90], [0]),  # a resume
        ((10.0, 0), (20.0, 0)): ([90], [0]),  # another run in the same folder
        ((10.0, 0), (30.0, 150)): ([50, 90, 90], [0, 100]),
    }
    for starts, (alarmed, swept) in expected.items():
        started(log, *starts)
        run = read(log)
        assert [alarm["iteration"] for alarm in run.alarms] == alarmed
        assert [sweep.iteration for sweep in run.sweeps] == swept
        assert len(run.lines) == 60
    assert "1 sweep from before the run was started again" in page_of(log)


def test_a_start_that_has_no_line_yet_ends_the_curves_of_the_one_before(log: Path) -> None:
    written = (log / "salt_metrics.jsonl").stat().st_mtime
    started(log, (written - 9, 0), (written + 1, 100))
    assert [line["iteration"] for line in read(log).lines] == list(range(0, 100, 5))


def test_sheets_beyond_the_wanted_number_are_thinned_evenly(log: Path) -> None:
    write_sweeps(log, tuple(range(0, 500, 50)))
    text = page_of(log, sweeps=4)
    shown = [int(i) for i in re.findall('data-iteration="([0-9]+)"', text)]
    assert shown == [0, 150, 300, 450]
    assert "4 of 10 sweeps" in text


def test_a_sweep_without_pictures_or_with_a_broken_file_still_gives_its_numbers(log: Path) -> None:
    write_sweeps(log, (0, 50))
    for sheet in (log / "salt_sweeps").glob("*/*.png"):
        sheet.unlink()
    broken = log / "salt_sweeps" / "iteration_000100"
    broken.mkdir()
    (broken / "sweep.json").write_text("{")
    text = page_of(log)
    assert 'id="sweep/agreement"' in text
    assert 'type="range"' not in text
    assert "sweep.json: could not be read" in text


def test_nothing_of_a_log_becomes_markup_and_nothing_is_loaded(tmp_path: Path) -> None:
    log = write_log(tmp_path / "<img src=x onerror=alert(1)>")
    (log / "salt_run.json").write_text(
        json.dumps({"settings": {"</script>": "<b>"}, "trainer": "<script>", "versions": {}})
    )
    write_sweeps(log, (0, 50))
    text = page_of(log)
    assert "<img src=x" not in text
    assert text.count("<script>") == text.count("</script>") == 1
    linked = re.findall(r'href="#(sweep/[^"]*)"', page_of(log, write_log(tmp_path / "other")))
    assert linked == ["sweep/agreement/&lt;img src=x onerror=alert(1)&gt;"]
    assert set(re.findall(r'src="(\w+):', text)) == {"data"}
    assert not re.search(r"https?://", text)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1.0, 2.0], False), ([1e-4, 1.0], True), ([-1.0, 100.0], False), ([0.0, 100.0], False)],
)
def test_decades_are_drawn_in_logarithms(values: list[float], expected: bool) -> None:
    low, high, log = value_range(values, None)
    assert log is expected
    assert low <= min(values) <= max(values) <= high
    ticks = Axis(low, high, 0, 1, log).ticks()
    assert 2 <= len(ticks) <= 7
    assert all(low <= tick <= high * (1 + 1e-9) for tick in ticks)


def test_numbers_are_short() -> None:
    values = [0.0, -0.5, 1234.5, 1e-5, 2.5e7]
    assert list(map(number, values)) == ["0", "\N{MINUS SIGN}0.5", "1234", "10⁻⁵", "2·10⁷"]


def test_the_command_writes_one_file_where_it_is_told_to(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(log)]) == 0
    assert (log / "salt_report.html").read_text().startswith("<!doctype html>")
    output = tmp_path / "other.html"
    assert main(["report", str(log), "-o", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert not list(tmp_path.glob("*.part"))


def test_a_report_without_jinja2_says_what_it_needs(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    figures._templates.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    assert main(["report", str(log)]) == 2
    assert "needs Jinja2: pip install jinja2" in capsys.readouterr().err
    assert not (log / "salt_report.html").exists()


def test_a_folder_without_a_log_is_an_error_that_says_what_is_missing(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "has no salt_metrics.jsonl" in error
    assert str(log) in error
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    assert main(["report", str(log), "-o", str(tmp_path / "no" / "where.html")]) == 2


def test_a_run_that_has_only_begun_has_a_page(tmp_path: Path) -> None:
    log = write_log(tmp_path / "run", 0)
    assert "No generator update is logged yet" in page_of(log)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = find()
    if executable is None:
        pytest.skip("no Chromium is installed")
    with Browser(executable) as opened:
        yield opened


def test_the_page_works_in_a_browser(tmp_path: Path, browser: Browser) -> None:
    log = write_log(tmp_path / "run", 60, **{m.key: 0.5 for m in HEALTH})
    write_sweeps(log, (0, 50, 100))
    write_sweeps(log, (0, 50, 100), "_ema")
    output = tmp_path / "report.html"
    assert main(["report", str(log), "-o", str(output)]) == 1  # 0.5 is not healthy everywhere
    evaluate = browser.evaluate

    browser.open(output)
    sizes = evaluate(
        "[...document.querySelectorAll('svg')].map(s => s.getBoundingClientRect().width)"
    )
    assert len(sizes) == len(HEALTH) + 1 + 4
    assert min(sizes) > 200
    overlap = evaluate(
        "[...document.querySelectorAll('svg')].filter(s => {"
        "const outer = s.getBoundingClientRect();"
        "return [...s.querySelectorAll('text')].some(t => { const r = t.getBoundingClientRect();"
        "return r.left < outer.left - 1 || r.right > outer.right + 1 }) }).length"
    )
    assert overlap == 0, "text is cut off"

    # The slider shows one sheet at a time, and says of which iteration.
    shown = (
        "[...document.querySelectorAll('.sweeps:first-child .sheet')]"
        ".filter(s => s.getBoundingClientRect().height > 0).map(s => s.dataset.iteration)"
    )
    assert evaluate(shown) == ["100"]
    moved = "slider.value = 0; slider.dispatchEvent(new Event('input'))"
    evaluate(f"const slider = document.querySelector('input[type=range]'); {moved}")
    assert evaluate(shown) == ["0"]
    assert evaluate("document.querySelector('output').value") == "0"
    assert evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")

    # The verdict leads to its charts.
    links = "[...document.querySelectorAll('.verdict li.wrong a')]"
    assert evaluate(f"{links}.map(a => !!document.getElementById(a.hash.slice(1)))") == [True] * 3

    # On a phone nothing is wider than the screen.
    browser.size(360, 800)
    assert evaluate("document.documentElement.scrollWidth") <= 360

    light = evaluate("getComputedStyle(document.body).backgroundColor")
    browser.open(output, scheme="dark")
    assert evaluate("getComputedStyle(document.body).backgroundColor") != light

    # In print: no slider, and the first and the last sheet.
    browser.send("Emulation.setEmulatedMedia", media="print")
    assert evaluate(shown) == ["0", "100"]
    assert evaluate("document.querySelector('.slider').getBoundingClientRect().height") == 0
    assert browser.pdf().startswith(b"%PDF")
    assert browser.errors == []


def test_an_error_in_a_page_is_seen(tmp_path: Path, browser: Browser) -> None:
    page = tmp_path / "broken.html"
    page.write_text("<!doctype html><title>x</title><script>missing()</script>")
    seen = len(browser.errors)
    browser.open(page)
    assert "missing is not defined" in browser.errors[seen]
    del browser.errors[seen:]


def test_a_measure_is_named_once() -> None:
    measures: list[Measure] = [*TERMS, *HEALTH]
    assert len({m.key for m in measures}) == len(measures)
