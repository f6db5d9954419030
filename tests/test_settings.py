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
