"""The texts say what the records say: this tells when they have drifted, and `python -m tests.benchmarks.figures` mends it."""

import json
import re
import shutil

import pytest

from tests.benchmarks import figures
from tests.benchmarks.figures import RECKONED, ROOT, UnknownFigureError, at, drifted, filled, main, written
from tests.benchmarks.records import LISTING, RESULTS, Records, UnknownRecordError
from tests.benchmarks.tables import ROADS, TABLES

RECORD = {"lds": 0.70919, "rows": [{"way": "a", "m": 5, "is": {"x y": 1}}, {"way": "a", "m": 50, "is": {"x y": 1204985856}}]}


@pytest.fixture
def records(tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(RECORD))
    return Records(tmp_path)


def test_the_texts_say_what_the_records_say():
    names = [str(text.relative_to(ROOT)) for text in drifted()]
    assert not names, f"{', '.join(names)}: say something else than the records: python -m tests.benchmarks.figures"


def test_every_record_is_listed_with_its_command():
    assert set(Records().names) <= set(LISTING), "tests/benchmarks/records.py, LISTING: give the record its command and its n"
    assert {road.record for road in ROADS} <= set(LISTING)


def test_every_text_with_figures_is_filled_and_every_table_is_shown():
    texts = [path for path in ROOT.rglob("*.md") if ".venv" not in path.parts]
    shown = {path: path.read_text(encoding="utf-8") for path in texts}
    marked = {path for path, text in shown.items() if figures.INLINE.search(text) or figures.BLOCK.search(text)}
    assert marked <= set(figures.TEXTS)
    assert {found["name"] for text in shown.values() for found in figures.BLOCK.finditer(text)} == set(TABLES)
    begun = [line for text in shown.values() for line in text.splitlines() if re.match(r"\s*([-*] |\d+\. )?<!--= ", line)]
    assert not begun, "a line that begins with a comment is HTML to Markdown, and what follows in it is not read"
    used = {found["what"].split(":")[1].strip() for text in shown.values() for found in figures.INLINE.finditer(text)}
    assert set(RECKONED) <= used


def test_figures_are_found_formatted_and_written_between_their_marks(records):
    text = "LDS <!--= one: lds: .3f-->?<!--/-->, <!--= one: rows[way=a,m=50]/is/x y: ,.0f*1e-6-->9<!--/--> MB\n"
    once = filled(text, records)
    assert "".join(figures.INLINE.sub(lambda found: found["is"], once)) == "LDS 0.709, 1,205 MB\n"
    assert filled(once, records) == once
    fenced = f"```html\n{text}```\n"
    assert filled(fenced, records) == fenced


def test_a_target_that_no_set_flips_has_a_dash_and_no_mean(tmp_path):
    one, other = {"3": 20, "5": 30}, {"3": 40, "5": None}
    by_method = {"datamodel": {"sizes": one}, "similarity": {"sizes": other}}
    (tmp_path / "cifar10-5k.json").write_text(json.dumps({"by_method": by_method}))
    rows = TABLES["orders"](Records(tmp_path))[1:]
    assert rows == [["3", "20", "40", "0.50"], ["5", "30", "–", "–"], ["median", "25", "–", ""], ["mean", "25.0", "–", ""]]


def test_where_a_rival_was_asked_its_answers_stand_beside_the_orders_own(tmp_path):
    asked = {"datamodel": {"sizes": {"3": 20, "5": None, "7": 9}}, "similarity": {"sizes": {"3": 10, "5": 30, "7": None}}}
    by_method = {
        "datamodel": {"sizes": {"3": 10, "5": 30, "7": 9}, "orders": asked},
        "similarity": {"sizes": {"3": 10, "5": 30, "7": 20}},
    }
    (tmp_path / "cifar10-5k.json").write_text(json.dumps({"by_method": by_method}))
    head, *rows = TABLES["orders"](Records(tmp_path))
    assert head[1:4] == ["removed", "removed, the nearest of the class first", "removed, the nearest asked as a rival"]
    assert rows[:3] == [
        ["3", "20", "10", "10", "2.00", "1.00"],
        ["5", "–", "30", "30", "–", "1.00"],
        ["7", "9", "20", "9", "0.45", "0.45"],
    ]
    assert rows[3:] == [["median", "20", "20", "10", "", ""], ["mean", "–", "20.0", "16.3", "", ""]]


