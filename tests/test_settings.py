import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from datamodels.errors import InputError
from datamodels.provenance import difference
from datamodels.resources import CONFIGS
from datamodels.settings import SECTIONS, argument_parser, parse


def write(path: Path, text: str) -> list[str]:
    path.write_text(text)
    return ["-C", str(path)]


def test_default_config_is_cifar10():
    settings, _ = parse([])
    assert settings == parse(["-C", str(CONFIGS / "cifar10.yaml")])[0]
    assert (settings.data.dataset, settings.training.width, settings.store.num_models) == ("cifar10", 64, 300_000)


def test_later_files_and_then_flags_win(tmp_path):
    first = write(tmp_path / "a.yaml", "store: {alpha: 0.3, seed: 5}\n")
    second = write(tmp_path / "b.yaml", "store: {alpha: 0.4}\n")
    settings, _ = parse([*first, *second, "--training.width", "9"])
    assert (settings.store.alpha, settings.store.seed, settings.training.width) == (0.4, 5, 9)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("store: {alhpa: 0.3}", "unknown key store.alhpa.*did you mean store.alpha"),
        ("stroe: {alpha: 0.3}", "unknown key stroe.alpha"),
        ("store: {alpha: 0}", "store.alpha must be"),
        ("store: {alpha: 1}", "store.alpha must be"),
        ("store: {alpha: .nan}", "store.alpha must be"),
        ("store: {num_models: 2.5}", "store.num_models must be a whole number"),
        ("store: {num_models: true}", "store.num_models must be"),
        ("store: {num_models: }", "store.num_models .* has no value"),
        ("training: {flip: perhaps}", "training.flip must be true or false"),
        ("training: {width: -1}", "training.width must be"),
        ("verify: {ratio: 0.5}", "verify.ratio must be"),
        ("data: {dataset: mnist}", "data.dataset must be digits or cifar10"),
        ("store: 3", "must hold sections"),
        ("[1, 2]", "must hold sections"),
        ("store: {alpha: 0.3", "is not YAML"),
    ],
)
def test_a_bad_config_is_one_sentence(tmp_path, text, named):
    with pytest.raises(InputError, match=named) as caught:
        parse(write(tmp_path / "bad.yaml", text))
    assert "\n" not in str(caught.value)


def test_a_missing_config_and_unknown_flags_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cannot read the config .*nowhere.yaml"):
        parse(["-C", str(tmp_path / "nowhere.yaml")])
    with pytest.raises(InputError, match=r"--store\.alhpa"):
        parse(["--store.alhpa", "0.3"])
    with pytest.raises(InputError, match=r"store.alpha must be .* not '1.5'"):
        parse(["--store.alpha", "1.5"])


def test_difference_names_what_changed_at_any_depth():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert list(difference(old, new)) == ["a.c: 2 → 5", "d: 3 → None", "e: None → 4"]


COUNTS = [
    f"{section}.{field.name}"
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if field.type == "int" and field.name != "seed"
]


@pytest.mark.parametrize("name", COUNTS)
def test_every_count_has_an_end_that_a_machine_can_come_to(name):
    assert len(COUNTS) > 20
    for absurd in (2**63 - 1, 4 * 10**18, 2**32):
        with pytest.raises(InputError, match=rf"{name} must be a whole number from -?\d to \d+, not '{absurd}'"):
            parse([f"--{name}", str(absurd)])


def test_work_that_would_have_no_end_is_refused_and_seeds_are_not():
    for name in ("regress.lams", "verify.base_models", "verify.subsets", "verify.models", "prior.models"):
        with pytest.raises(InputError, match=f"{name} must be"):
            parse([f"--{name}", "1000000000"])
    assert parse(["--store.seed", str(2**63 - 1)])[0].store.seed == 2**63 - 1


@pytest.mark.parametrize("by", ["flag", "file", "bytes"])
def test_a_name_that_the_locale_cannot_write_is_refused_for_that_reason(tmp_path, by):
    (tmp_path / "a.yaml").write_text("run: {dir: Übung}\n", encoding="utf-8")
    of_utf8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given: Any = {
        "flag": ("--run.dir", "Übung".encode()),
        "file": ("-C", str(tmp_path / "a.yaml")),
        "bytes": ("--run.dir", b"\xffbung"),
    }[by]
    env = {**os.environ, **(of_utf8 if by != "bytes" else {"PYTHONUTF8": "1"})}
    line = [sys.executable, "-m", "datamodels.regress", *given]
    done = subprocess.run(line, capture_output=True, text=True, check=False, env=env, cwd=tmp_path)
    encoding = "utf-8" if by == "bytes" else "ascii"
    assert done.returncode == 2
    assert done.stderr.startswith("error: run.dir: '")
    assert f" has characters that are none in the encoding of this locale, {encoding}; set LC_ALL to a UTF-8" in done.stderr
    assert done.stderr.count("\n") == 1


