"""The page in a real browser, Chromium without a window: what a person looks for is found, and is what the arrays say."""

import dataclasses
import importlib.resources
import importlib.util
import json
import re
import shutil
from types import SimpleNamespace
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import torch

from datamodels.bench.chromium import CHROMIUM, chromium
from datamodels.data import load, prepare
from datamodels.regress import Datamodels
from datamodels.regress.results import write
from datamodels.regress.run import regress
from datamodels.report import report
from datamodels.report.explorer import AMONG
from datamodels.runs import page_folder, read_store, stage_folder
from datamodels.settings import parse
from datamodels.store import Store
from datamodels.verify import targets_named, verify_targets
from datamodels.verify.known import Examples
from tests.conftest import built_in, flags, trained
from tests.report.test_names import ODD, examples_name
from tests.verify.rule import by_the_rule, changed, planted, result_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed here")
N, T = 60, 20
ASKED = [3, 7, 12, 19]
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The page of a small run whose verification has found sets, with what its arrays are."""
    run = tmp_path_factory.mktemp("browser") / "run"
    methods = {"verify__methods": "datamodel,relabel,random,similarity", "verify__models": 8, "verify__most_models": 16}
    methods |= {"verify__subsets": 6, "verify__counterfactuals": "3", "verify__candidates": "all"}
    settings = parse(flags(run, store__num_models=60, **methods))[0]
    prepare(settings, use_ffcv=False)
    data = load(settings)
    trained(settings, data)
    regress(settings)
    folder = stage_folder(settings, "regress")
    rule, made_up = planted(read_store(settings)), Datamodels.load(folder)
    write(folder, rule.weights, rule.bias, made_up.lam, made_up.heldout, made_up.metrics, made_up.meta)
    models = Datamodels.load(folder)
    verify_targets(settings, by_the_rule(data, models), models, ASKED)
    learner = built_in(settings, data).learner
    report(settings, learner)
    return SimpleNamespace(
        settings=settings,
        learner=learner,
        page=run / "report" / "index.html",
        models=models,
        margins=Store(run / "store").margins(np.arange(60)),
        verified=result_of(settings),
        labels=data.test.labels.numpy(),
        train_labels=data.train.labels.numpy(),
    )


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


@pytest.fixture
def browser(running, made):
    """The browser with the page open in it, of which nothing is wrong on the console at the end, nor was anything loaded from
    elsewhere.
    """
    running.size(1280)
    running.prefer()
    running.open(made.page)
    yield running
    assert running.messages() == []
    folder = made.page.parent.resolve()
    for url in running.requests():
        assert urlparse(url).scheme == "file"
        assert folder in type(folder)(unquote(urlparse(url).path)).parents


def indices(browser, within):
    """The numbers that links to targets or training images within a part of the page have, in their order."""
    found = browser.ask(f"[...document.querySelectorAll('{within} a.card')].map(a => a.getAttribute('href'))")
    assert all(re.fullmatch(r"#[ti]=\d+", href) for href in found)
    return [int(href[3:]) for href in found]


def text(browser, within):
    return browser.ask(f"document.querySelector('{within}').textContent")


def go(browser, fragment):
    """Follow a link of the page, and wait until its target or training image is shown."""
    kind, number = fragment.split("=")
    browser.ask(f"window.location.hash = '{fragment}'")
    shown = "DM.answer.current()" if kind == "t" else "DM.images.current()"
    browser.wait(f"{shown} === {number}")
    title = (
        "document.getElementById('answer').dataset.target"
        if kind == "t"
        else "/\\d+/.exec(document.getElementById('image-title').textContent)[0]"
    )
    browser.wait(f"{title} === '{number}'")


def strongest(weights, sign):
    """Indices of the largest weights times a sign, those of that sign, largest first."""
    order = np.argsort(-sign * weights, kind="stable")
    return [int(k) for k in order if sign * weights[k] > 0]


def search_of(made, target, method="datamodel"):
    (found,) = (s for s in made.verified["searches"] if (s["target"], s["method"]) == (target, method))
    return found


def test_the_first_screen_answers_for_a_verified_target(browser, made):
    target = int(browser.ask("document.getElementById('answer').dataset.target"))
    search = search_of(made, target)
    assert search["size"] is not None
    last = next(probe for probe in search["probes"] if probe["size"] == search["size"])
    wrong = last["models"] - round(last["correct"] * last["models"])
    these = "this one training image" if search["size"] == 1 else f"these {search['size']} training images"
    assert text(browser, ".sentence") == f"Without {these}, networks get it wrong in {wrong} of {last['models']} trainings."
    assert indices(browser, ".members") == search["order"][:24]
    base = made.verified["base"][str(target)]
    assert f"right in {round(base['correct'] * base['models'])} of {base['models']}" in text(browser, ".beside")
    # All of that above the fold.
    assert browser.ask("document.querySelector('.course').getBoundingClientRect().top") < 700
    right_of_store = (made.margins[:, target] > 0).mean()
    assert f"right in {round(100 * right_of_store)} %" in text(browser, ".facts")


@pytest.mark.parametrize("target", [0, 7])
def test_carriers_and_opponents_of_any_target_are_those_of_the_weights(browser, made, target):
    go(browser, f"t={target}")
    weights = made.models.weights[:, target]
    lists = browser.ask("[...document.querySelectorAll('.strongest')].map(s => [...s.querySelectorAll('a')].map(a => a.hash))")
    found = [[int(link.removeprefix("#i=")) for link in links] for links in lists]
    assert found == [strongest(weights, sign)[:6] for sign in (1, -1) if strongest(weights, sign)]
    x = made.models.weights / np.maximum(np.linalg.norm(made.models.weights, axis=0), 1e-30)
    cosines = x.T @ x[:, target]
    cosines[target] = -np.inf
    near = indices(browser, "#near")
    assert [cosines[k] for k in near] == pytest.approx(np.sort(cosines)[::-1][: len(near)], abs=1e-5)
    assert len(near) == 12


def test_a_target_that_nobody_asked_about_says_so_and_how_to_ask(browser):
    go(browser, "t=0")
    assert "Not verified." in text(browser, ".sentence")
    assert text(browser, ".beside code") == "python -m datamodels.verify --targets 0"


def test_a_target_is_found_and_chosen_by_keyboard_alone(browser, made):
    for _ in range(60):
        browser.press("Tab")
        if browser.ask("document.activeElement.id") == "find":
            break
    browser.type("12")
    browser.wait("document.querySelectorAll('#grid a').length < 20")
    assert set(indices(browser, "#grid")) == {t for t in range(T) if "12" in f"{t} test image {t} {made.labels[t]}"}
    browser.press("Enter")
    browser.wait("document.getElementById('answer').dataset.target === '12'")
    browser.wait("document.activeElement.id === 'answer-title'")
    assert browser.ask("location.hash") == "#t=12"
    assert indices(browser, ".members")[:1] == search_of(made, 12)["order"][:1]


def test_arrow_keys_go_through_the_grid_which_is_one_stop_of_tab(browser):
    browser.ask("document.querySelector('#grid a').focus()")
    assert browser.ask("document.querySelectorAll('#grid a[tabindex=\"0\"]').length") == 1
    places = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home"):
        browser.press(key)
        places.append(int(browser.ask("document.activeElement.dataset.target")))
    assert places == [1, 2, 1, 19, 0]
    browser.press("ArrowDown")
    below = int(browser.ask("document.activeElement.dataset.target"))
    assert below == browser.ask(
        "(l => l.filter(a => a.offsetTop === l[0].offsetTop).length)([...document.querySelectorAll('#grid a')])"
    )
    browser.press("Enter")
    browser.wait(f"document.getElementById('answer').dataset.target === '{below}'")
    assert browser.ask("document.querySelectorAll('#grid a[tabindex=\"0\"]').length") == 1


def test_the_slider_goes_along_the_order(browser, made):
    target = next(s["target"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"])
    go(browser, f"t={target}")
    search, base = search_of(made, target), made.verified["base"][str(target)]
    weights, order = made.models.weights[:, target], search["order"]
    browser.ask("document.getElementById('along').focus()")
    browser.press("Home")
    assert text(browser, ".course output").startswith(f"0 removed: margin predicted {base['mean_margin']:.2f}, measured")
    for k in (1, 2):
        browser.press("ArrowRight")
        told = text(browser, ".course output")
        expected = base["mean_margin"] - weights[order[:k]].sum()
        assert told.startswith(f"{k} removed: margin predicted {expected:.2f}".replace("-", "−"))
        assert browser.ask("document.querySelectorAll('.members .card.out').length") == min(len(order), 24) - min(k, len(order))
    for probe in search["probes"]:
        browser.ask(
            f"(s => {{ s.value = {probe['size']}; s.dispatchEvent(new Event('input')); }})(document.getElementById('along'))"
        )
        outcome = "measured {mean_margin:.2f} [{low:.2f}, {high:.2f}]".format(**probe).replace("-", "−")
        assert outcome in text(browser, ".course output")
    # Every probe is drawn with its interval, the base before them, the control where there is one.
    drawn = "document.querySelectorAll('.course .measured.removed, .course .measured.confirmed').length"
    assert browser.ask(drawn) == len(search["probes"])
    assert browser.ask("document.querySelectorAll('.course .measured.confirmed').length") == (search["size"] is not None)
    assert browser.ask("document.querySelectorAll('.course .measured.base').length") == 1
    assert browser.ask("document.querySelectorAll('.course .measured.control').length") == 1


def test_other_ways_of_asking_are_chosen_beside(browser, made):
    go(browser, "t=7")
    ways = browser.ask("[...document.getElementById('way').options].map(o => o.text)")
    assert len(ways) == len([s for s in made.verified["searches"] if s["target"] == 7]) + 1
    place = next(k for k, way in enumerate(ways) if way.startswith("relabelled"))
    browser.ask(f"(s => {{ s.value = {place}; s.dispatchEvent(new Event('change')); }})(document.getElementById('way'))")
    search = search_of(made, 7, "relabel")
    assert f"labelled {search['relabelled']}" in text(browser, ".sentence")
    assert indices(browser, ".members") == search["order"][:24]


def set_value(browser, name, value):
    browser.ask(
        f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('input')); }})(document.getElementById('{name}'))"
    )


def test_the_links_at_the_top_keep_the_target_in_the_address(browser):
    go(browser, "t=7")
    for section in ("targets", "map", "evidence"):
        browser.ask(f"document.querySelector('header nav a[href=\"#{section}\"]').click()")
        assert browser.ask("window.location.hash") == "#t=7"
        assert browser.ask(f"document.getElementById('{section}').contains(document.activeElement)")


@pytest.mark.parametrize(
    ("size", "relabelled", "badge"), [(3, 2, "|R| 3"), (0, 2, "relabel 2"), (0, 0, "none found"), (-1, 0, "")]
)
def test_a_tile_tells_what_was_found_by_removal_or_else_by_relabelling(browser, size, relabelled, badge):
    browser.ask(f"DM.run.size[5] = {size}; DM.run.relabelled[5] = {relabelled}")
    set_value(browser, "of-size", "any")
    found = "(b => b ? b.textContent : '')(document.querySelector('#grid a[data-target=\"5\"] .badge'))"
    assert browser.ask(found) == badge
    for value, among in (("none", size == relabelled == 0), ("relabelled", relabelled > 0), ("found", size > 0)):
        set_value(browser, "of-size", value)
        assert (5 in indices(browser, "#grid")) == among


def test_filters_and_orders_are_those_of_the_arrays(browser, made):
    right, lds = (made.margins > 0).mean(0), np.array(made.models.metrics["per_target"]["lds"])
    sizes = {s["target"]: s["size"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"]}

    def grid():
        return indices(browser, "#grid")

    label = int(made.labels[3])
    set_value(browser, "of-class", str(label))
    assert grid() == np.flatnonzero(made.labels == label).tolist()
    assert text(browser, "#count") == f"{(made.labels == label).sum()} of 20 targets"
    set_value(browser, "of-class", "")
    for value, which in (("right", right >= 0.5), ("wrong", right < 0.5)):
        set_value(browser, "of-right", value)
        assert grid() == np.flatnonzero(which).tolist()
    set_value(browser, "of-right", "")
    set_value(browser, "of-size", "found")
    assert set(sizes) <= set(grid()) <= set(ASKED)
    set_value(browser, "of-size", "relabelled")
    assert grid() == sorted(s["target"] for s in made.verified["searches"] if s["method"] == "relabel" and s["size"])
    set_value(browser, "of-size", "unasked")
    assert grid() == [t for t in range(T) if t not in {s["target"] for s in made.verified["searches"]}]
    set_value(browser, "of-size", "any")
    least = round(float(np.median(lds)), 2)
    set_value(browser, "of-lds", least)
    assert grid() == [t for t in range(T) if lds[t] >= least]
    set_value(browser, "of-lds", -9)
    for key, values in (("right", right), ("margin", made.margins.mean(0)), ("lds", lds), ("class", made.labels)):
        set_value(browser, "sort", key)
        shown = grid()
        assert np.allclose(values[shown], np.sort(values))
    browser.ask("document.getElementById('down').click()")
    assert grid() == sorted(range(T), key=lambda t: (-made.labels[t], t))
    set_value(browser, "sort", "number")
    browser.ask("document.getElementById('down').click()")


def test_the_way_back_leads_from_a_training_image_to_its_targets(browser, made):
    go(browser, "t=7")
    image = strongest(made.models.weights[:, 7], 1)[0]
    browser.ask("document.querySelector('.strongest a').click()")
    browser.wait(
        f"DM.images.current() === {image} && document.getElementById('image-title')?.textContent.includes('image {image}')"
    )
    browser.wait("document.activeElement.id === 'image-title'")
    assert browser.ask("location.hash") == f"#i={image}"
    weights = made.models.weights
    carried, harmed = (sum(image in strongest(weights[:, t], sign)[:AMONG] for t in range(T)) for sign in (1, -1))
    told = text(browser, "#image")
    assert f"carriers of {carried} target" in told
    assert f"opponents of {harmed} target" in told
    shown = indices(browser, "#image .back > div:first-child")
    assert shown == strongest(weights[image], 1)[:18]
    # And on to one of them.
    go(browser, f"t={shown[0]}")
    browser.wait("document.activeElement.id === 'answer-title'")


def test_lists_of_images_that_stand_out(browser, made):
    weights = made.models.weights
    counts = [sum(image in strongest(weights[:, t], 1)[:AMONG] for t in range(T)) for image in range(N)]
    shown = indices(browser, "#rank-carry")
    assert [counts[image] for image in shown] == sorted(counts, reverse=True)[: len(shown)]
    totals = weights.sum(1)
    doubted = indices(browser, "#rank-doubted")
    assert doubted == [int(i) for i in np.argsort(totals, kind="stable") if totals[i] < 0][: len(doubted)]


def test_a_link_opens_at_its_target_and_an_unknown_one_at_the_first(running, made):
    running.size(1280)
    running.open(made.page, "#t=19")
    assert running.ask("document.getElementById('answer').dataset.target") == "19"
    running.open(made.page, "#i=5")
    assert "Training image 5" in text(running, "#image-title")
    assert running.ask("document.getElementById('trouble').hidden")
    running.open(made.page, "#t=4711")
    first = running.ask("document.getElementById('answer').dataset.target")
    assert int(first) in ASKED
    assert text(running, "#trouble") == "There is no target 4711 here."
    go(running, "t=19")
    assert running.ask("document.getElementById('trouble').hidden")
    running.ask("window.location.hash = 'i=4711'")
    running.wait("document.getElementById('trouble').textContent === 'There is no training image 4711 here.'")
    assert running.ask("document.getElementById('answer').dataset.target") == "19"
    running.ask("window.location.hash = ''")
    running.wait(f"document.getElementById('answer').dataset.target === '{first}'")
    assert running.messages() == []


def test_what_each_class_gives_to_each(browser, made):
    rows = browser.ask(
        "[...document.querySelectorAll('.heat tbody tr')].map(r => [...r.cells].slice(1).map(c => c.textContent))"
    )
    heads = browser.ask("[...document.querySelectorAll('.heat thead th')].slice(1).map(c => Number(c.textContent))")
    assert heads == sorted(set(made.labels.tolist()))
    for label, row in enumerate(rows):
        for target_label, told in zip(heads, row, strict=True):
            part = made.models.weights[made.train_labels == label][:, made.labels == target_label]
            assert float(told.replace("−", "-")) == pytest.approx(
                part.sum(0).mean(), abs=0.051 if abs(part.sum(0).mean()) < 9.9 else 0.51
            )


def test_figures_for_the_critic_are_read_off_without_a_mouse(browser, made):
    found = [s["size"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"]]
    browser.ask("document.querySelector('#figure-cdf input').focus()")
    told = []
    for _ in range(1 + int(browser.ask("Number(document.querySelector('#figure-cdf input').max)"))):
        told.append(text(browser, "#figure-cdf output"))
        browser.press("ArrowRight")
    for size in set(found):
        assert (
            f"removed, by datamodel: at most {size} turn {sum(s <= size for s in found)} of {len(ASKED)} targets" in told
            or len([s for s in made.verified["searches"] if s["method"] == "datamodel"]) < len(ASKED)
        )
    for name in ("heldout", "lds", "drops", "random-subsets", "ceilings", "verified-5"):
        assert text(browser, f"#figure-{name} output"), name
        assert browser.ask(f"document.querySelector('#figure-{name} svg').getAttribute('aria-label')")
    # Of each there are files for papers.
    links = browser.ask("[...document.querySelectorAll('.files a')].map(a => a.getAttribute('href'))")
    assert len(links) == 2 * len({link.split(".")[0] for link in links}) >= 10
    assert all((made.page.parent / link).is_file() for link in links)


def test_the_table_of_searches_sorts_and_filters(browser, made):
    def column(k):
        rows = "[...document.querySelectorAll('#searches tbody tr')].filter(r => !r.hidden)"
        return browser.ask(f"{rows}.map(r => r.cells[{k}].textContent.trim())")

    def sort(k):
        browser.ask(f"document.querySelectorAll('#searches th')[{k}].querySelector('button').click()")

    sort(0)
    targets = [int(cell) for cell in column(0)]
    assert targets == sorted(targets)
    assert len(set(targets)) > 1
    shares = {
        int(target): [100 * told[name] for name in ("correct", "correct_low", "correct_high")]
        for target, told in made.verified["base"].items()
    }
    assert column(6) == ["{:.0f} % [{:.0f}, {:.0f}]".format(*shares[target]) for target in targets]
    sort(0)
    assert [int(cell) for cell in column(0)] == sorted(targets, reverse=True)
    sort(4)
    sizes = [np.inf if cell.startswith(">") else int(cell) for cell in column(4)]
    assert sizes == sorted(sizes)
    set_value(browser, "filter", "relabelled")
    assert len(column(0)) == len(targets) // 4
    assert all("relabelled" in cell for cell in column(2))


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_sticks_out_and_figures_keep_the_size_of_their_text(browser, made, width, scheme):
    browser.size(width)
    browser.prefer(scheme)
    browser.open(made.page, "#t=7")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.ask("document.documentElement.scrollWidth") <= width
    sizes = browser.ask(
        "[...document.querySelectorAll('.plot svg')].map(s => [s.getBoundingClientRect().width, s.viewBox.baseVal.width])"
    )
    assert len(sizes) >= 6
    assert all(abs(shown - drawn) < 1 for shown, drawn in sizes)
    ground = browser.ask("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (scheme == "dark")


def test_in_print_every_table_is_whole_and_repeats_its_heads(browser, made):
    if browser.ask("document.querySelector('details.long').open = false") is None:
        pytest.fail("there are no long tables")
    pdf = browser.pdf()  # which opens what is folded up
    assert pdf.startswith(b"%PDF")
    assert browser.ask("[...document.querySelectorAll('details.long')].every(d => d.open)")
    browser.size(718)  # A4 within its margins
    browser.call("Emulation.setEmulatedMedia", media="print")
    ask = """[...document.querySelectorAll("table")].filter(t => t.offsetParent).map(t => {
        let cut = false;
        for (let e = t; e && e !== document.documentElement; e = e.parentElement)
            cut = cut || (getComputedStyle(e).overflow !== "visible" && e.scrollWidth > e.clientWidth);
        const [head, row] = [getComputedStyle(t.tHead), getComputedStyle(t.rows[1])];
        return [t.getBoundingClientRect().right, cut, head.display, row.breakInside];
    })"""
    tables = browser.ask(ask)
    browser.call("Emulation.setEmulatedMedia", media="")
    assert len(tables) >= 4
    for right, cut, head, inside in tables:
        assert (right <= 719, cut, head, inside) == (True, False, "table-header-group", "avoid")


def axe():
    """The script of axe-core, out of an installed package."""
    for package in ("axe_playwright_python", "axe_core_python"):
        if importlib.util.find_spec(package):
            return (importlib.resources.files(package) / "axe.min.js").read_text(encoding="utf-8")
    return None


@pytest.mark.skipif(axe() is None, reason="axe-core-python is not installed here")
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_against_the_page(browser, width, scheme, made):
    browser.size(width)
    browser.prefer(scheme, "reduce")
    browser.open(made.page, "#t=7")
    browser.ask("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.ask(axe())
    told = "v.nodes.slice(0, 3).map(n => [n.html.slice(0, 200), n.failureSummary])"
    found = browser.ask(f"axe.run({{runOnly: {json.dumps(RULES)}}}).then(r => r.violations.map(v => [v.id, {told}]))")
    assert not found, json.dumps(found, indent=1)


class Hostile:
    """A learner whose names and classes are other people's: HTML, script, text that turns round."""

    def __init__(self, learner):
        self.train_labels, self.test_labels = learner.train_labels, learner.test_labels
        self.name, self.provenance, self.models_at_once = "hostile", {}, 1
        self.class_names = tuple(f"<img src=x onerror=alert({k})>" for k in range(10))

    def train(self, models):
        raise NotImplementedError

    def names(self, of_train, numbers):
        return [ODD[k % len(ODD)] for k in numbers]


