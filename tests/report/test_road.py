"""The commands, as a person starts them, one after another on a small run; then everything a person can get wrong."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from datamodels.data import load, prepare
from datamodels.learners.recipe import Recipe
from datamodels.regress import Datamodels
from datamodels.report import report
from datamodels.report import run as page_of_a_run
from datamodels.report.run import ASSETS
from datamodels.settings import parse
from datamodels.store import Store
from datamodels.verify import verify_targets
from datamodels.verify.record import FORMAT_VERSION
from tests import started
from tests.conftest import built_in, flags

MORE = {
    "regress__prior": "gradients",
    "verify__subsets": 6,
    "verify__counterfactuals": "3,9",
    "store__num_models": 80,
    "data__train_images": 100,
    "verify__random_targets": 3,
    "groups__models_at_once": 8,
}
SUMMARY_KEYS = {
    *("models", "heldout_models", "lds", "accuracy", "targets", "mean_margin_drop_removed", "mean_margin_drop_control"),
    *("flipped_removed", "flipped_control", "seconds"),
}


def line_of(stage: str, run: Path, *extra: str, **changed: object) -> list[str]:
    return ["datamodels" if stage == "all" else f"datamodels.{stage}", *flags(run, **{**MORE, **changed}), *extra]


def command(stage: str, run: Path, *extra: str, **changed: object) -> started.Done:
    return started.run(*line_of(stage, run, *extra, **changed))


def contents(run: Path) -> dict[str, str]:
    """SHA-256 of every file of the run; locks and bookkeeping of time aside."""
    files = [f for f in sorted(run.rglob("*")) if f.is_file() and "lock" not in f.name and f.name != "seconds.json"]
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run made by the commands of the README, each in a process of its own, from nothing."""
    folder = tmp_path_factory.mktemp("road") / "run"
    targets = folder.parent / "targets.txt"
    targets.write_text("# three of twenty\n3\n7\n11\n")
    # Without FFCV, whose compilation would take most of the time of each process; the one-command road goes through it.
    prepare(parse(flags(folder, **MORE))[0], use_ffcv=False)
    for stage, extra in (
        ("data", []),
        ("worker", ["--gpu", "cpu"]),
        ("regress", []),
        ("verify", ["--targets", str(targets)]),
        ("report", []),
    ):
        line = [sys.executable, "-m", *line_of(stage, folder, *extra)]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].startswith(f"{stage}: ")
    return folder


def test_the_summary_holds_what_the_stages_left(run):
    summary = json.loads((run / "report" / "summary.json").read_text())
    assert summary.keys() >= SUMMARY_KEYS
    store, verified = Store(run / "store"), json.loads((run / "verify" / "verify.json").read_text())
    assert (summary["models"], summary["heldout_models"], summary["targets"]) == (80, 16, 3)
    assert summary["accuracy"] == pytest.approx((store.margins(store.done) > 0).mean())
    removals = [r for r in verified["removals"] if r["rule"] == "5"]
    for key, state in (("removed", "after"), ("control", "control")):
        drops = [r["before"]["mean_margin"] - r[state]["mean_margin"] for r in removals]
        assert summary[f"mean_margin_drop_{key}"] == pytest.approx(np.mean(drops))
    assert summary["flipped_removed"] == sum(r["before"]["mean_margin"] > 0 >= r["after"]["high"] for r in removals)
    assert set(summary["seconds"]) >= {"data", "worker", "regress", "verify"}
    assert summary["seconds"]["worker"] > 0 <= min(summary["seconds"].values())


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.named: set[str] = set()

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.attributes += [value for _, value in attrs if value]
        self.named |= set(values)
        self.sources += [values["src"]] if values.get("src") else []
        self.links += [values["href"]] if values.get("href") else []
        self.ids += [values["id"]] if values.get("id") else []


def test_the_page_loads_what_lies_beside_it_and_nothing_else(run):
    report = run / "report"
    page = Page()
    page.feed((report / "index.html").read_text())
    told = json.loads((run / "verify" / "verify.json").read_text())
    tried = [(r["rule"], r["target"]) for r in told["removals"] if r["after"]]
    figures = {"heldout", "random-subsets", "drops", *(f"verified-{rule}" for rule, _ in tried)} | (
        {"cdf"} if told["searches"] else set()
    )
    assert {f.stem for f in report.glob("*.svg")} == {f.stem for f in report.glob("*.png")} == figures
    assert all(ElementTree.parse(f).getroot().tag.endswith("svg") for f in report.glob("*.svg"))
    assert all(f.read_bytes().startswith(b"\x89PNG") for f in report.glob("*.png"))
    # Scripts and styles are files of the page's own; nothing stands in its HTML that its policy would have to allow.
    assert page.sources
    assert all((report / source).is_file() for source in page.sources)
    assert {Path(source).parent.name for source in page.sources} == {"page"}
    assert {f.name for f in (report / "page").iterdir()} == {f.name for f in ASSETS.iterdir()}
    assert "style" not in page.tags
    assert not page.named & {"style", *(name for name in page.named if name.startswith("on"))}
    policy = next(value for value in page.attributes if "default-src" in value)
    assert re.findall(r"(\S+-\S+) ([^;]+)", policy) == [
        ("default-src", "'none'"),
        *((f"{kind}-src", "'self'") for kind in ("script", "style", "img")),
        ("base-uri", "'none'"),
        ("form-action", "'none'"),
    ]
    inside = [link for link in page.links if link.startswith("#")]
    assert all((report / link).is_file() for link in page.links if link not in inside)
    assert {f"#t={target}" for _, target in tried} <= set(inside)
    assert {link[1:] for link in inside if "=" not in link} <= set(page.ids)
    assert not any(re.search(r"//|url\(", value) for value in page.attributes)


