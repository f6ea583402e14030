"""Open a chapter in JupyterLab in a real browser, run all of it, look at the result.

Run as `make browser-test`. The course is copied to a temporary folder first. Exits
with 0 if all is well, 1 if something is wrong, 77 (skipped) without a browser.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import ROOT, Wrong, copy_course, is_root, lab

SKIPPED = 77
NAMES = (
    *("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    *("chrome", "microsoft-edge", "msedge", "brave-browser"),
)
FLAGS = (
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
HINT = """skipped: {missing}. This test needs
  the Python package:  python tools/setup_env.py --extras dev,ref,teach,browser
  a browser:           apt install chromium fonts-dejavu  (Debian, Ubuntu),
                       brew install --cask chromium  (macOS),
                       or CHROMIUM=/path/to/chrome for one that is there already"""

# What the page is asked once all cells have run.
CELLS = """() => [...document.querySelectorAll('.jp-CodeCell')].map(cell => ({
  prompt: cell.querySelector('.jp-InputPrompt').textContent,
  figures: [...cell.querySelectorAll('.jp-OutputArea-output img')].map(
    i => i.naturalWidth * i.naturalHeight),
}))"""
# All cells have numbers; or an error stopped the run, and no cell waits any more.
DONE = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(
    prompt => prompt.textContent);
  const ran = prompts.filter(text => /\\[\\d+\\]/.test(text)).length;
  const stopped = document.querySelector('[data-mime-type$="jupyter.error"],' +
    '[data-mime-type$="jupyter.stderr"]') && !prompts.some(t => t.includes('*'));
  return ran > 0 && (ran === prompts.length || stopped);
}"""
ALL_THERE = "n => document.querySelectorAll('.jp-CodeCell').length === n"
IDLE = '.jp-Notebook-ExecutionIndicator[data-status="idle"]'
CLEARED = """() => !document.querySelector('.jp-Notebook .jp-OutputArea-output') &&
  [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].every(
    prompt => !/\\d/.test(prompt.textContent))"""
LOADED = "() => [...document.images].every(image => image.complete)"
SAVED = "() => !document.querySelector('.lm-TabBar-tab.jp-mod-dirty')"


@dataclass
class Heard:
    """What the page said while it was open.

    Attributes:
        console: messages of the console's level "error", and uncaught exceptions.
        failed: requests that got no answer, or one of 400 and above.
        outside: requests to anything but this machine.
    """

    console: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    def listen(self, page: Any) -> None:
        """Write down what the page says from now on."""
        page.on("console", lambda m: m.type == "error" and self.console.append(m.text))
        page.on("pageerror", lambda error: self.console.append(str(error)))
        page.on("request", self._asked)
        page.on("requestfailed", lambda r: self.failed.append(f"{r.failure} {r.url}"))
        page.on("response", self._answered)

    def _asked(self, request: Any) -> None:
        place = urllib.parse.urlsplit(request.url)
        local = place.hostname in ("127.0.0.1", "localhost", "::1")
        if place.scheme in ("http", "https", "ws", "wss") and not local:
            self.outside.append(request.url)

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.failed.append(f"{response.status} {response.url}")


def find_browser() -> str | None:
    """The browser's path: CHROMIUM if it is set, else the first usual name."""
    named = os.environ.get("CHROMIUM")
    found = (shutil.which(name) for name in ([named] if named else NAMES))
    return next(filter(None, found), None)


def chapter(name: str, root: Path = ROOT) -> str:
    """The notebook of a chapter ("ch01"), relative to the course; the first if none."""
    found = sorted(p.name for p in (root / "notebooks").glob("ch*.ipynb"))
    chosen = [n for n in found if n.startswith(name)] or found
    if not chosen:
        raise Wrong("there is no executed notebook: run python tools/build.py")
    return f"notebooks/{chosen[0]}"


def run_all(page: Any, cells: int, seconds: float) -> None:
    """Clear all outputs, run all cells, save: through the menus."""
    page.wait_for_function(ALL_THERE, arg=cells, timeout=60_000)
    # The kernel is new. It isn't restarted: JupyterLab now and then waits for ever
    # for one that is restarted in its first seconds, on a busy machine.
    page.wait_for_selector(IDLE, timeout=60_000)
    dismiss(page)
    choose(page, "Edit", "Clear Outputs of All Cells")
    page.wait_for_function(CLEARED)
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(DONE, timeout=1000 * seconds)
    page.wait_for_function(LOADED)
    choose(page, "File", "Save Notebook")
    page.wait_for_function(SAVED)


def dismiss(page: Any) -> None:
    """Answer the question about Jupyter's news with no, if it is asked."""
    news = page.locator(".Toastify__toast button", has_text="No")
    try:
        news.first.click(timeout=4000)
    except Exception as error:  # Playwright's time-out: nobody asked
        if "Timeout" not in type(error).__name__:
            raise