class HostilePictures(Hostile):
    def pictures(self, of_train, numbers):
        return np.stack([np.full((40, 60, 3), 4 * k, np.uint8) for k in numbers])


@pytest.mark.parametrize("kind", [Hostile, HostilePictures])
def test_names_are_shown_and_not_run(running, made, tmp_path, kind):
    copy = tmp_path / "run"
    shutil.copytree(made.page.parents[1], copy, ignore=shutil.ignore_patterns("report"))
    settings = parse(flags(copy, store__num_models=60, verify__methods="datamodel,relabel,random,similarity"))[0]
    learner = kind(made.learner)
    report(settings, learner)
    running.size(1280)
    running.open(copy / "report" / "index.html", "#t=7")
    assert running.messages() == []
    assert running.ask("document.querySelectorAll('img, main script').length") == 0
    wanted = examples_name(ODD[7])
    running.wait(f"document.querySelector('#portrait bdi').textContent === {json.dumps(wanted)}")
    assert learner.class_names[int(made.labels[7])] in text(running, "#portrait .class")
    rows = "[...document.querySelectorAll('#answer-body details:last-of-type tbody tr')]"
    members = running.ask(f"{rows}.map(r => [...r.cells].map(c => c.textContent))")
    order = search_of(made, 7)["order"]
    assert [int(row[1]) for row in members] == order
    running.wait("document.querySelector('#answer-body details:last-of-type tbody bdi').textContent !== ''")
    members = running.ask(f"{rows}.map(r => r.cells[2].textContent)")
    assert members == [examples_name(ODD[k % len(ODD)]) for k in order]
    pictured = running.ask("[...document.querySelectorAll('.members .thumb')].map(t => t.style.backgroundImage !== '')")
    assert pictured == [kind is HostilePictures] * len(pictured)
    # Names can be searched.
    running.ask("document.getElementById('find').focus()")
    set_value(running, "find", "日本語")
    running.wait("document.querySelectorAll('#grid a').length < 20")
    assert indices(running, "#grid") == [t for t in range(T) if "日本語" in ODD[t % len(ODD)]]