def test_styles_and_scripts_name_no_other_place():
    for file in ASSETS.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|@import|innerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", text), (
            file
        )
        assert file.suffix == ".css" or '"use strict";' in text


def test_the_python_example_of_the_readme_runs(run, capsys):
    readme = (Path(__file__).parents[2] / "datamodels" / "README.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if 'Run("runs/digits")' in code)
    exec(example.replace("runs/digits", str(run)), {})
    assert len(capsys.readouterr().out.split("]")) > 5


def test_doing_it_all_again_changes_nothing(run):
    before = contents(run)
    again = command("worker", run, "--gpu", "cpu")
    assert again.returncode == 0
    assert "80 of 80" in again.stdout
    for stage in ("regress", "report"):
        assert command(stage, run).returncode == 0
    assert contents(run) == before


def test_a_page_without_any_search_names_the_targets_of_doubt(run, tmp_path):
    """Of two networks on all of S nothing is beyond doubt."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    settings = parse(flags(copy, **MORE, verify__name="doubt", verify__base_models=2))[0]
    engine = built_in(settings, load(settings))
    verify_targets(settings, engine, Datamodels.load(copy / "regress"), [5, 7])
    assert json.loads((copy / "doubt" / "verify.json").read_text())["searches"] == []
    report(settings, engine.learner)
    text = " ".join((copy / "report-doubt" / "index.html").read_text().split())
    assert "Of the targets asked about 2 are not right beyond doubt on all of S, and so not searched" in text
    assert all(f'<a href="#t={target}">{target}</a>' in text.partition("not searched")[2] for target in (5, 7))


def test_a_page_is_made_anew_when_names_or_what_makes_it_have_changed(run, tmp_path, monkeypatch):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)

    def made(folder=copy):
        settings = parse(flags(folder, **MORE))[0]
        return not report(settings, built_in(settings, load(settings)).learner).startswith("report: already in")

    assert not made()
    monkeypatch.setattr(Recipe, "class_names", property(lambda _: [f"kind <{k}>" for k in range(10)]))
    assert made()
    assert "kind &lt;3&gt;" in (copy / "report" / "index.html").read_text()
    for renamed in (True, False):
        monkeypatch.setattr(
            Recipe, "names", lambda _, of_train, indices, of=renamed: [f"{of_train == of} {i}" for i in indices], raising=False
        )
        assert made()
    assert not made()
    moved = copy.rename(tmp_path / "moved")
    assert made(moved)
    changed = tmp_path / "report"
    shutil.copytree(page_of_a_run.HERE, changed)
    monkeypatch.setattr(page_of_a_run, "HERE", changed)
    assert not made(moved)
    template = changed / "page.html.j2"
    template.write_text(template.read_text() + "<!-- -->")
    assert made(moved)


def test_a_run_grows_and_its_old_weights_are_not_mixed_with_it(run, tmp_path):
    """Last stages refuse what was made from an earlier state of the store."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    assert command("worker", copy, "--gpu", "cpu", store__num_models=96).returncode == 0
    stale = command("report", copy, store__num_models=96)
    assert stale.returncode == 2
    assert "not of one state" in stale.stderr
    assert command("regress", copy, store__num_models=96).returncode == 0
    assert Datamodels.load(copy / "regress").meta["models"] == 96


def test_a_verification_of_another_version_is_refused(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    told = json.loads((copy / "verify" / "verify.json").read_text())
    (copy / "verify" / "verify.json").write_text(json.dumps({**told, "format_version": 1}))
    refused = command("report", copy)
    assert refused.returncode == 2
    assert (
        f"has format version 1, this program reads {FORMAT_VERSION}; give --verify.name, or delete it, and run"
        in refused.stderr
    )


def test_the_page_shows_all_targets_of_a_name_and_each_name_has_its_own(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    first = contents(copy / "report")
    for name, targets in (("verify", [7, 5]), ("second", [5])):
        settings = parse(flags(copy, **MORE, verify__name=name))[0]
        data, models = load(settings), Datamodels.load(copy / "regress")
        engine = built_in(settings, data)
        verify_targets(settings, engine, models, targets)
        report(settings, engine.learner)
    shown = {}
    for folder in ("report", "report-second"):
        page = Page()
        page.feed((copy / folder / "index.html").read_text())
        shown[folder] = {link for link in page.links if link.startswith("#t=")}
    assert shown == {"report": {"#t=3", "#t=5", "#t=7", "#t=11"}, "report-second": {"#t=5"}}
    # What does not hang on verdicts is the same.
    again = contents(copy / "report")
    same = {name for name in first if re.search(r"data/(train|test|images|names|map|classes|rankings)", name)}
    assert same
    assert {name: again[name] for name in same} == {name: first[name] for name in same}
    assert len(Store(copy / "verify" / "store").done) > len(Store(run / "verify" / "store").done)
    assert not (copy / "second" / "store").exists()


def bad(name, stage, named, *extra, **changed):
    return pytest.param(stage, extra, changed, named, id=name)


@pytest.mark.parametrize(
    ("stage", "extra", "changed", "named"),
    [
        bad("α of one", "worker", "store.alpha must be a number between 0 and 1", "--gpu", "cpu", store__alpha="1"),
        bad("an unknown flag", "regress", "--regress.lambda", "--regress.lambda", "3"),
        bad("other data", "data", "other settings (data.seed: 0 → 4)", data__seed=4),
        bad("another store", "worker", "other settings (training.epochs: 3 → 9)", "--gpu", "cpu", training__epochs=9),
        bad("weights from another store", "regress", "other settings (store.seed: 0 → 5)", store__seed=5),
        bad("too few models", "regress", "80 finished models are too few", regress__heldout="0.05"),
        bad("no targets flag", "verify", "give one: --targets WHICH"),
        bad("too many targets", "verify", "--targets random:21: there are 1 to 20 targets to draw", "--targets", "random:21"),
        bad("an index beyond", "verify", "--targets: 20 is out of range", "--targets", "3,20"),
        bad("a bad method", "verify", "verify.methods takes some of", "--targets", "good", verify__methods="magic"),
        bad("nothing to recheck", "verify", "cannot read nowhere.json", "--recheck", "nowhere.json"),
        bad("no targets file", "verify", "cannot read the targets file", "--targets", "nowhere.txt"),
        bad("a word", "verify", "line 2: 'boat' is not a test index", "--targets", "word"),
        bad("a bad rule", "verify", "verify.sizes takes", "--targets", "good", verify__sizes="most"),
        bad("another setting", "verify", "(verify.ratio: 1.1 → 2.0); give --verify.name", "--targets", "5", verify__ratio=2),
        bad("a name of the store", "verify", "verify.name must be a plain name", "--targets", "5", verify__name="store"),
        bad("no GPU", "worker", "GPU", "--gpu", "99"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_is_touched(run, tmp_path, stage, extra, changed, named):
    for name, text in (("word", "1\nboat\n"), ("good", "1\n")):
        (tmp_path / name).write_text(text)
    before = contents(run)
    extra = [str(tmp_path / part) if part in ("word", "good") else part for part in extra]
    ended = command(stage, run, *extra, **changed)
    assert ended.returncode == 2
    assert named in ended.stderr
    *told, last = ended.stderr.splitlines()
    assert last.startswith("error: ")
    assert all(line.startswith("data: reading the images") for line in told), told  # which may take its time
    assert contents(run) == before


def test_verdicts_are_not_shown_beside_other_weights(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    before = contents(copy / "report")
    assert command("regress", copy, regress__lams=37).returncode == 0
    refused = command("report", copy, regress__lams=37)
    assert refused.returncode == 2
    assert "is of other weights than those that are there now" in refused.stderr
    assert contents(copy / "report") == before


def test_a_page_that_lacks_a_file_is_made_again(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report" / "data" / "run.js").unlink()
    assert command("report", copy).returncode == 0
    assert (copy / "report" / "data" / "run.js").read_bytes() == (run / "report" / "data" / "run.js").read_bytes()


def test_stages_out_of_order_say_which_comes_first(tmp_path):
    for stage, named in (
        ("regress", "there is no store in"),
        ("report", "there is no data in"),
    ):
        ended = command(stage, tmp_path / "empty")
        assert (ended.returncode, named in ended.stderr) == (2, True)
        assert not (tmp_path / "empty").exists()


def test_the_whole_road_by_one_command(tmp_path):
    ended = command("all", tmp_path / "run")
    assert ended.returncode == 0, ended.stderr
    page = tmp_path / "run" / "report" / "index.html"
    assert ended.stdout.splitlines()[-1] == f"the page is at {page}"
    assert page.is_file()
    before = contents(tmp_path / "run")
    again = command("all", tmp_path / "run")
    assert again.returncode == 0
    assert contents(tmp_path / "run") == before
