"""The page about runs, in a headless Chromium: what it shows, that nothing runs or leaves it, keyboard, dark mode, a phone."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_cli import call

from hf_finetune.analysis import report
from hf_finetune.analysis.report import write_report
from hf_finetune.analysis.run_files import read_runs
from hf_finetune.system.errors import InputError

CopyRun = Callable[..., Path]
MARKUP = "<script>window.attacked = 1</script>"

# Contrast by WCAG 2.1 of each element with text of its own, against the first background behind it that is opaque
CONTRAST = """
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (color) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility() || ["SCRIPT", "STYLE", "TITLE", "title"].includes(element.tagName)) continue;
    let under = element, back = [0, 0, 0, 0];
    while (under && back[3] < 255) { back = read(getComputedStyle(under).backgroundColor); under = under.parentElement; }
    const style = getComputedStyle(element), ink = element.namespaceURI.endsWith("svg") ? style.fill : style.color;
    const [one, other] = [light(read(ink)), light(back)].sort((a, b) => b - a);
    found.push([(one + 0.05) / (other + 0.05), element.tagName + "." + element.getAttribute("class"), ink]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def pages(finished: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of `one` run, of `three`, of one that an `older` version left in the middle, with markup in its name, and of a
    `calibrated` one whose data have changed since."""
    folder = tmp_path_factory.mktemp("pages")
    older = folder / MARKUP.replace("/", "\\")
    shutil.copytree(
        finished["base"], older, ignore=shutil.ignore_patterns("checkpoints", "model", "results.json", "scored")
    )
    (older / "data.json").unlink()
    chosen = {"one": [finished["base"]], "three": [*finished.values()], "older": [older]}
    chosen["calibrated"] = [copy_calibrated(finished["base"], folder)]
    return {name: write_report([*map(str, runs)], str(folder / f"{name}.html")) for name, runs in chosen.items()}


def copy_calibrated(base: Path, folder: Path) -> Path:
    """Returns a copy of a run that decides at a temperature and thresholds, and whose rows are no longer in its files."""
    target = folder / "calibrated"
    shutil.copytree(base, target, ignore=shutil.ignore_patterns("checkpoints", "model"))
    results = json.loads((target / "results.json").read_text(encoding="utf-8"))
    thresholds = dict.fromkeys(results["labels"], 0.25)
    results |= {
        "problem": "multi_label",
        "calibration": {"num_examples": 40, "temperature": 1.5, "thresholds": thresholds},
    }
    results["test"] |= {"ece": 0.3, "calibrated/ece": 0.1234}
    (target / "results.json").write_text(json.dumps(results), encoding="utf-8")
    config = (target / "config.yaml").read_text(encoding="utf-8")
    config = config.replace("calibrate: []", "calibrate: [temperature, thresholds]")
    (target / "config.yaml").write_text(config, encoding="utf-8")
    scored = (target / "scored" / "test.jsonl").read_text(encoding="utf-8")
    (target / "scored" / "test.jsonl").write_text(re.sub(r'"digest": "..', '"digest": "zz', scored), encoding="utf-8")
    return target


@contextmanager
def open_page(browser: Any, path: Path, *, width: int = 1200, scheme: str = "light") -> Iterator[Any]:
    """Opens a page. Any message of the console, any request but for the page itself, and any error fails the test."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, problems = context.new_page(), list[str]()
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    yield page
    assert [problem for problem in problems if problem != "data:,"] == []
    context.close()


def read_table(page: Any, selector: str) -> dict[str, list[str]]:
    """The cells of a table by the name of their row."""
    rows = page.locator(f"{selector} tbody tr").evaluate_all(
        "rows => rows.map(r => [...r.cells].map(c => c.innerText.trim()))"
    )
    return {cells[0]: cells[1:] for cells in rows}


def read_numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(number.replace(",", "")) for number in re.findall(r"-?[\d,]*\.?\d+", text)]


def test_the_numbers_are_those_of_results_json(browser: Any, pages: dict[str, Path], finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    results = run.results
    with open_page(browser, pages["one"]) as page:
        for place, split in enumerate(("test", "validation")):
            shown = read_table(page, f"#scores h2 + .columns > .column:nth-child({place + 1}) table")
            assert shown.keys() == results[split].keys()
            for name, (cell,) in shown.items():
                interval = results["details"][split]["intervals"][name]
                assert read_numbers(cell) == pytest.approx([results[split][name], *interval], abs=5.1e-5)
        labels = read_table(page, ".by-label")
        for entry in results["details"]["test"]["labels"]:
            cells = labels[" ".join(entry["label"].split())]
            expected = [entry[name] for name in ("support", "precision", "recall", "f1")] + entry["f1_interval"]
            assert read_numbers(" ".join(cells[:5])) == pytest.approx(expected, abs=5.1e-5)
        confusion = [[read_numbers(cell) for cell in row] for row in read_table(page, ".confusion").values()]
        assert [[cell[0] if cell else 0 for cell in row] for row in confusion] == results["details"]["test"][
            "confusion"
        ]
        error = page.locator(".reliability + .note").inner_text()
        assert read_numbers(error)[0] == pytest.approx(results["details"]["test"]["calibration"]["error"], abs=5.1e-5)
        seconds = read_table(page, "#time")
        phases = results["seconds"]
        assert {name: read_numbers(seconds[name][0])[0] for name in phases} == pytest.approx(phases, abs=0.051)
        freeze = {name: cells[1:] for name, cells in read_table(page, ".freeze").items()}
        assert sum(read_numbers(cells[0])[0] for cells in freeze.values()) == results["parameters"]["total"]
        assert freeze["head"][1] == freeze["block 1"][1] == "trains"
        assert freeze["block 0"][1] == "frozen"
        assert page.locator(".tiles").inner_text().count("0.") >= 2


def test_curves_have_the_logged_points(browser: Any, pages: dict[str, Path], finished: dict[str, Path]) -> None:
    runs = read_runs([*finished.values()])
    with open_page(browser, pages["three"]) as page:
        plot = page.locator("#chart-loss .plot")
        lines = dict(
            zip(*(json.loads(plot.get_attribute(f"data-{name}")) for name in ("labels", "lines")), strict=True)
        )
        for run in runs:
            for split in ("train", "validation"):
                points = [list(point) for point in run.get_curve(f"{split}/loss")]
                assert lines[f"{run.label} {split}"] == [[x, pytest.approx(y, rel=1e-5)] for x, y in points]
        assert page.locator("#chart-loss .legend li").count() == 6
        assert page.locator("#chart-metric-0 .ring").count() == 3
        assert page.locator("#chart-rate .legend li").count() == 3  # backbone and head have one rate here


def test_markup_in_texts_labels_and_names_is_text(browser: Any, pages: dict[str, Path]) -> None:
    for name in ("one", "older"):
        with open_page(browser, pages[name]) as page:
            assert page.evaluate("window.attacked") is None
            assert page.locator("script").count() == 1
            assert page.locator("img").count() == 0
            assert "<script>window.attacked = 1" in page.locator("h1" if name == "older" else ".by-label").inner_text()
        source = pages[name].read_text(encoding="utf-8")
        assert len(re.findall(r"<\s*/?\s*script", source)) == 2
        assert "http://" not in source
        assert "https://" not in source


def test_half_characters_of_the_data_are_question_marks(copy_run: CopyRun) -> None:
    folder = copy_run("base", "half")
    for path in (folder / "results.json", *(folder / "scored").iterdir()):
        path.write_text(path.read_text(encoding="utf-8").replace("animals", r"an\ud83dimals"), encoding="utf-8")
    assert "an?imals" in write_report([str(folder)]).read_text(encoding="utf-8")


def test_the_policy_stops_scripts_that_slip_through(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    source = pages["one"].read_text(encoding="utf-8").replace("<main>", f"<main>{MARKUP}<p style='color:red' id=p>")
    (tmp_path / "attacked.html").write_text(source, encoding="utf-8")
    page = browser.new_page()
    page.goto((tmp_path / "attacked.html").as_uri())
    assert page.evaluate("window.attacked") is None
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    page.close()


def test_hover_and_keys_show_values(browser: Any, pages: dict[str, Path], finished: dict[str, Path]) -> None:
    (run,) = read_runs([finished["base"]])
    losses = dict(run.get_curve("train/loss"))
    with open_page(browser, pages["one"]) as page:
        area, tip = page.locator("#chart-loss .area"), page.locator("#chart-loss .tip")
        assert not tip.is_visible()
        area.hover(position={"x": 1, "y": 50})
        assert tip.inner_text().splitlines()[0] == "update 1"
        assert read_numbers(tip.inner_text())[1] == pytest.approx(losses[1], rel=1e-3)
        page.mouse.move(0, 0)
        assert not tip.is_visible()
        page.locator("#chart-loss .plot").focus()
        page.keyboard.press("End")
        last = tip.inner_text().splitlines()
        assert last[0] == "update 90"
        assert {line.split()[0] for line in last[1:]} == {"train", "validation"}
        page.keyboard.press("ArrowLeft")
        assert tip.inner_text().splitlines()[0] == "update 89"
        assert read_numbers(tip.inner_text())[1] == pytest.approx(losses[89], rel=1e-3)
        page.keyboard.press("Escape")
        assert not tip.is_visible()


def test_the_keyboard_reaches_everything_in_the_order_of_the_page(browser: Any, pages: dict[str, Path]) -> None:
    with open_page(browser, pages["three"]) as page:
        reachable = "a[href], button, summary, [tabindex='0']"
        total = page.locator(reachable).evaluate_all(
            "found => found.filter((element) => element.checkVisibility()).length"
        )
        places = []
        for _ in range(total):
            page.keyboard.press("Tab")
            outline = "getComputedStyle(document.activeElement).outlineStyle"
            assert page.evaluate(outline) == "solid"
            places.append(page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
        assert places == sorted(set(places))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["three", "older", "calibrated"])
def test_text_has_contrast_in_both_schemes(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    with open_page(browser, pages[name], scheme=scheme) as page:
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        found = page.evaluate(CONTRAST)
        assert len(found) > 60
        assert [entry for entry in found if entry[0] < 4.5] == []


def test_the_switch_changes_the_colours(browser: Any, pages: dict[str, Path]) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    with open_page(browser, pages["one"]) as page:
        light = page.evaluate(background)
        page.get_by_role("button", name="Dark").click()
        assert page.evaluate(background) != light
        assert page.get_by_role("button", name="Light").get_attribute("aria-pressed") == "true"
        page.reload()
        assert page.evaluate(background) != light  # it is remembered
        page.get_by_role("button", name="Light").click()
        assert page.evaluate(background) == light
        page.emulate_media(media="print", color_scheme="dark")
        assert not page.get_by_role("button").is_visible()


@pytest.mark.parametrize("name", ["one", "three", "older", "calibrated"])
def test_nothing_is_wider_than_a_phone(browser: Any, pages: dict[str, Path], name: str) -> None:
    with open_page(browser, pages[name], width=390) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_a_mistake_is_read_without_scrolling_on_a_phone(browser: Any, pages: dict[str, Path]) -> None:
    with open_page(browser, pages["one"], width=390) as page:
        row = page.locator(".examples tbody tr").first
        assert row.evaluate("row => row.scrollWidth <= row.clientWidth + 1")
        names = row.locator("[data-name]").evaluate_all("cells => cells.map(c => c.dataset.name)")
        assert names == ["right", "predicted", "probability", "loss"]
        shown = "cell => getComputedStyle(cell, '::before').content"
        assert row.locator("[data-name=loss]").evaluate(shown).startswith('"loss')
        assert not page.locator(".examples thead").first.is_visible()


def test_decisions_and_missing_texts_are_shown(browser: Any, pages: dict[str, Path], finished: dict[str, Path]) -> None:
    with open_page(browser, pages["calibrated"]) as page:
        text = page.locator("#scores").inner_text()
        assert "Decisions (task.calibrate), on test" in text
        assert "temperature 1.5: logits are divided by it" in text
        assert "Fitted on 40 validation examples." in text
        (effect,) = [cells for name, cells in read_table(page, "#scores").items() if name.startswith("expected cal")]
        assert effect == ["0.3000", "0.1234"]
        labels = json.loads((finished["base"] / "results.json").read_text(encoding="utf-8"))["labels"]
        assert page.locator("#scores summary").inner_text() == f"Thresholds of {len(labels)} labels"
        assert "Texts are not shown: the data have changed since the run" in page.locator("#mistakes").inner_text()
        assert page.locator(".examples .text").count() == 0
    with open_page(browser, pages["one"]) as page:
        assert "Decisions" not in page.locator("#scores").inner_text()
        assert page.locator(".examples .text").count() == page.locator(".examples tbody tr").count() > 10


def test_an_older_unfinished_run_says_what_is_missing(browser: Any, pages: dict[str, Path]) -> None:
    with open_page(browser, pages["older"]) as page:
        text = page.locator("body").inner_text()
        assert "The run was interrupted, or failed: final scores are written when it ends." in text
        assert "There is no scored/validation.jsonl" in text
        assert "There is no data.json" in text
        assert page.locator("#chart-loss .plot").count() == 1
        assert page.locator(".empty").count() >= 4


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page(copy_run: CopyRun, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = copy_run("base", "typed")
    assert call("report", str(folder)) == 0
    assert capsys.readouterr().out.strip() == str(folder / "report.html")
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert call("report", str(folder), "--out", str(tmp_path / "mine.html")) == 0
    assert (tmp_path / "mine.html").is_file()
    assert call("report", str(tmp_path)) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
    for out, reason in ((tmp_path, "is a folder"), (tmp_path / "no" / "page.html", "cannot be written")):
        with pytest.raises(InputError, match=reason):
            write_report([str(folder)], str(out))


def test_compare_prints_what_differs(finished: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert call("compare", *map(str, finished.values()), "--against", "weak") == 0
    output = capsys.readouterr().out
    assert re.search(r"accuracy +A +0\.\d{4}\n +B +0\.\d{4} +\+0\.\d{4} +\[\+0\.\d{4}, \+0\.\d{4}\] +better", output)
    assert call("compare", str(finished["base"])) == 2


def test_pages_need_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, hf_finetune.analysis.report, hf_finetune.analysis.comparison_formats; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_colours_are_those_of_the_style() -> None:
    style = (report.PAGE / "style.css").read_text(encoding="utf-8")
    assert len(re.findall(r"--color-\d:", style)) == report.NUM_COLORS
