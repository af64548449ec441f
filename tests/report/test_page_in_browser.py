"""Pages in a real browser: nothing fails, everything is visible, wide and narrow, light and dark; tables sort.

One start of the browser loads all pages in frames, whose widths and color schemes differ. What it finds comes back as
JSON. Pages that are broken on purpose show that the checks see it.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from diagnosis_cases import constant_diagnosis
from page_cases import make_collapsed, make_healthy
from test_split_figure import make_measures

from ssl_seg.data.audit.doctor import audit
from ssl_seg.data.catalog import open_catalog
from ssl_seg.data.splits.split import make_split
from ssl_seg.report.check_pages import make_audit_page, make_split_page
from ssl_seg.report.comparison_page import make_comparison_page
from ssl_seg.report.diagnosis_page import make_diagnosis_page
from ssl_seg.report.page import ImageRow, Page, PageImage, PageSection, encode_image, render_page
from ssl_seg.report.run_page import make_run_page
from ssl_seg.report.run_record import read_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium: apt-get install chromium")

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
INK = {"light": "rgb(27, 31, 36)", "dark": "rgb(230, 233, 238)"}
HARNESS = """<!doctype html><meta charset="utf-8"><body><pre id="found"></pre><script>
const pages = %s, found = {};
const decode = text => new TextDecoder().decode(Uint8Array.from(atob(text), c => c.charCodeAt(0)));
const watch = "<script>window.faults = [];"
  + "addEventListener('error', e => faults.push(String(e.message || e.target)), true);"
  + "const error = console.error; console.error = (...a) => { faults.push(a.join(' ')); error(...a); };</" + "script>";