@pytest.mark.parametrize(("own", "told"), [(10, "1 of 1, 10"), (25, "1 of 1, 10 (without the rival 25)"), (None, "rival –)")])
def test_the_table_of_results_says_what_the_order_alone_has_found(tmp_path, own, told):
    orders = {"datamodel": {"sizes": {"3": own}}, "similarity": {"sizes": {"3": 10}}}
    of = {"flipped": 1, "targets": 1, "median_size": "10", "sizes": {"3": 10}, "orders": orders}
    run = {"models": 9, "lds": 0.5, "targets_asked": 1, "by_method": {"datamodel": of}, "by_rule": {}, "version": "1"}
    machine = {"cores": 2, "processor": "a processor"}
    (tmp_path / "cifar10-5k.json").write_text(json.dumps({**run, "machine": machine}))
    assert TABLES["results"](Records(tmp_path))[1][2].endswith(told)


def test_what_is_not_there_is_said(records):
    for what, said in (("one: rows[m=6]/is", "rows"), ("one: lds/mean", "mean"), ("reckoned: x", "nothing reckons x")):
        with pytest.raises(UnknownFigureError, match=said):
            filled(f"<!--= {what}-->?<!--/-->", records)
    with pytest.raises(UnknownRecordError, match=r"no record two\.json"):
        filled("<!--= two: lds-->?<!--/-->", records)
    with pytest.raises(UnknownFigureError, match="no table nothing"):
        filled("<!--table nothing-->\n<!--/table-->", records)


@pytest.mark.parametrize(
    ("value", "form", "wanted"),
    [
        (0.9, ".0%", "90 %"),
        (1234.5, ",.0f", "1,234"),
        ("≥ 7", "", "≥ 7"),
        (26255, ".0f*1e-3", "26"),
        (2.06e-6, ".1e", "2.1e-06"),
    ],
)
def test_formats(value, form, wanted):
    assert written(value, form) == wanted


def test_paths_lead_to_entries_by_their_keys_or_their_place():
    assert at(RECORD, "rows[1]/m") == 50
    assert at(RECORD, "rows[m=5]/is/x y") == 1


def test_a_changed_record_is_noticed_and_written(tmp_path, monkeypatch, capsys):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("*.png"))
    file = tmp_path / "results" / "digits-demo.json"
    record = json.loads(file.read_text())
    record["by_method"]["datamodel"] |= {"flipped": 877, "targets": 878}
    file.write_text(json.dumps(record))
    text = tmp_path / "README.md"
    shutil.copy(ROOT / "README.md", text)
    assert drifted([text], Records(tmp_path / "results")) == [text]
    for name, value in (("ROOT", tmp_path), ("TEXTS", (text,)), ("Records", lambda: Records(tmp_path / "results"))):
        monkeypatch.setattr(figures, name, value)
    monkeypatch.setattr(figures.drifted, "__defaults__", ((text,), None))
    assert main(["--check"]) == 1
    assert main([]) == 0
    assert "877 of 878" in text.read_text()
    assert main(["--check"]) == 0
    assert "README.md: figures renewed" in capsys.readouterr().out


def test_runs_that_are_still_to_come_get_their_rows_when_their_records_are_there(tmp_path):
    for name in ("digits-demo", "cifar10-small-run"):
        shutil.copy(RESULTS / f"{name}.json", tmp_path)
    before = {name: len(TABLES[name](Records(tmp_path))) for name in ("results", "smallest", "stages")}
    record = json.loads((tmp_path / "digits-demo.json").read_text())
    record["by_method"] |= {"similarity": record["by_method"]["datamodel"], "random": record["by_method"]["datamodel"]}
    for name in {road.record for road in ROADS} - set(Records(tmp_path).names):
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    after = {name: TABLES[name](Records(tmp_path)) for name in before}
    assert len(after["results"]) == before["results"] + 2
    assert len(after["stages"]) == before["stages"] + 2
    assert len(after["smallest"]) == before["smallest"] + 8
    assert all(len(row) == len(table[0]) for table in after.values() for row in table)