def choose(page: Any, menu: str, entry: str) -> None:
    """Click an entry of a menu."""
    page.locator("li.lm-MenuBar-item", has_text=menu).first.click()
    exactly = re.compile(rf"^{re.escape(entry)}")
    page.locator("li.lm-Menu-item", has_text=exactly).first.click()


def complaints(
    page: list[dict[str, Any]], run: list[Any], committed: list[Any]
) -> Iterator[str]:
    """What is wrong with the cells: on the page, as it saved them, and as committed."""
    if len(page) != len(committed):
        yield f"the page has {len(page)} code cells, the notebook {len(committed)}"
    cells = zip(page, run, committed, strict=False)
    for number, (shown, saved, wanted) in enumerate(cells, 1):
        place = f"code cell {number}"
        if not re.fullmatch(r"\[\d+\]:", shown["prompt"]):
            yield f"{place} did not run: {shown['prompt']}"
        yield from (f"{place}: {words}" for words in errors(saved))
        drawn, count = len(shown["figures"]), len(alts(wanted))
        if drawn != count:
            yield f"{place} shows {drawn} figures, {count} are wanted"
        if not all(shown["figures"]):
            yield f"{place} shows a figure of no size"
        if any(len(alt.split()) < 5 for alt in alts(saved)):
            yield f"{place} has a figure without alt text"


def errors(cell: Any) -> Iterator[str]:
    """Errors where none should be, and none where one should be."""
    found = [o for o in cell.outputs if o.output_type == "error"]
    meant = "raises-exception" in cell.metadata.get("tags", [])
    if meant and not found:
        yield "it should raise and does not"
    if found and not meant:
        yield f"{found[0].ename}: {found[0].evalue}"


def alts(cell: Any) -> list[str]:
    """The alt text of each figure. JupyterLab keeps it in the file, not on the page."""
    return [
        output.metadata.get("image/png", {}).get("alt", "")
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]


def code_cells(notebook: Path) -> list[Any]:
    """The code cells of a notebook's file."""
    import nbformat

    cells = nbformat.read(notebook, as_version=4).cells
    return [cell for cell in cells if cell.cell_type == "code"]


def look(browser: str, folder: Path, notebook: str, options: Any) -> list[str]:
    """Run the notebook in the browser; what is wrong with it."""
    from playwright.sync_api import TimeoutError as TooLong
    from playwright.sync_api import sync_playwright

    heard, committed = Heard(), code_cells(folder / notebook)
    flags = [*FLAGS, *(["--no-sandbox"] if is_root() else [])]
    with lab(folder) as address, sync_playwright() as play:
        window = play.chromium.launch(executable_path=browser, args=flags)
        page = window.new_page(viewport={"width": 1280, "height": 1000})
        heard.listen(page)
        try:
            page.goto(address.format(notebook=notebook))
            run_all(page, len(committed), options.seconds)
            cells = page.evaluate(CELLS)
        except TooLong as error:
            return [f"the page came to a stop: {error}", *heard.console]
        finally:
            photograph(page, options.out)
            window.close()
    figures = sum(len(cell["figures"]) for cell in cells)
    print(f"{notebook}: {len(cells)} code cells, {figures} figures")
    tell("console errors", heard.console)
    tell("failed requests", heard.failed)
    outside = [f"the page asked for {url}" for url in dict.fromkeys(heard.outside)]
    return [*complaints(cells, code_cells(folder / notebook), committed), *outside]


def photograph(page: Any, out: Path) -> None:
    """Save the window as it is, and once more around each figure."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("window.png"), *out.glob("figure-*.png")]:
        old.unlink()
    page.screenshot(path=out / "window.png")
    figures = page.locator(".jp-OutputArea-output img")
    for number in range(figures.count()):
        figures.nth(number).scroll_into_view_if_needed()
        page.screenshot(path=out / f"figure-{number + 1}.png")


def tell(what: str, lines: list[str]) -> None:
    """Print what was heard, each line once."""
    print(f"{what}: {len(lines)}")
    for line in dict.fromkeys(lines):
        print(f"  {line[:200]}")


def main(argv: list[str] | None = None) -> int:
    """The command line: 0 all is well, 1 something is wrong, 77 no browser."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapter", nargs="?", default="ch01")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all cells")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "browser")
    options = parser.parse_args(argv)
    # Ended from outside, it still ends JupyterLab and the browser.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    browser = find_browser()
    try:
        import playwright  # noqa: F401
    except ImportError:
        print(HINT.format(missing="Playwright is not installed"))
        return SKIPPED
    if browser is None:
        print(HINT.format(missing="no Chromium was found"))
        return SKIPPED
    with tempfile.TemporaryDirectory(prefix="diffedu-") as temporary:
        folder = copy_course(Path(temporary))
        wrong = look(browser, folder, chapter(options.chapter, folder), options)
    print("\n".join(wrong) or f"all is well; pictures are in {options.out}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