class OfFeatures(Hostile):
    """A learner of rows of features."""

    def __init__(self, learner):
        super().__init__(learner)
        self.class_names = learner.class_names
        rng = np.random.default_rng(0)
        sides = (SimpleNamespace(images=torch.from_numpy(rng.normal(size=(k, 30)))) for k in (N, T))
        self.data = SimpleNamespace(has_pictures=False, **dict(zip(("train", "test"), sides, strict=True)))


def test_rows_of_features_are_shown_as_cells(running, made, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(made.page.parents[1], copy, ignore=shutil.ignore_patterns("report"))
    settings = dataclasses.replace(made.settings, run=dataclasses.replace(made.settings.run, dir=str(copy)))
    report(settings, OfFeatures(made.learner))
    running.size(1280)
    running.open(page_folder(settings) / "index.html", "#t=7")
    assert "A cell for each feature" in text(running, "#portrait .note")
    assert running.ask("document.querySelector('.large .thumb').style.backgroundImage").startswith('url("data/test-0.')
    assert "Which training examples" in text(running, "h1")
    assert "in shades of their cells" in text(running, "#rank-twins")
    assert running.messages() == []


def rewritten(made, folder, name, change):
    """A copy of the page of whose data one part is changed."""
    page = folder / "report"
    shutil.copytree(made.page.parent, page)
    file = page / "data" / f"{name}.js"
    call = re.fullmatch(rf'DM\.put\("{name}",(.*)\);\n', file.read_text())
    assert call is not None
    content = json.loads(call[1])
    change(content)
    file.write_text(f'DM.put("{name}",{json.dumps(content)});\n')
    return page / "index.html"


def test_what_fresh_networks_say_is_what_is_told(running, made, tmp_path):
    target = next(s["target"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"])

    def confirm(content):
        (search,) = (s for s in content["answers"][str(target)]["searches"] if s["method"] == "datamodel")
        told = {"models": 64, "mean": -0.7, "low": -1.1, "high": -0.3, "right": 9, "share": [9 / 64, 0.07, 0.25]}
        search.update(confirmed={**told, "confidence": None}, breaks=[2, 5], repairs=[8])

    running.open(rewritten(made, tmp_path, "targets-0", confirm), f"#t={target}")
    assert text(running, ".sentence").endswith("networks get it wrong in 55 of 64 trainings.")
    told = text(running, ".beside")
    assert "Counted with 64 fresh networks that no search has seen." in told
    assert "The same networks break 2 other predictions: 2 5." in told
    assert "repair 1 other prediction: 8." in told
    assert "measured −0.70 [−1.10, −0.30], right in 9 of 64" in text(running, ".course output")
    assert running.ask("document.querySelectorAll('.measured.confirmed').length") == 1
    assert running.messages() == []


RANDOM = "random of the class"


@pytest.mark.parametrize(
    ("along", "own", "rival", "told"),
    [
        ("datamodel", 9, None, f"No smaller set was found by another order: {RANDOM}."),
        ("datamodel", 9, 9, f"No smaller set was found by another order: {RANDOM}."),
        ("datamodel", None, None, f"No set was found by another order: {RANDOM}."),
        ("datamodel", 9, 7, f"By another order, {RANDOM}, it takes 7, by a proof too weak to be the best of several."),
        ("datamodel", None, 7, f"By another order, {RANDOM}, it takes 7, by a proof too weak to be the best of several."),
        ("random", 12, 9, f"They come first in another order, {RANDOM}; along the datamodel's own it took 12."),
        ("random", None, 9, f"They come first in another order, {RANDOM}; along the datamodel's own no set was found."),
    ],
)
def test_what_came_of_a_rivals_order_is_told(running, made, tmp_path, along, own, rival, told):
    target = next(s["target"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"])

    def asked(content):
        (search,) = (s for s in content["answers"][str(target)]["searches"] if s["method"] == "datamodel")
        assert (search["along"], search["orders"]) == ("datamodel", [])
        search.update(along=along, orders=[["datamodel", own], ["random", rival]])

    running.open(made.page, f"#t={target}")
    assert "order" not in text(running, ".beside")
    running.open(rewritten(made, tmp_path, "targets-0", asked), f"#t={target}")
    assert told in text(running, ".beside")
    assert running.messages() == []


def test_a_page_names_the_rivals_that_have_no_search_of_their_own(running, made):
    settings = changed(made.settings, name="rivals", methods="datamodel", rivals="similarity")
    verify_targets(settings, by_the_rule(load(settings), made.models), made.models, [3, 7])
    report(settings, made.learner)
    searches = {search["target"]: search for search in result_of(settings)["searches"]}
    running.open(page_folder(settings) / "index.html", "#t=7")
    wanted = (
        "No smaller set was found by another order:" if searches[7]["along"] == "datamodel" else "come first in another order,"
    )
    assert f"{wanted} nearest in the networks' features" in text(running, ".beside")
    assert running.messages() == []


def test_a_target_that_was_asked_about_and_not_searched_says_why(running, made, tmp_path):
    told = {"models": 16, "mean": 0.21, "low": -0.1, "high": 0.5, "right": 9, "share": [9 / 16, 0.3, 0.8], "confidence": None}

    def unsearched(content):
        content["answers"]["5"] = {"base": told, "searches": [], "removals": []}

    running.size(1280)
    running.open(rewritten(made, tmp_path, "targets-0", unsearched), "#t=5")
    beside = text(running, ".beside")
    assert "right in 9 of 16, which is not right beyond doubt, so that no set was searched for." in beside
    assert "parts of S" not in beside
    assert "--targets" not in beside
    assert "0 removed: margin predicted 0.21, measured 0.21" in running.ask(
        "(() => { const range = document.getElementById('along'); range.value = 0;"
        " range.dispatchEvent(new Event('input')); return document.querySelector('.course output').textContent; })()"
    )
    assert running.messages() == []


@pytest.mark.parametrize("width", [1280, 390])
def test_bars_of_weights_are_to_scale(browser, width):
    browser.size(width)
    for target in range(T):
        go(browser, f"t={target}")
        rows = browser.ask(
            "[...document.querySelectorAll('#beside .bar')].map(bar => [parseFloat(bar.style.width),"
            " bar.getBoundingClientRect().width])"
        )
        shares, widths = np.array(rows).T
        full = widths[np.argmax(shares)] / shares.max()
        assert full * 100 > 60
        assert np.allclose(widths, np.maximum(full * shares, 2), atol=0.1)


def test_sets_that_repair_are_told_as_such(running, made, tmp_path):
    target = next(s["target"] for s in made.verified["searches"] if s["method"] == "datamodel" and s["size"])
    running.open(rewritten(made, tmp_path, "run", lambda content: content.update(repair=True)), f"#t={target}")
    assert re.search(r"networks get it right in \d+ of \d+ trainings\.$", text(running, ".sentence"))
    other = next(t for t in range(T) if t not in ASKED)
    go(running, f"t={other}")
    assert "stand most against this target" in text(running, ".sentence")
    shown = strongest(made.models.weights[:, other], -1)
    assert indices(running, ".members") == shown[:12]


def test_behaviours_are_targets_too(running, made):
    """Several targets as one: their picture is theirs side by side, their weights are the mean."""
    settings = changed(made.settings, name="more", methods="datamodel")
    data = load(settings)
    asked = targets_named("pair: 3, 7, 12, 19", Examples(made.learner), 0)
    verify_targets(settings, by_the_rule(data, made.models), made.models, asked)
    report(settings, made.learner)
    running.open(page_folder(settings) / "index.html", f"#t={T}")
    assert text(running, "#portrait .kind") == "pair"
    assert running.ask("document.querySelectorAll('#portrait .montage .thumb').length") == 4
    weights = made.models.weights[:, [3, 7, 12, 19]].mean(1)
    first = running.ask("[...document.querySelector('.strongest').querySelectorAll('a')].map(a => Number(a.hash.slice(3)))")
    assert first == strongest(weights, 1)[:6]
    assert text(running, "#count") == "21 of 21 targets"
    assert running.messages() == []


def test_a_page_of_weights_for_some_targets_shows_all(running, made, tmp_path):
    copy, some = tmp_path / "run", slice(5, 15)
    shutil.copytree(made.page.parents[1], copy, ignore=shutil.ignore_patterns("report", "verify.*"))
    settings = changed(made.settings, name="some", methods="datamodel")
    settings = dataclasses.replace(settings, run=dataclasses.replace(settings.run, dir=str(copy)))
    models, folder = made.models, stage_folder(settings, "regress")
    metrics = {**models.metrics, "per_target": {name: values[some] for name, values in models.metrics["per_target"].items()}}
    meta = {**models.meta, "targets": [5, 15]}
    write(folder, models.weights[:, some], models.bias[some], models.lam[some], models.heldout, metrics, meta)
    verify_targets(settings, by_the_rule(load(settings), models), Datamodels.load(folder), [7])
    report(settings, made.learner)
    running.open(page_folder(settings) / "index.html", "#t=0")
    assert text(running, ".sentence") == "Nobody has asked about this target, and there are no weights of it."
    assert text(running, "#beside") == "There are no weights of this target."
    assert text(running, "#count") == "20 of 20 targets"
    for target in (7, 14):
        go(running, f"t={target}")
        assert indices(running, ".strongest")[:6] == strongest(models.weights[:, target], 1)[:6]
        assert set(indices(running, "#near")) == set(range(5, 15)) - {target}
    go(running, "i=3")
    assert indices(running, "#image .back > div:first-child") == [5 + t for t in strongest(models.weights[3, some], 1)]
    assert running.messages() == []


def test_a_page_that_lacks_a_part_says_so(running, made, tmp_path):
    copy = tmp_path / "report"
    shutil.copytree(made.page.parent, copy)
    (copy / "data" / "run.js").unlink()
    running.call("Page.navigate", url="about:blank")
    running.call("Page.navigate", url=(copy / "index.html").as_uri())
    running.wait("document.getElementById('trouble')?.textContent.includes('data/run.js cannot be loaded')")
