"""What lies in a certificate's folder, of the built-in recipe: digests of images, a config, and the recipe in plain PyTorch."""

import ast
import dataclasses
import hashlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from scipy.stats import t as student_t

from datamodels.brittleness.judging import judge
from datamodels.data import load, prepare
from datamodels.resources import CONFIGS
from datamodels.runs import read_store, stage_folder
from datamodels.seals import read_sealed, write_sealed
from datamodels.settings import TrainingSettings, parse
from datamodels.training import Trainer
from datamodels.training import retrain as plain
from datamodels.training.group import Group
from datamodels.verify import certify
from datamodels.verify.certificate import Refused
from datamodels.verify.certificate_checking import check
from datamodels.verify.certificate_readme import SCRIPT
from datamodels.verify.record import FORMAT_VERSION, OnAll, Probe, SearchRecord, Verified, write_verified
from datamodels.worker import engine_of
from tests.conftest import dataset, flags, trained

CPU = torch.device("cpu")
DIGITS = {
    "data__train_images": 60,
    "data__test_images": 20,
    "training__epochs": 8,
    "store__num_models": 2,
    "verify__models": 8,
    "verify__most_models": 8,
    "verify__base_models": 6,
}


def settings_in(folder, **more):
    return parse(flags(folder, **{**DIGITS, **more}))[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with a verdict that removing all of a class flips a target of it, and its certificate."""
    folder = tmp_path_factory.mktemp("digits")
    settings = settings_in(folder / "run")
    prepare(settings, use_ffcv=False)
    data = load(settings)
    trained(settings, data)
    trainer = Trainer(data, settings.training, CPU)
    mean = trainer.margins(np.ones((6, 60), bool), [(9, k) for k in range(6)]).mean(0)
    target = int(np.argmax(mean))
    label = int(data.test.labels[target])
    removed = tuple(np.flatnonzero(data.train.labels.numpy() == label).tolist())
    outcome = judge(np.array([-1.0, -1.1, -0.9, -1.0]))
    probe = Probe(len(removed), 0.0, 8, "flipped", outcome, 1.0)
    about = {"order": removed, "weights": (0.1,) * len(removed), "base_margin": 1.0, "models": 8, "probes": (probe,)}
    search = SearchRecord(
        target,
        label,
        "datamodel",
        None,
        "flipped",
        len(removed),
        len(removed),
        **about,  # type: ignore[arg-type]
    )
    base = {target: OnAll(judge(np.array([1.0, 1.1])), label)}
    write_verified(
        _folder(settings),
        Verified(
            format_version=FORMAT_VERSION,
            version="0",
            store_digest=read_store(settings).digest(),
            regress={},
            verify=dataclasses.asdict(settings.verify),
            inputs={},
            looks=(8,),
            models_used=4,
            random_subsets=None,
            base=base,
            searches=(search,),
            removals=(),
            counterfactuals=(),
        ),
    )
    return certify(_config(folder, settings), target, gpu="cpu", out=folder / "made", put_back=1, with_data=True)


def _folder(settings):
    folder = stage_folder(settings, "verify")
    folder.mkdir()
    return folder


def _config(folder, settings):
    """The settings as a file."""
    file = folder / "own.yaml"
    sections = {name: value for name, value in dataclasses.asdict(settings).items() if name != "ray"}
    file.write_text(yaml.safe_dump(sections))
    return file


def test_the_digests_are_those_that_anybody_can_compute_of_the_arrays(made):
    told, data = read_sealed(made / "certificate.json"), np.load(made / "data.npz")

    def digest(images, labels):
        text = f"{images.dtype} {images.shape}\n".encode()
        return hashlib.sha256(text + images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()

    settings = settings_in(made.parent / "run")
    own = load(settings)
    assert np.array_equal(data["x_train"], own.train.images.numpy())
    assert told["train_digest"] == digest(data["x_train"], data["y_train"])
    assert told["targets_digest"] == digest(data["x_test"], data["y_test"])
    for image in told["images"]:
        assert image["digest"] == digest(data["x_train"][image["index"]], data["y_train"][image["index"]])
    (target,) = told["targets"]
    assert target["digest"] == digest(data["x_test"][target["index"]], data["y_test"][target["index"]])
    assert told["digests_of"] == "images"
    assert told["machine"]["device"] == "cpu"


def test_the_config_beside_it_has_the_settings_that_decide(made):
    there, _ = parse(["-C", str(made / "config.yaml")])
    own = settings_in(made.parent / "run")
    assert (there.data, there.training, there.worker) == (own.data, own.training, own.worker)


def test_from_its_own_folder_it_is_confirmed_by_the_command(made, tmp_path, command):
    here = tmp_path / "here"
    shutil.copytree(made, here)
    prepare(parse(["-C", str(here / "config.yaml"), "--run.dir", str(here / "recheck")])[0], use_ffcv=False)
    done = command("verify", "-C", "config.yaml", "--recheck", ".", "--gpu", "cpu", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "confirmed: target " in done.stdout
    assert "have the margins that it tells of (to 0.001)" in done.stdout
    (here / "certificate.json").write_text((here / "certificate.json").read_text().replace('"label": ', '"label": 1', 1))
    done = command("verify", "-C", "config.yaml", "--recheck", ".", "--gpu", "cpu", cwd=here)
    assert done.returncode == 1
    assert "was changed after it was sealed" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("refused: ")


def test_with_other_data_another_recipe_or_an_edited_margin_it_is_refused(made, tmp_path):
    def checked(path, folder, **more):
        settings = settings_in(tmp_path / folder, **more)
        prepare(settings, use_ffcv=False)
        return check(settings, lambda within: engine_of(within, "cpu", load(settings)), path)

    with pytest.raises(Refused, match=r"image \d+ of R is another here than the certificate tells of \(digest"):
        checked(made, "two", data__seed=1)
    with pytest.raises(Refused, match=r"trained otherwise than the settings here say \(training.epochs: 8 → 3\)"):
        checked(made, "here", training__epochs=3)
    told = read_sealed(made / "certificate.json")
    told["before"]["networks"][0]["margin"] += 0.01 * abs(told["before"]["networks"][0]["margin"])
    told["before"] |= dataclasses.asdict(judge(np.array([n["margin"] for n in told["before"]["networks"]])))
    write_sealed(tmp_path / "certificate.json", told)
    with pytest.raises(Refused, match="the network of repetition 0 on S is said to have the margin"):
        checked(tmp_path / "certificate.json", "here")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--certify", "3", "--targets", "3"), "give one: --targets"),
        (("--targets", "3", "--putback", "3"), "--putback goes with --certify"),
        (("--recheck", "."), "cannot read certificate.json as a certificate: it is missing"),
        (("--certify", "3"), "there is no store"),
    ],
)
def test_flags_that_do_not_go_together_are_a_sentence(tmp_path, command, flags, told):
    done = command("verify", "-C", str(CONFIGS / "digits.yaml"), "--run.dir", "run", *flags, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert not (tmp_path / "run").exists()


# The script for PyTorch alone.


@pytest.mark.slow
def test_the_script_needs_numpy_and_pytorch_only_and_comes_to_the_same_verdict(made):
    assert SCRIPT.read_bytes() == (made / "retrain.py").read_bytes()
    tree = ast.parse(SCRIPT.read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy", "torch"}
    code = "import runpy, sys; sys.argv = ['retrain.py', 'data.npz']\n"
    code += "try: runpy.run_path('retrain.py', run_name='__main__')\n"
    code += "finally: assert not [name for name in sys.modules if name.partition('.')[0] == 'datamodels']"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=made, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "confirmed: certified as flipped"
    assert [line.rpartition(": ")[2] for line in lines if "interval" in line] == ["held", "flipped"]


def test_the_script_refuses_other_images(made, tmp_path, capsys, monkeypatch):
    data = dict(np.load(made / "data.npz"))
    data["x_train"][3, 0, 0, 0] += 1
    np.savez(tmp_path / "data.npz", **data)
    shutil.copy(made / "certificate.json", tmp_path)
    monkeypatch.setattr(plain, "__file__", str(tmp_path / "retrain.py"))
    monkeypatch.setattr(sys, "argv", ["retrain.py", str(tmp_path / "data.npz")])
    assert plain.main() == 2
    assert "x_train, y_train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("margins", "said"),
    [
        ((1.0, 1.2, -1.0, -1.2), "confirmed: certified as flipped"),
        ((1.0, 1.2, 1.0, -1.2), "undecided: certified as flipped; 2 networks are too few to tell, try --networks 8"),
        ((1.0, 1.2, 1.0, 1.2), "not confirmed: certified as flipped"),
        ((1.0, -1.2, 1.0, 1.2), "not confirmed: certified as flipped"),
    ],
)
def test_the_script_tells_too_few_networks_from_a_certificate_that_is_wrong(margins, said, made, capsys, monkeypatch):
    drawn = iter(margins)
    monkeypatch.setattr(plain, "trained", lambda *_: None)
    monkeypatch.setattr(plain, "margin", lambda *_: next(drawn))
    monkeypatch.setattr(plain, "interval", lambda m: (sum(m) / 2, min(m), max(m)))
    monkeypatch.setattr(plain, "__file__", str(made / "retrain.py"))
    monkeypatch.setattr(sys, "argv", ["retrain.py", str(made / "data.npz"), "--networks", "2"])
    assert plain.main() == int(not said.startswith("confirmed"))
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_the_scripts_interval_is_scipys():
    rng = np.random.default_rng(0)
    for number in (2, 3, 5, 8, 33, 200):
        values = rng.normal(size=number)
        own = student_t.interval(0.95, number - 1, values.mean(), values.std(ddof=1) / np.sqrt(number))
        assert plain.interval([*values, np.nan]) == pytest.approx((values.mean(), *own), rel=1e-4)


@pytest.mark.parametrize("network", ["resnet9", "linear"])
def test_the_script_trains_by_the_packages_recipe(network, monkeypatch):
    """From the same start and in the same order, one network of the script's is one of the package's, in float64."""
    data = dataset(40, 12)
    recipe = TrainingSettings(
        network=network, width=3, last_padding=1, epochs=3, batch_size=7, peak_lr=0.2, peak_epoch=1.0, nesterov=True
    )
    recipe = dataclasses.replace(recipe, max_shift=0, flip=False, cutout=0)
    mask = np.arange(40) % 5 > 0
    trainer = Trainer(data, recipe, CPU, dtype=torch.float64)
    key = (3, 1, 4, 1)
    group: Group = trainer.group(mask[None], [key])
    start = group.parameters[0].clone()
    draws = trainer.draws(mask[None], [key])[0].image
    parameters, state = group.train()
    theirs = trainer.test_margins(parameters, state)[0]

    made = plain.network

    def same_start(recipe, shape, classes):
        model = made(recipe, shape, classes).double()
        left = start.clone()
        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
                for parameter in module.parameters():
                    parameter.data.copy_(left[: parameter.numel()].view_as(parameter))
                    left = left[parameter.numel() :]
            elif isinstance(module, torch.nn.Linear) and network == "resnet9":
                module.weight.data.copy_(left.view(module.in_features, module.out_features).T)
        return model

    order = torch.from_numpy(draws.astype(np.int64)).flatten()
    rows = torch.arange(40) if network == "linear" else torch.from_numpy(np.flatnonzero(mask))
    parts = iter(torch.split(order, len(rows)))

    def as_drawn(n):
        part = next(parts)
        place = {int(row): k for k, row in enumerate(rows)}
        own = torch.tensor([place[int(row)] for row in part])
        left = torch.tensor([k for k in range(n) if k not in own.tolist()], dtype=torch.int64)
        return torch.cat([own, left])

    monkeypatch.setattr(plain, "network", same_start)
    monkeypatch.setattr(torch, "randperm", as_drawn)
    x = trainer.images.train
    told = dataclasses.asdict(recipe)
    model = plain.trained(x, data.train.labels, torch.from_numpy(mask), told, 10)
    with torch.no_grad():
        own = [plain.margin(model, trainer.images.test[k : k + 1], data.test.labels[k : k + 1], told) for k in range(12)]
    np.testing.assert_allclose(own, theirs.numpy(), rtol=0, atol=1e-6)


def test_the_script_augments_as_the_recipe_says():
    torch.manual_seed(0)
    x = torch.arange(1.0, 65).view(1, 1, 8, 8).repeat(400, 1, 1, 1)
    found = plain.augmented(x, {"max_shift": 2, "flip": True, "cutout": 3})
    padded = [F.pad(image, (2, 2, 2, 2)) for image in (x[0], x[0].flip(2))]
    windows = {(m, dy, dx): padded[m][:, dy : dy + 8, dx : dx + 8] for m in (0, 1) for dy in range(5) for dx in range(5)}
    seen = set()
    for image in found:
        fits = [where for where, window in windows.items() if ((image == window) | (image == 0)).all()]
        least = min(fits, key=lambda where: int((image != windows[where]).sum()))
        assert int((image != windows[least]).sum()) <= 9
        seen.add(least)
    assert len(seen) == 50


def test_the_script_normalises_as_the_package_does():
    data = dataset(30, 9)
    raw = {"x_train": data.train.images.numpy(), "x_test": data.test.images.numpy()}
    raw |= {"y_train": data.train.labels.numpy(), "y_test": data.test.labels.numpy()}
    trainer = Trainer(data, TrainingSettings(width=2, last_padding=1, max_shift=0, cutout=0), CPU)
    x, x_test, y, y_test = plain.normalised(raw, "cpu")
    torch.testing.assert_close(x, trainer.images.train.contiguous())
    torch.testing.assert_close(x_test, trainer.images.test.contiguous())
    assert torch.equal(y, data.train.labels)
    assert torch.equal(y_test, data.test.labels)
