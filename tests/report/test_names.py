"""Pages of examples that have no pictures, or names that come from other people's file systems."""

import json
import re
import warnings
from html.parser import HTMLParser
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from datamodels.brittleness import Outcome
from datamodels.report.figures import METHOD_COLOURS, METHODS, colour_of, line_of, name_of, verified_figure
from datamodels.report.gallery import Gallery, shortened
from datamodels.report.run import SCRIPTS
from datamodels.report.summary import accuracy
from datamodels.resources import CONFIGS
from datamodels.verify.record import RemovalRecord
from tests.learners.test_given import T, but
from tests.worker.test_own import README

ODD = (
    "<script>alert(1)</script>",
    "a$b$c",
    r"$\frac{",
    "\u202egpj.exe",
    "tab\there",
    f"{'x' * 300}.png",
    "日本語/猫.png",
    "\udc80\x00\x1b[31m",
    "&amp;'\"",
    "שלום.png",
    "]]>",
    "{{ 7 * 7 }}",
)
OUTCOME = Outcome(8, 1.5, 1.0, 2.0, 0.9, 0.7, 1.0, None)


def removal(target, size):
    indices = tuple(range(size))
    return RemovalRecord(
        target=target,
        label=target % 3,
        rule="5",
        size=size,
        control_size=size,
        removed_indices=indices,
        removed_weights=tuple(1.0 / (1 + i) for i in indices),
        predicted_before=2.0,
        predicted_after=-1.0,
        before=OUTCOME,
        after=OUTCOME,
        control=OUTCOME,
        right_before=True,
        flipped=False,
        control_flipped=False,
    )


def text_of(picture):
    return [element.text or "" for element in ElementTree.fromstring(picture.svg).iter() if element.tag.endswith("text")]


def odd(self, of_train, indices):
    return [ODD[index] for index in indices]


