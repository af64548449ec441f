"""Documents: tables of the code, links, commands, and the pages that are made from the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import Cli

import ssl_seg
from ssl_seg.cli.app import app
from ssl_seg.diagnose.catalog import ACTIONS, CODES

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from write_reference import render  # noqa: E402

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("tutorials/*"))]
LARGEST_PICTURE = 100_000
"""Bytes."""
COLLAPSE = DOCS / "collapse.md"
WORDS = {
    "low": "a tenth of it",
    "usual": "the usual one",
    "length": ": --steps TWICE",
    "many": "SIX TIMES",
    "cost": "that cost=1",
}


def read_table(page: Path, first_column: str) -> list[list[str]]:
    """Return the cells of each row below a header."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"\n| {first_column} |")
    rows = rest.split("\n\n")[0].split("\n")[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_each_code_has_its_meaning_usual_causes_and_actions() -> None:
    rows = read_table(COLLAPSE, "code")
    actions = {number: (when, text) for number, when, text, _ in read_table(COLLAPSE, "action")}
    assert [(name, meaning) for name, meaning, *_ in rows] == [(f"`{code}`", text) for code, text in CODES.items()]
    for name, _, causes, numbers in rows:
        assert causes, name
        shown = [actions[number] for number in numbers.split(", ")]
        expected = [(a.when is not None, a.text.format(**WORDS)) for a in ACTIONS[name.strip("`")]]
        assert [(when != "", text) for when, text in shown] == expected, name


def test_each_action_is_used_and_says_on_what_it_was_tried() -> None:
    used = {number for *_, numbers in read_table(COLLAPSE, "code") for number in numbers.split(", ")}
    actions = read_table(COLLAPSE, "action")
    assert {number for number, *_ in actions} == used
    assert all(tried for *_, tried in actions)


def list_commands() -> dict[str, set[str]]:
    """Return the options of each command, as the parser of the command line knows them."""

    def walk(command: Any, name: str) -> Iterator[tuple[str, set[str]]]:
        if hasattr(command, "commands"):
            for key, sub in command.commands.items():
                yield from walk(sub, f"{name} {key}")
        else:
            yield name, {option for p in command.params for option in p.opts if option.startswith("-")}

    return dict(walk(typer.main.get_command(app), "ssl-seg"))


def find_commands(text: str) -> list[str]:
    """Return the lines of the code blocks of a page that run ssl-seg, whatever stands before it in them."""
    blocks = re.findall(r"^ *```[^\n]*\n(.*?)^ *```", text, re.S | re.M)
    lines = "\n".join(blocks).replace("\\\n", " ").split("\n")
    return [line[match.start() :] for line in lines if (match := re.search(r"(?<![`\w/.-])ssl-seg (?=[a-z])", line))]


def find_unknown(line: str) -> list[str]:
    """Return what the parser does not know of a line: the command, or options."""
    commands = list_commands()
    text = re.split(r"  +|#|\|", line)[0].replace("[", "").replace("]", "")
    words = text.split()
    names = [name for name in (" ".join(words[:3]), " ".join(words[:2])) if name in commands]
    if not names:
        return [" ".join(words[:3])]
    known = commands[names[0]] | {"--help", "-h"}
    return [word for word in words if re.match(r"--?[a-z]", word) and word not in known]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_of_a_page_are_known_to_the_parser(page: Path) -> None:
    found = find_commands(page.read_text(encoding="utf-8"))
    assert {line: find_unknown(line) for line in found if find_unknown(line)} == {}


def test_an_unknown_command_or_option_is_found() -> None:
    page = "```\n$ ssl-seg train --data a --lables 3 --lr 1 # --so\nssl-seg trian\n```\nssl-seg told\n"
    assert [find_unknown(line) for line in find_commands(page)] == [["--lables"], ["ssl-seg trian"]]


def find_gone(text: str) -> list[str]:
    """Return the tests, scripts and commands that a text cites and that are not there."""

    def is_there(name: str) -> bool:
        if "::test_" in name:
            return is_test(name)
        if name.startswith("ssl-seg "):
            return "COMMAND" in name or not find_unknown(name)
        return not name.startswith("python scripts/") or (ROOT / name.split()[1]).is_file()

    outside_blocks = re.sub(r"^ *```.*?^ *```", "", text, flags=re.S | re.M)
    return [name for name in re.findall(r"`([^`]+)`", outside_blocks) if not is_there(name)]


def is_test(name: str) -> bool:
    """Return whether pytest finds a test by this name, which has no parameters."""
    file, *classes, function = name.split("::")
    text = (ROOT / file).read_text(encoding="utf-8") if (ROOT / file).is_file() else ""
    for part in classes:
        text = re.split(r"\n(?=\S)", text.partition(f"\nclass {part}")[2])[0]
    return f"\n{'    ' * len(classes)}def {function}(" in text


def test_each_row_of_the_reports_has_a_test_or_a_command_that_is_there() -> None:
    text = (DOCS / "rows.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in row] for row in rows if row[0].strip() != "row"]
    expected = [
        f"{part}{n:02d}" for part, last in zip("DSLOE", (25, 14, 19, 22, 15), strict=True) for n in range(1, last + 1)
    ]
    assert [row for row, _, _ in rows if row != "-"] == [*expected, *(f"A{n}" for n in range(1, 19))]
    assert [row for row, _, shown in rows if not re.search("`(tests/|ssl-seg |python )", shown)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_a_page_cites_in_a_line_is_there(page: Path) -> None:
    assert find_gone(page.read_text(encoding="utf-8")) == []


def test_a_test_and_a_command_that_are_gone_are_found() -> None:
    here = "tests/test_docs.py::test_links_lead_somewhere"
    gone = [f"{here}s", "tests/gone.py::test_a", "ssl-seg train --lables 3", "python scripts/gone.py"]
    assert find_gone(" ".join(f"`{name}`" for name in (here, "ssl-seg train --labels 3", *gone))) == gone


def test_issue_forms_are_forms_and_ask_for_commands_that_are_there() -> None:
    forms = [path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir()) if path.name != "config.yml"]
    assert len(forms) == 3
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert set(form) == {"name", "description", "body"}, "others are not shown"
        questions = [part for part in form["body"] if part["type"] != "markdown"]
        assert {part["type"] for part in questions} == {"textarea"}
        assert len({part["id"] for part in questions}) == len(questions)
        assert all(part["attributes"]["label"] for part in questions)
        cited = " ".join(part["attributes"].get("description", "") for part in questions)
        assert "`ssl-seg " in cited
        assert find_gone(cited) == []


def list_anchors(page: Path) -> set[str]:
    """Return the anchors of the headings of a page, as mkdocs makes them."""
    titles = re.findall(
        r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M), re.M
    )
    plain = [re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in plain}


def find_broken(page: Path) -> list[str]:
    """Return the links of a page to files or headings that are not there; pages of the reference are made later."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        path = page.parent / name if name else page
        if link.startswith("http") or "reference/" in link:
            continue
        if not path.is_file() or (anchor and anchor not in list_anchors(path)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert find_broken(page) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# A b `c`: d\n[1](#a-b-c-d) [2](#a-b) [3](a.md) [4](b.md) ![5](c.png)\n```\n# no\n```\n[6](#no)")
    assert find_broken(page) == ["#a-b", "b.md", "c.png", "#no"]


@pytest.mark.parametrize(
    ("code", "goes_back"),
    [(0, False), (1, False), (2, False), (3, False), (130, True), (137, False), (143, True)],
)
def test_the_job_for_slurm_goes_on_where_it_was_stopped(tmp_path: Path, code: int, goes_back: bool) -> None:
    """Its script with an `srun` that notes its command, writes a checkpoint (but not where it is stopped before the
    first step, code 143) and ends with a code."""
    (job,) = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", (DOCS / "cluster.md").read_text(encoding="utf-8"), re.S)
    said, tools = tmp_path / "said", tmp_path / "tools"
    tools.mkdir()
    written = "touch" if code != 143 else "echo never:"
    made = f"mkdir -p runs/ten_percent/checkpoints; {written} runs/ten_percent/checkpoints/last.pt"
    for name, line in (("srun", f"{made}; exit {code}"), ("scontrol", "exit 0")):
        (tools / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {said}\n{line}\n')
        (tools / name).chmod(0o755)
    environment = {"PATH": f"{tools}:/bin:/usr/bin", "SLURM_JOB_ID": "7"}
    for _ in range(2):
        ended = subprocess.run(["bash", "-c", job], cwd=tmp_path, env=environment, check=False)
        assert ended.returncode == code
    again = ["scontrol requeue 7"] * goes_back
    first = "srun ssl-seg train --data DIR --labels 0.10 --devices 4 --num-nodes 2 --out runs/ten_percent"
    second = first if code == 143 else "srun ssl-seg train --resume runs/ten_percent"
    assert said.read_text().splitlines() == [first, *again, second, *again]


def test_pages_are_in_the_navigation_and_name_no_machine() -> None:
    def list_leaves(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for item in entry.values() if isinstance(entry, dict) else entry:
                yield from list_leaves(item)

    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = {path.relative_to(DOCS).as_posix() for path in PAGES if DOCS in path.parents}
    assert sorted(list_leaves(settings["nav"])) == sorted({*pages, *(f"reference/{name}" for name in render())})
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert (
            re.findall(r"(?<![\w.])/(?:work|tmp|home|root|opt)/\S*|pypi\.org|pythonhosted|download\.pytorch", text)
            == []
        )


def test_pictures_are_small_and_shown() -> None:
    texts = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    for picture in (DOCS / "images").iterdir():
        assert picture.stat().st_size <= LARGEST_PICTURE, picture.name
        assert f"images/{picture.name})" in texts


def test_the_reference_has_all_commands_options_settings_and_functions(cli: Cli) -> None:
    pages = render()
    for name, options in list_commands().items():
        _, _, section = pages["commands.md"].partition(f"\n## {name}\n")
        assert section, name
        rows = re.findall(r"^\| `(.*?)` \|", section.partition("\n## ")[0], re.M)
        named = {word.strip(",") for row in rows for word in row.split() if word.startswith("-")}
        assert named == options - {"--help", "-h"}, name
    code, out, _ = cli("config", "show", "--data", "synthetic:particles")
    assert code == 0
    keys = {line.partition(":")[0] for line in out.splitlines()}
    assert len(keys) > 80
    documented = set(re.findall(r"^\| `([\w.]+)` \|", pages["settings.md"], re.M))
    unknown = {key for key in keys if not any(key == name or key.startswith(f"{name}.") for name in documented)}
    sections = {key for key in unknown if f"\n## {key}\n" in pages["settings.md"]}
    assert unknown == sections
    assert all(f"\n### {name}\n" in pages["python.md"] for name in ssl_seg.__all__)
    assert "\n| `equal_statistics` | 0.01 | spread over images of the mean" in pages["limits.md"]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="mkdocs-material, of the extra docs, builds the site")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs" / "reference").mkdir(exist_ok=True)
    for name, text in render().items():
        (tmp_path / "docs" / "reference" / name).write_text(text, encoding="utf-8")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(build, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    home = (tmp_path / "build" / "site" / "index.html").read_text(encoding="utf-8")
    assert "assets/javascripts" in home
    assert re.findall(r'<(?:script|link|img)[^>]*"https?://[^>]*>', home) == []
    (tmp_path / "docs" / "index.md").write_text("[a](words.md#nowhere)", encoding="utf-8")
    assert subprocess.run(build, cwd=tmp_path, capture_output=True, check=False).returncode != 0
