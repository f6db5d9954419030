from pathlib import Path

import pytest

from datamodels.errors import InputError
from datamodels.provenance import difference
from datamodels.resources import CONFIGS
from datamodels.settings import parse


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


def test_help_lists_every_section_and_ends_well(capsys):
    with pytest.raises(SystemExit) as ended:
        parse(["--help"])
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert all(name in shown for name in ("store.alpha", "training.width", "verify.methods", "regress.gap"))


def test_difference_names_what_changed_at_any_depth():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}
    assert list(difference(old, new)) == ["a.c: 2 → 5", "d: 3 → None", "e: None → 4"]


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
        ('run: {dir: "a\\0b"}', "run.dir must be a text without control characters"),
        ('run: {dir: "a\\e[31m"}', r"run.dir must be a text without control characters, not 'a\\"),
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


def test_a_setting_is_the_text_that_stands_in_the_file(tmp_path):
    text = "\ufeffregress: {targets: 1:30}\nverify: {sizes: 10, ratio: 2}\nrun: {dir: 2001-01-01}\ntraining: {flip: no}\n"
    (tmp_path / "a.yaml").write_bytes(text.encode())
    settings, _ = parse(["-C", str(tmp_path / "a.yaml")])
    assert (settings.regress.targets, settings.verify.sizes, settings.verify.ratio) == ("1:30", "10", 2.0)
    assert (settings.run.dir, settings.training.flip) == ("2001-01-01", False)