def test_a_figure_takes_names_for_text():
    examples = Gallery(but(names=odd, class_names=("$x$", "<b>", "\u202ec")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picture = verified_figure([removal(target, 3) for target in range(T)], "title", examples)
    assert picture.png.startswith(b"\x89PNG")
    lines = text_of(picture)
    assert {f"{k} · {shortened(examples.name(False, k), 34)}" for k in range(T)} <= set(lines)
    assert not any(ord(c) < 32 or c in "\u202e\udc80" for line in lines for c in line)


def test_targets_are_told_by_number_and_by_name_where_they_have_one():
    verdicts = [removal(target, 3) for target in range(T)]
    named = text_of(verified_figure(verdicts, "title", Gallery(but(names=odd))))
    assert {f"{k} · {shortened(Gallery(but(names=odd)).name(False, k), 34)}" for k in range(T)} <= set(named)
    assert {str(k) for k in range(T)} <= set(text_of(verified_figure(verdicts, "title", Gallery(but(names=None)))))


def test_methods_of_somebody_elses_scores_are_called_by_their_names():
    assert name_of("datamodel") == METHODS["datamodel"]
    assert name_of("scores:my\x1btrak") == r"removed, by my\x1btrak"
    assert colour_of("scores:a") == colour_of("scores:a") != colour_of("datamodel") == METHOD_COLOURS["datamodel"]
    assert line_of("scores:a") == "-"


def test_long_names_lose_their_middle():
    assert shortened("abc", 3) == "abc"
    for most in range(4, 30):
        found = shortened("folder/with/a/long/name/0001.png", most)
        assert len(found) == most
        start, end = found.split("…")
        assert "folder/with/a/long/name/0001.png".startswith(start)
        assert "folder/with/a/long/name/0001.png".endswith(end)
        assert len(start) <= len(end) / 2


class Page(HTMLParser):
    """The tags of a page, and the text of the cells of its tables by row."""

    def __init__(self):
        super().__init__()
        self.tags, self.rows, self.inside = [], [], False

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside = self.inside or tag in ("td", "th")
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def page_of(folder):
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    found = Page()
    found.feed(text)
    return text, found


MORE = """
from sklearn.datasets import load_breast_cancer

class_names = load_breast_cancer().target_names
ODD = {odd!r}
train_names = [ODD[i % len(ODD)] + "/" + str(i) for i in range(400)]
test_names = tuple(ODD[i % len(ODD)] for i in range(169))
"""
SMALL: dict[str, object] = {"store.num_models": 96, "verify.models": 2, "verify.base_models": 8, "verify.random_targets": 5}
SMALL |= {"verify.max_size": 20, "verify.subsets": 0, "verify.counterfactuals": "none"}


@pytest.fixture(scope="module")
def cancer(tmp_path_factory, command):
    """The README's two files, its module with names of all kinds beside it, gone all the way by one command."""
    folder, text = tmp_path_factory.mktemp("cancer"), README.read_text(encoding="utf-8")
    for name in ("cancer.py", "cancer.yaml"):
        block = re.search(rf"```\w+\n# {re.escape(name)}\n(.*?)```", text, re.DOTALL)
        assert block is not None
        (folder / name).write_text(block[1] + MORE.format(odd=ODD) * (name == "cancer.py"), encoding="utf-8")
    flags = [part for key, value in SMALL.items() for part in (f"--{key}", value)]
    done = command("", "-C", "cancer.yaml", *flags, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"the page is at {(folder / 'runs/cancer/report/index.html').resolve()}"
    return folder / "runs" / "cancer"


def test_a_function_of_ones_own_goes_the_whole_road_to_its_page(cancer):
    text, page = page_of(cancer)
    told = json.loads((cancer / "verify" / "verify.json").read_text())
    removals = {removal["target"]: removal for removal in told["removals"] if removal["rule"] == "10"}
    assert len(removals) == 5
    shown = [examples_name(ODD[target % len(ODD)]) for target in removals]
    by_target = {row[0]: row for row in page.rows if len(row) > 5}
    assert [by_target[str(target)][1] for target in removals] == shown
    assert {by_target[str(target)][2] for target in removals} <= {"malignant", "benign"}
    # The full names of all, and of each target its R.
    for side, number in (("train", 400), ("test", 169)):
        assert content_of(cancer, f"names-{side}-0") == [
            examples_name(ODD[k % len(ODD)] + f"/{k}" * (side == "train")) for k in range(number)
        ]
    answers = {int(t): answer for k in (0, 1) for t, answer in content_of(cancer, f"targets-{k}")["answers"].items()}
    for target, removal in removals.items():
        (found,) = (r for r in answers[target]["removals"] if r["rule"] == "10")
        assert found["order"] == removal["removed_indices"]
        assert found["drops"] == pytest.approx(np.cumsum(removal["removed_weights"]), rel=1e-4)
    assert "Which training examples made" in text
    assert " images" not in re.sub("<details><summary>Settings.*", "", text, flags=re.DOTALL)


def content_of(run, name):
    """What a script of a page's data puts there: one call, with JSON and nothing else in it."""
    text = (run / "report" / "data" / f"{name}.js").read_text(encoding="ascii")
    found = re.fullmatch(rf'DM\.put\("{re.escape(name)}",(.*)\);\n', text)
    assert found is not None
    return json.loads(found[1])


def examples_name(name):
    """What a reader is to see of a name, by a list of what is not to be seen as it is."""
    for bad, instead in (("\u202e", r"\u202e"), ("\t", r"\t"), ("\udc80", r"\udc80"), ("\x00", r"\x00"), ("\x1b", r"\x1b")):
        name = name.replace(bad, instead)
    return name


def test_nothing_in_a_name_is_obeyed(cancer):
    text, page = page_of(cancer)
    assert page.tags.count("script") == len(SCRIPTS)
    assert "alert(1)</script>" not in text
    assert "49" not in {row[1] for row in page.rows if len(row) > 5}
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", text)
    for file in (cancer / "report").glob("*.svg"):
        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    for file in (cancer / "report" / "data").glob("*.js"):
        content_of(cancer, file.stem)


def test_a_function_without_labels_and_names_has_a_page_by_indices(tmp_path, command):
    (tmp_path / "bare.py").write_text(
        "def train(index, mask):\n    return {'margins': mask.reshape(6, 5).sum(1) - 1.2 + index % 7 / 10}\n"
    )
    values = {"run.dir": "run", "data.train_images": 30, "data.test_images": 6, "worker.main": "bare:train"}
    values |= {"store.alpha": 0.5, "store.margin_dtype": "float32", "regress.prior": "none"}
    values |= {**SMALL, "verify.sizes": "3", "verify.random_targets": 2, "verify.methods": "datamodel"}
    values |= {"verify.candidates": "all", "groups.models_at_once": 0}
    flags = [part for key, value in values.items() for part in (f"--{key}", value)]
    done = command("", "-C", CONFIGS / "digits.yaml", *flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, page = page_of(tmp_path / "run")
    assert not any("name" in row for row in page.rows)
    opened = content_of(tmp_path / "run", "run")
    assert (opened["named"], opened["seen"], opened["tiles"]) == (False, None, None)
    assert not list((tmp_path / "run" / "report" / "data").glob("names-*"))
    assert not list((tmp_path / "run" / "report" / "data").glob("*.png"))


def test_accuracy_is_of_test_images_alone():
    margins = np.array([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]])
    store: Any = SimpleNamespace(done=np.arange(2), margins=lambda ids: margins[ids])
    assert accuracy(store, 2) == 0.75
    assert accuracy(store, 0) is None
