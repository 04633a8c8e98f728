"""The report page and the lines for programs, of whole runs."""

from __future__ import annotations

import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from phantoms import small_tomogram

from cryoshuffle.cli import main
from cryoshuffle.pages import PAGE_NAME
from cryoshuffle.reports import read_history

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)


class _Page(html.parser.HTMLParser):
    """What a page holds, by tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run whose result has a name that is no HTML."""
    folder = tmp_path_factory.mktemp("page")
    tomogram = small_tomogram(folder / "in.mrc", (24, 100, 80))
    command = ["denoise", str(tomogram), str(folder / "<b>&out.mrc"), "--steps", "40", "--window", "16", "--cold-start"]
    assert main([*command, "--quiet"]) == 0
    return folder / "<b>&out_run"


def test_the_page_needs_nothing_but_itself_and_can_be_heard(run):
    """No address is fetched; pictures have words, sliders labels, the page a language; names are not taken for HTML."""
    text = (run / PAGE_NAME).read_text(encoding="utf-8")
    page = _Page(text)
    addresses = [value for _, attributes in page.tags for name in ("src", "href") if (value := attributes.get(name))]
    assert addresses
    assert all(
        value.startswith("data:") or value in {"run.log", "provenance.json", "noise.json"} for value in addresses
    )
    assert "default-src 'none'" in str(page.of("meta"))
    assert not re.search(r"url\(|@import", text)
    assert len(page.of("img")) == 9
    assert all(picture["alt"] for picture in page.of("img"))
    assert len(page.of("input")) == 3
    assert all(slider["aria-label"] for slider in page.of("input"))
    assert all(chart["aria-label"] for chart in page.of("svg"))
    assert page.of("html") == [{"lang": "en"}]
    assert "&lt;b&gt;&amp;out.mrc" in text
    assert not page.of("b")


def test_the_page_tells_what_the_run_found(run):
    """Noise, share of the network, residual, risk, provenance: as the files of the run have them."""
    text = html.unescape((run / PAGE_NAME).read_text(encoding="utf-8"))
    noise = json.loads((run / "noise.json").read_text())
    assert noise["reason"] in text
    assert f"{json.loads((run / 'refinement.json').read_text())['trust']:.0%} of the result" in text
    assert json.loads((run / "provenance.json").read_text())["output"]["sha256"] in text
    assert "Held-out risk while refining" in text
    assert "24 × 100 × 80 voxels" in text


def test_the_page_is_written_anew_and_only_of_a_run(run, tmp_path, capsys):
    """The same bytes; a folder without a run, or whose result is gone, is named in a sentence."""
    before = (run / PAGE_NAME).read_bytes()
    (run / PAGE_NAME).unlink()
    assert main(["report", str(run)]) == 0
    assert (run / PAGE_NAME).read_bytes() == before
    assert "report:" in capsys.readouterr().out
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    other = shutil.copytree(run, tmp_path / "moved_run")
    provenance = json.loads((other / "provenance.json").read_text())
    provenance["output"]["path"] = str(tmp_path / "gone.mrc")
    (other / "provenance.json").write_text(json.dumps(provenance))
    assert main(["report", str(other)]) == 2
    assert "gone.mrc: there is no such file" in capsys.readouterr().err
    (other / "result.png").write_bytes(b"no picture")
    provenance["output"]["path"] = provenance["input"]["path"]
    (other / "provenance.json").write_text(json.dumps(provenance))
    assert main(["report", str(other)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_programs_get_a_line_an_epoch(tmp_path, capsys):
    """What is printed is what ``history.jsonl`` holds; steps grow to the last; the files stand at the end."""
    tomogram, out = small_tomogram(tmp_path / "in.mrc"), tmp_path / "out.mrc"
    command = [
        "denoise",
        str(tomogram),
        str(out),
        "--steps",
        "4",
        "--window",
        "16,24,16",
        "--no-refine",
        "--json-lines",
    ]
    assert main(command) == 0
    said = capsys.readouterr()
    *lines, last = [json.loads(line) for line in said.out.splitlines()]
    assert "fitting:" not in said.err
    assert lines == read_history(tmp_path / "out_run")
    assert lines
    assert [line["step"] for line in lines][-1] == lines[-1]["steps"] == 4
    assert last["result"] == str(out)
    assert set(last) == {"result", "report", "picture", "log"}
    assert main([*command, "--overwrite"]) == 0
    assert len(read_history(tmp_path / "out_run")) == len(lines), "another run begins its own"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium to look at the page with")
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (360, True)])
def test_a_browser_shows_the_page(run, tmp_path, width, dark):
    """Nothing is wider than the window, all pictures are shown, the slider moves the line."""
    asked = (
        "<script>const s=document.querySelector('input');s.value=20;s.dispatchEvent(new Event('input'));"
        "document.title=JSON.stringify({wide:document.documentElement.scrollWidth,"
        "shown:[...document.images].every(i=>i.naturalWidth>0),cut:s.previousElementSibling.style.cssText,"
        "paper:getComputedStyle(document.body).backgroundColor})</script></body>"
    )
    copy = tmp_path / "page.html"
    copy.write_text((run / PAGE_NAME).read_text(encoding="utf-8").replace("</body>", asked), encoding="utf-8")
    call = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}",
        f"--window-size={width},900", *(["--blink-settings=preferredColorScheme=0"] if dark else []),
        f"--screenshot={tmp_path / 'page.png'}", "--dump-dom", copy.as_uri(),
    ]  # fmt: skip
    shown = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout
    told = json.loads(html.unescape(re.findall(r"<title>(.*?)</title>", shown)[0]))
    # Headless Chromium has windows of 500 pixels at least.
    assert told["wide"] <= max(width, 500)
    assert told["shown"]
    assert "--cut: 20%" in told["cut"]
    assert told["paper"] == ("rgb(22, 24, 26)" if dark else "rgb(255, 255, 255)")
    assert (tmp_path / "page.png").stat().st_size > 10_000
