"""The page in a real browser, Chromium without a window: it loads, its pictures appear, its table sorts and filters."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest

from datamodels.data import load, prepare
from datamodels.regress import Datamodels
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.runs import read_store, stage_folder
from datamodels.settings import parse
from datamodels.verify import verify_targets
from tests.conftest import built_in, flags, trained
from tests.verify.rule import by_the_rule, planted

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")

ASK = """
<script>
const rows = () => [...document.querySelectorAll("#searches tbody tr")].filter(row => !row.hidden);
const column = k => rows().map(row => row.cells[k].textContent);
const seen = {};
window.addEventListener("load", () => {
  const head = k => document.querySelectorAll("#searches th")[k];
  seen.pictures = [...document.images].map(i => (i.loading = "eager", i.complete && i.naturalWidth > 0));
  seen.width = [document.documentElement.scrollWidth, window.innerWidth];
  head(0).click(); seen.up = column(0); seen.before = column(6);
  head(0).click(); seen.down = column(0);
  head(4).click(); seen.sizes = column(4);
  const filter = document.getElementById("filter");
  filter.value = "relabelled"; filter.dispatchEvent(new Event("input")); seen.filtered = column(2);
  document.body.insertAdjacentHTML("beforeend", "<pre id=seen>" + JSON.stringify(seen).replaceAll("<", "&lt;") + "</pre>");
});
</script>
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The report of a small run whose verification has found sets."""
    run = tmp_path_factory.mktemp("browser") / "run"
    methods = {"verify__methods": "datamodel,relabel,random,similarity", "verify__models": 8, "verify__most_models": 16}
    settings = parse(flags(run, store__num_models=60, **methods))[0]
    prepare(settings, use_ffcv=False)
    data = load(settings)
    trained(settings, data)
    regress(settings)
    rule = planted(read_store(settings))
    verify_targets(settings, by_the_rule(data, rule), Datamodels.load(stage_folder(settings, "regress")), [3, 7, 12, 19])
    report(settings, built_in(settings, data).learner)
    return run / "report"


def dump(page, width):
    line = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    line += [
        f"--window-size={width},900",
        "--virtual-time-budget=5000",
        f"--user-data-dir={page.parent / 'profile'}",
        page.as_uri(),
    ]
    return subprocess.run([str(part) for part in line], capture_output=True, text=True, check=True, timeout=120)


@pytest.mark.parametrize("width", [1200, 500])
def test_the_page_works_in_a_browser(folder, tmp_path, width):
    page = tmp_path / "page.html"
    page.write_text((folder / "index.html").read_text().replace("</body>", ASK + "</body>"))
    done = dump(page, width)
    assert "CONSOLE" not in done.stderr
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None
    seen = json.loads(html.unescape(found[1]))
    assert len(seen["pictures"]) >= 4
    assert all(seen["pictures"][:3])
    # Nothing sticks out: wide tables scroll within themselves.
    assert seen["width"][0] <= seen["width"][1]
    targets = [int(text) for text in seen["up"]]
    assert targets == sorted(targets)
    assert len(set(targets)) > 1
    base = json.loads((folder.parent / "verify" / "verify.json").read_text())["base"]
    shares = {
        int(target): [100 * told[name] for name in ("correct", "correct_low", "correct_high")] for target, told in base.items()
    }
    assert seen["before"] == ["{:.0f} % [{:.0f}, {:.0f}]".format(*shares[target]) for target in targets]
    assert [int(text) for text in seen["down"]] == sorted(targets, reverse=True)
    sizes = [np.inf if text.startswith(">") else int(text) for text in seen["sizes"]]
    assert sizes == sorted(sizes)
    assert len(seen["filtered"]) == len(targets) // 4
    assert all("relabelled" in text for text in seen["filtered"])