function cells(table, column) { return [...table.tBodies[0].rows].map(row => row.cells[column].textContent.trim()); }
function isEmpty(figure) {
  const {width, height} = figure.getBoundingClientRect();
  return width < 20 || height < 20 || figure.naturalWidth === 0;
}
function look(frame) {
  const page = frame.contentDocument, root = page.documentElement, view = frame.contentWindow;
  for (const part of page.querySelectorAll("details")) part.open = true;
  const drawn = [...page.querySelectorAll("svg, img")];
  const table = [...page.querySelectorAll("table.sortable")].find(t => t.tHead.textContent.includes("IoU"));
  const sorted = [];
  if (table) {
    const button = table.tHead.rows[0].cells[1].firstElementChild;
    for (let i = 0; i < 2; i++) { button.click(); sorted.push(cells(table, 1)); }
  }
  const text = page.querySelector("svg text");
  return {
    faults: view.faults, hacked: view.hacked === true, drawn: drawn.length, sorted,
    empty: drawn.filter(isEmpty).length,
    overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth,
    ink: view.getComputedStyle(page.body).color, svg: text ? view.getComputedStyle(text).fill : null,
    state: page.querySelector(".banner")?.dataset.state ?? null,
  };
}
const frames = %s.map(([name, width, scheme]) => {
  const frame = document.createElement("iframe");
  Object.assign(frame.style, {width: width + "px", height: "900px", border: 0, colorScheme: scheme});
  return new Promise(done => {
    frame.onload = () => { found[[name, width, scheme]] = look(frame); done(); };
    frame.srcdoc = decode(pages[name]).replace("<head>", "<head>" + watch);
    document.body.append(frame);
  });
});
Promise.all(frames).then(() => {
  document.getElementById("found").textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
});
</script>"""


WHOLE, BROKEN = (
    ("healthy", "collapsed", "comparison", "pictures", "audit", "split", "diagnosis"),
    ("throws", "overflows", "empty", "unsorted"),
)
FRAMES = [(name, width, scheme) for name in WHOLE for width in WIDTHS for scheme in SCHEMES]
FRAMES += [(name, 400, "light") for name in BROKEN]


def break_page(html: str) -> dict[str, str]:
    """Return a page broken in four ways, by the names of BROKEN."""
    return {
        "throws": html.replace("<main>", "<main><script>nothing.here()</script>", 1),
        "overflows": html.replace("<main>", '<main><div style="width: 500px">wide</div>', 1),
        "empty": html.replace("<svg", '<svg style="display: none"', 1),
        "unsorted": html.replace("body.append(...rows.map(r => r.row));", ""),
    }


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, particles_dir: Path) -> dict[str, dict[str, Any]]:
    """What the browser has found on each page, by name, width and color scheme."""
    import numpy as np

    folder = tmp_path_factory.mktemp("pages")
    runs = [read_run(make_healthy(folder / "healthy")), read_run(make_collapsed(folder / "collapsed"))]
    pictures = tuple(PageImage(name, encode_image(np.eye(64))) for name in ("input", "truth", "errors"))
    pages = {record.name: make_run_page(record) for record in runs} | {"comparison": make_comparison_page(runs)}
    pages["pictures"] = Page("pictures", "", None, (PageSection("Cases", rows=(ImageRow("a", pictures),)),))
    pages["audit"] = make_audit_page(audit(str(particles_dir)), "ssl-seg train", "ssl-seg data audit")
    split = make_split(open_catalog(str(particles_dir)), [0.5])
    pages["split"] = make_split_page("s.yaml", split, make_measures(), (), "ssl-seg train", "ssl-seg split make")
    pages["diagnosis"] = make_diagnosis_page(constant_diagnosis())
    texts = {name: render_page(page) for name, page in pages.items()}
    short = replace(pages["healthy"], sections=tuple(s for s in pages["healthy"].sections if s.title != "Curves"))
    texts |= break_page(render_page(short))
    encoded = {name: base64.b64encode(text.encode()).decode() for name, text in texts.items()}
    harness = folder / "harness.html"
    harness.write_text(HARNESS % (json.dumps(encoded), json.dumps(FRAMES)), encoding="utf-8")
    command = [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"]
    command += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=20000", "--dump-dom", harness.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    answer = re.search(r'<pre id="found">([^<]+)</pre>', done.stdout)
    assert answer is not None, done.stderr[-2000:]
    result: dict[str, dict[str, Any]] = json.loads(base64.b64decode(answer[1]))
    return result


def each(found: dict[str, dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [found[f"{name},{width},{scheme}"] for width in WIDTHS for scheme in SCHEMES]


@pytest.mark.parametrize("name", WHOLE)
def test_a_page_is_whole_at_any_width_in_light_and_dark(found: dict[str, dict[str, Any]], name: str) -> None:
    for looked in each(found, name):
        assert looked["faults"] == []
        assert not looked["hacked"]
        assert looked["drawn"] > 0
        assert looked["empty"] == 0
        assert looked["overflow"] <= 0


def test_frames_have_the_widths_and_schemes_that_are_asked_for(found: dict[str, dict[str, Any]]) -> None:
    for width in WIDTHS:
        for scheme in SCHEMES:
            looked = found[f"healthy,{width},{scheme}"]
            assert width - 20 < looked["width"] <= width
            assert looked["ink"] == INK[scheme]
            assert looked["svg"] == INK[scheme]  # the text of figures is that of the page


def test_a_click_sorts_by_number_and_a_second_one_turns_the_order(found: dict[str, dict[str, Any]]) -> None:
    for looked in each(found, "healthy"):
        up, down = ([float(cell) for cell in cells] for cells in looked["sorted"])
        assert len(up) == 12
        assert up == sorted(up)
        assert down == up[::-1]
        assert up[0] < up[-1]


def test_the_banner_says_the_state(found: dict[str, dict[str, Any]]) -> None:
    assert found["healthy,400,light"]["state"] == "healthy"
    assert found["collapsed,400,light"]["state"] == "collapsed"


def test_broken_pages_are_seen(found: dict[str, dict[str, Any]]) -> None:
    throws, overflows, empty, unsorted = (found[f"{name},400,light"] for name in BROKEN)
    assert "nothing" in " ".join(throws["faults"])
    assert overflows["overflow"] > 0
    assert empty["empty"] == 1
    up, down = unsorted["sorted"]
    assert up == down
