"""The page in a real browser: Debian's chromium, driven by playwright. Skipped where one of them is missing."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folder import HOSTILE, rollout, two_groups

from vineppo.report import write_report
from vineppo.report.charts import lines

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need `pip install playwright`")
if not Path(CHROMIUM).exists():
    pytest.skip("the browser tests need chromium (`apt install chromium`)", allow_module_level=True)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser) -> Iterator[Callable[..., Any]]:
    """Opens a page from disk; in the end nothing may have been said on the console or asked of the network."""
    complaints: list[str] = []
    contexts = []

    def open_page(path: Path, *, width: int = 1280, dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if at_home(request.url, path) else complaints.append(request.url))
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def at_home(url: str, path: Path) -> bool:
    return url == path.resolve().as_uri() or url.startswith(("blob:", "data:"))


def analysis(text: str = "") -> dict[str, Any]:
    rows = [{"K": k, "error": 1 / k} for k in (1, 2, 4)]
    table = [{"estimator": name, "error": e} for name, e in (("critic, old", 0.5), ('"vines" 9', 0.25), ("none", None))]
    charts = {"error": lines("Error by K", rows, x="K", y="error")}
    return {
        "kind": "values",
        "title": f"Values{text}",
        "text": f"Lower is better.{text}",
        "tables": {"Errors": table},
    } | {"charts": charts}


def selected(page) -> str:
    """The text of the segment that is looked at."""
    return page.locator(".segment[aria-current] .text").inner_text()


def prompt(page) -> str:
    return page.locator(".problem .prompt").inner_text()


def count(page) -> str:
    return page.locator(".count").inner_text()


def test_charts_are_drawn_when_scrolled_to(visit, write_run, comparison, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    (tmp_path / "analysis.json").write_text(json.dumps(analysis()))
    page = visit(write_report([write_run(), tmp_path / "comparison.json", tmp_path / "analysis.json"]))
    places = page.locator(".chart")
    assert places.count() == 2 + 5 + 11 + 1
    for i in range(places.count()):
        places.nth(i).scroll_into_view_if_needed()
        page.wait_for_function("place => place.dataset.drawn === 'yes'", arg=places.nth(i).element_handle())
        assert places.nth(i).locator("svg .mark-line path, svg .mark-rect path, svg .mark-symbol path").count() > 0
    assert page.locator("nav a").all_inner_texts() == ["run", "credit", "Comparison", "Values"]


def test_the_inspector_by_keyboard(visit, write_run):
    page = visit(write_report([write_run()]))
    page.locator(".inspector").scroll_into_view_if_needed()
    page.locator(".detail").scroll_into_view_if_needed()
    assert count(page) == "1 of 5 rollouts"
    assert prompt(page) == "3+1 = ?"
    page.keyboard.press("j")
    assert count(page) == "2 of 5 rollouts"
    page.keyboard.press("k")
    page.keyboard.press("k")
    assert count(page) == "1 of 5 rollouts"
    assert selected(page) == "step 0 of 3+1 "
    page.keyboard.press("ArrowRight")
    assert selected(page) == "step 1 of 3+1 "
    page.keyboard.press("Enter")
    assert page.locator(".vines h4").all_inner_texts() == [
        "Before this segment: V = 1.00",
        "After this segment: V = 0.25",
    ]
    assert page.locator(".vines li").count() == 4
    assert page.locator(".vines .mark").first.inner_text() == "right"
    page.keyboard.press("ArrowRight")
    assert "its value is its reward, 0" in page.locator(".vines").inner_text()
    page.keyboard.press("Enter")
    assert page.locator(".vines").count() == 0
    page.keyboard.press("ArrowDown")
    assert count(page) == "2 of 5 rollouts"
    page.keyboard.press("ArrowDown")
    assert count(page) == "3 of 5 rollouts"
    page.keyboard.press("/")
    page.keyboard.type("nothing like it")
    assert count(page) == "No rollout is like that."


def test_the_step_where_it_went_wrong(visit, write_run):
    page = visit(write_report([write_run()]))
    page.locator(".controls select").nth(2).select_option("right")
    assert page.locator(".row").count() == 3
    page.locator(".controls select").nth(2).select_option("wrong")
    assert page.locator(".row").count() == 2
    page.get_by_role("button", name="The step where it went wrong").click()
    assert selected(page) == "step 1 of 3+1 "
    assert page.locator(".segment[aria-current] .advantage").inner_text() == "\u22120.75"
    assert page.locator(".vines").count() == 1
    page.keyboard.press("w")
    assert count(page) == "2 of 2 rollouts"


def test_filters_and_search_and_order(visit, write_run):
    page = visit(write_report([write_run()]))
    iteration, problem, _, order = (page.locator(".controls select").nth(i) for i in range(4))
    iteration.select_option("")
    assert count(page) == "1 of 15 rollouts"
    order.select_option("as sampled")
    assert prompt(page) == "1+1 = ?"
    page.locator("input[type=search]").fill("STEP 2 OF 2+1")
    assert count(page) == "1 of 1 rollouts"
    page.locator("input[type=search]").fill("")
    iteration.select_option("2")
    problem.select_option(label="2+2 = ?")
    assert count(page) == "1 of 2 rollouts"
    page.locator(".row").nth(1).click()
    assert count(page) == "2 of 2 rollouts"


def test_thousands_of_rollouts_are_not_all_in_the_page(visit, write_run):
    def many(iteration):
        return [rollout(f"{iteration}+{p}", float(g % 2), [0.5]) for p in range(250) for g in range(4)]

    page = visit(write_report([write_run(rollouts=many)]))
    page.locator(".controls select").first.select_option("")
    assert count(page) == "1 of 3,000 rollouts"
    assert page.locator(".row").count() < 40
    page.locator(".list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
    page.get_by_text("249 = ?").last.wait_for()
    assert page.locator(".row").count() < 40


def test_credit_by_sibling_rewards_is_shown_beside(visit, write_run):
    page = visit(write_report([write_run()]))
    page.locator(".controls select").nth(2).select_option("wrong")
    assert "\u22120.71 by GRPO" in page.locator(".detail").inner_text()
    assert "\u22120.50 by RLOO" in page.locator(".detail").inner_text()


def test_methods_without_values_and_runs_without_vines(visit, write_run):
    def flat(iteration):
        return [
            {**r, "values": None, "advantages": [0.5] * len(r["segments"])} for r in two_groups(iteration, vines=False)
        ]

    page = visit(write_report([write_run(rollouts=flat)]))
    page.locator(".segment").first.click()
    assert "kept no vines" in page.locator(".vines").inner_text()


def test_what_a_model_wrote_is_text(visit, write_run, tmp_path):
    folder = write_run(rollouts=lambda i: two_groups(i, extra=HOSTILE))
    (tmp_path / "analysis.json").write_text(json.dumps(analysis(HOSTILE)))
    page = visit(write_report([folder, tmp_path / "analysis.json"]))
    page.locator(".segment").first.click()
    for place in (".problem .prompt", ".segment .text", ".vines pre", ".row .prompt", "section:last-child h2"):
        assert HOSTILE in page.locator(place).first.text_content()
    assert page.locator("main img, main script, main b").count() == 0
    page.wait_for_timeout(300)
    assert page.title().endswith("- vineppo")


def test_tables_are_sorted_and_saved(visit, tmp_path):
    (tmp_path / "analysis.json").write_text(json.dumps(analysis()))
    page = visit(write_report([tmp_path / "analysis.json"]))
    column = page.locator("td.number")
    assert column.all_inner_texts() == ["0.500", "0.250", "\u2013"]
    page.get_by_role("button", name="error").click()
    assert column.all_inner_texts() == ["0.250", "0.500", "\u2013"]
    page.get_by_role("button", name="error").click()
    assert column.all_inner_texts() == ["0.500", "0.250", "\u2013"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "errors.csv"
    with open(download.value.path(), newline="") as file:
        assert list(csv.reader(file)) == [
            ["estimator", "error"],
            ["critic, old", "0.5"],
            ['"vines" 9', "0.25"],
            ["none", ""],
        ]


def test_small_numbers_beside_large_ones_are_no_zeros(visit, tmp_path):
    result = analysis()
    (table,) = result["tables"].values()
    for row, error in zip(table, (12.5, -0.00042, 0.0), strict=True):
        row["error"] = error
    (tmp_path / "analysis.json").write_text(json.dumps(result))
    page = visit(write_report([tmp_path / "analysis.json"]))
    assert page.locator("td.number").all_inner_texts() == ["12.5", "-0.00042", "0.0"]


def test_a_chart_is_saved_from_the_page(visit, tmp_path):
    (tmp_path / "analysis.json").write_text(json.dumps(analysis()))
    page = visit(write_report([tmp_path / "analysis.json"]))
    page.locator(".vega-embed summary").click()
    for kind, magic in (("SVG", b"<svg"), ("PNG", b"\x89PNG")):
        with page.expect_download() as download:
            page.get_by_text(f"Save as {kind}").click()
        assert Path(download.value.path()).read_bytes().startswith(magic)


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_phones_and_the_dark(visit, write_run, comparison, tmp_path, width, dark):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    page = visit(write_report([write_run(), tmp_path / "comparison.json"]), width=width, dark=dark)
    page.locator(".segment").first.click()
    page.locator(".chart[data-drawn] svg").first.wait_for()
    page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    background, text = (
        page.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color")
    )
    assert (brightness(background) < brightness(text)) == dark
    label = page.locator(".chart[data-drawn] svg .role-axis-label text").first.get_attribute("fill")
    assert label == ("#9aa0a8" if dark else "#62666d")


def brightness(color: str) -> int:
    return sum(int(part) for part in color.removeprefix("rgb(").removesuffix(")").split(","))


def drawn(page) -> list[int]:
    """How many marks every chart of the page has."""
    marks = "svg .mark-line path, svg .mark-rect path, svg .mark-symbol path"
    return [place.locator(marks).count() for place in page.locator(".charts .chart").all()]


def test_a_picture_of_the_whole_page_has_all_charts(visit, write_run, comparison, tmp_path):
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    page = visit(write_report([write_run(), tmp_path / "comparison.json"]))
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert page.evaluate("scrollY") == 0
    assert all(drawn(page))
    assert len(drawn(page)) == 2 + 5 + 11


def test_a_printed_page_has_all_charts(write_run, comparison, tmp_path):
    """Printed by chromium itself, at the load event. A drawn chart has dozens of lines, an empty one two or three."""
    (tmp_path / "comparison.json").write_text(json.dumps(comparison))
    path = write_report([write_run(), tmp_path / "comparison.json"])
    pdf, profile = tmp_path / "page.pdf", f"--user-data-dir={tmp_path / 'profile'}"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", profile, f"--print-to-pdf={pdf}", path.as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    num_lines = 0
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf.read_bytes(), re.DOTALL):
        with contextlib.suppress(zlib.error):
            num_lines += len(re.findall(rb"\bS\n", zlib.decompress(stream)))
    assert num_lines > 18 * 20


def with_errors(iteration: int) -> list[dict[str, Any]]:
    return [{**r, "standard_errors": [0.3, 0.4, 0.1][: len(r["segments"])]} for r in two_groups(iteration)]


def test_values_stand_with_their_errors_and_what_is_within_them_is_faded(visit, write_run):
    page = visit(write_report([write_run(rollouts=with_errors)]))
    page.locator(".controls select").nth(2).select_option("wrong")
    segments = page.locator(".segment")
    assert segments.locator(".value").all_inner_texts() == [
        "0.50 \u00b1 0.30 \u2192 1.00 \u00b1 0.40",
        "1.00 \u00b1 0.40 \u2192 0.25 \u00b1 0.10",
        "0.25 \u00b1 0.10 \u2192 0.00",
    ]
    assert segments.locator(".advantage").all_inner_texts() == [
        "+0.50 \u00b1 0.50",  # sqrt(0.3^2 + 0.4^2)
        "\u22120.75 \u00b1 0.41",
        "\u22120.25 \u00b1 0.10",
    ]
    assert page.locator(".segment .unsure").all_inner_texts() == ["+0.50 \u00b1 0.50"]
    color = "segment => getComputedStyle(segment).backgroundColor"
    assert len({segment.evaluate(color) for segment in segments.all()}) == 3
    assert "faded where" in page.locator(".legend").inner_text()
    segments.nth(1).click()
    assert page.locator(".vines h4").all_inner_texts()[1] == "After this segment: V = 0.25 \u00b1 0.10"


def test_errors_fit_on_a_phone(visit, write_run):
    page = visit(write_report([write_run(rollouts=with_errors)]), width=360)
    for part in page.locator(".segment span").all():
        assert part.evaluate("part => part.scrollWidth <= part.parentElement.clientWidth")
        assert part.evaluate("part => part.getBoundingClientRect().right") < 360


def test_credit_of_all_methods_is_drawn_in_reward(visit, write_run):
    page = visit(write_report([write_run()]))
    page.locator(".controls select").nth(2).select_option("wrong")
    chart = page.locator("[data-name=advantages][data-drawn]")
    chart.locator("svg.marks").first.wait_for()
    words = chart.locator("svg text").all_text_contents()
    assert {"VinePPO", "GRPO, undivided", "RLOO", "advantage, in reward"} <= set(words)
    assert "\u22120.33 in reward" in page.locator(".detail").inner_text()


def test_a_page_that_begins_with_sft_leads_to_the_credit(visit, write_run):
    write_run("root/sft", rollouts=lambda i: [])
    rl = write_run("root/vineppo")
    page = visit(write_report([rl.parent]))
    page.locator(".live").get_by_role("link", name="vineppo", exact=True).click()
    assert page.url.endswith("#vineppo-credit")
    assert page.locator(".live a").count() == 1
    assert visit(write_report([rl])).locator(".live").count() == 0


def test_turns_show_who_wrote_what(visit, write_run):
    """In the response and in its vines, what the environment replied stands apart, and is text."""
    reply = f"it is locked {HOSTILE}"

    def in_turns(iteration: int) -> list[dict[str, Any]]:
        made = rollout("door", 0.0, [0.5, 0.25])
        vine = {"text": f"use key{reply}open", "reward": 1.0, "turns": ["use key", reply, "open"]}
        turns = [["go north", reply], ["use axe"]]
        texts = ["".join(of_segment) for of_segment in turns]
        return [made | {"segments": texts, "turns": turns, "vines": [[vine], [vine]]}, rollout("door", 1.0, [0.9])]

    page = visit(write_report([write_run(rollouts=in_turns)]))
    page.locator(".inspector").scroll_into_view_if_needed()
    assert page.locator(".segments > li .segment .reply").all_inner_texts() == [reply]
    assert page.locator(".segments > li .segment .text").first.inner_text() == f"go north{reply}"
    assert "2 turns, " in page.locator(".problem .small").inner_text()
    page.keyboard.press("Enter")
    vines = page.locator(".vines .reply")
    assert vines.all_inner_texts() == [reply] * 2


def test_a_chart_that_cannot_be_drawn_says_so(visit, tmp_path):
    result = analysis()
    result["charts"]["broken"] = {"mark": "nothing", "data": {"values": []}}
    (tmp_path / "analysis.json").write_text(json.dumps(result))
    page = visit(write_report([tmp_path / "analysis.json"]))
    page.wait_for_selector("html[data-drawn]", state="attached")
    assert "cannot be drawn" in page.locator(".chart").nth(1).inner_text()
    assert drawn(page)[0]