NO_WHOLE_NUMBERS = [
    "1_000",
    "٣",
    "1e3",
    "0x10",
    "1:30",
    "inf",
    "true",
    "2.0",
    "9223372036854775808",
    "9" * 5000,
    "''",
    "2001-01-01",
]


@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS)
def test_a_whole_number_is_written_in_plain_digits(tmp_path, value):
    for argv in (write(tmp_path / "a.yaml", f"store: {{seed: {value}}}"), ["--store.seed", value]):
        with pytest.raises(InputError, match=r"store\.seed must be a whole number ≥ 0") as caught:
            parse(argv)
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "value", [".inf", "inf", "-inf", "nan", ".nan", "1e999", "1_0.5", "٣.٥", "0x1p3", "1:30.5", "yes", "1e", "."]
)
def test_a_real_number_is_finite_and_written_in_plain_digits(tmp_path, value):
    for argv in (write(tmp_path / "a.yaml", f"training: {{peak_lr: {value}}}"), [f"--training.peak_lr={value}"]):
        with pytest.raises(InputError, match=r"training\.peak_lr must be a number ≥ 0, not infinite"):
            parse(argv)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("store: {seed: 1, seed: 2}", "seed comes twice"),
        ("store: {seed: 1}\nstore: {alpha: 0.5}", "store comes twice"),
        ("store: {seed: [1]}", "store.seed in .* must be one value, not a sequence"),
        ("store: {seed: {a: 1}}", "store.seed in .* must be one value, not a mapping"),
        ("store: {seed: !!python/object/apply:os.getcwd []}", "must be one value"),
        ("store: {seed: !!binary MQ==}", "must be one value, not a binary"),
        ("store: {seed: !mine 1}", "must be one value, not a !mine"),
        ("store: &s {seed: 1}\nverify: *s", "has an alias"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "has an alias"),
        ("store: " + "[" * 30_000, "nested more than|not YAML"),
        ("? [a]\n: {b: 1}", "must hold sections"),
        ('run: {dir: "a\\0b"}', "run.dir must be a text, not empty and without control characters"),
        ('run: {dir: "a\\e[31m"}', r"run.dir must be a text, not empty and without control characters, not 'a\\"),
        ("run: {dir: " + "x" * 5000 + "}", "run.dir must be"),
        ("#" * 70_000, "has 70000 bytes"),
        ("store: {seed: 1}\n---\nstore: {seed: 2}", "not YAML"),
        ("", "must hold sections"),
    ],
)
def test_what_yaml_can_do_beside_settings_is_refused(tmp_path, text, named):
    with pytest.raises(InputError, match=named) as caught:
        parse(write(tmp_path / "bad.yaml", text))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--training.epoch", "3"], "did you mean --training.epochs\\?"),
        (["--train.epochs=3"], "did you mean --training.epochs\\?"),
        (["--verify.target", "3"], "did you mean --"),
        (["--verify.targets", "3"], "did you mean --targets\\?"),
        (["--target", "3"], "did you mean --targets\\?"),
        (["--quickly"], "unrecognized arguments: --quickly \\(--help"),
        (["7"], "unrecognized arguments: 7 \\(--help"),
    ],
)
def test_the_flag_that_an_unknown_one_is_meant_for_is_told(argv, told):
    parser = argument_parser("here")
    parser.add_argument("--targets")
    with pytest.raises(InputError, match=told):
        parse(argv, parser)


def test_a_setting_is_the_text_that_stands_in_the_file(tmp_path):
    text = "\ufeffregress: {targets: 1:30}\nverify: {sizes: 10, ratio: 2}\nrun: {dir: 2001-01-01}\ntraining: {flip: no}\n"
    (tmp_path / "a.yaml").write_bytes(text.encode())
    settings, _ = parse(["-C", str(tmp_path / "a.yaml")])
    assert (settings.regress.targets, settings.verify.sizes, settings.verify.ratio) == ("1:30", "10", 2.0)
    assert (settings.run.dir, settings.training.flip) == ("2001-01-01", False)
