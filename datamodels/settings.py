"""Every setting of every stage: declared once, here, read from YAML files and the command line by fastargs.

A setting is a field of one of the dataclasses below; its section and name (`training.width`) are its key in the YAML files
and, behind two dashes, on the command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from fastargs import Config, Param, Section

from datamodels import __version__
from datamodels.checkers import Choice, FolderName, OwnOr, Text, count, not_encoded, real, seed_of, setting, switch
from datamodels.commands import COMMANDS
from datamodels.configs import config_named, nearest, read_config
from datamodels.errors import InputError, shown
from datamodels.help import Lines, Shown, settings_in_words
from datamodels.resources import CONFIGS, SUFFIX, shipped_configs

DEFAULT_CONFIG = "cifar10"
BUILT_IN = "built-in"
NO_ARRAYS = NO_SOURCE = NO_TARGETS = NO_FILES = "none"
ALL, OFFICIAL = "all", "official"
DATASETS = ("digits", "cifar10", "cifar100", "folder", "beton", "arrays")
MEASURED = "measured"
RESNET9, LINEAR = ARCHITECTURES = ("resnet9", "linear")
PLAIN, PADDED, COMPILED, COMPILED_PADDED = PROGRAMS = ("plain", "padded", "compiled", "compiled-padded")
VERIFY = "verify"
LOCAL, RAY = ENGINES = ("local", "ray")
FLIP, REPAIR = "flip", "repair"
MOST_MODELS = 2**20
"""Of models for one purpose of the verification."""
MOST_OF_A_SET = 20_000
"""Models of one set: their repetitions are numbered by who wants them, half a million apart."""


@dataclass(frozen=True)
class RunSettings:
    """Where everything of one run lies."""

    dir: str = setting(Text(), "runs/cifar10", "folder of the run; its stages write into folders of their own within")


@dataclass(frozen=True)
class DataSettings:
    """Which images."""

    dataset: str = setting(
        OwnOr(*DATASETS),
        "cifar10",
        "the data set: one that is known, or of one's own a folder of images, an FFCV file (beton), NumPy arrays, or as "
        "module:function what a function gives, train and test",
    )
    source: str = setting(
        Text(),
        NO_SOURCE,
        "where it lies. cifar10, cifar100: the archive, or the folder with it or with the unpacked batches, "
        f"{NO_SOURCE}: data/cifar10 or data/cifar100; folder: the one with train/ and test/; beton: the folder with "
        "train.beton and test.beton, or the two files with a comma between; arrays: an .npz file, or a folder of .npy files",
    )
    download: bool = switch(True, "cifar10, cifar100: fetch the archive into the source when there is none")
    url: str = setting(Text(), OFFICIAL, "cifar10, cifar100: where the archive comes from")
    md5: str = setting(Text(), OFFICIAL, "cifar10, cifar100: MD5 of the binary archive")
    md5_python: str = setting(Text(), OFFICIAL, "cifar10, cifar100: MD5 of the archive of pickled batches")
    verify_md5: bool = switch(True, "cifar10, cifar100: read nothing but an archive with one of these MD5s")
    size: int = count(
        0,
        "pictures are brought to so many pixels a side: the shorter side resized, then the centre cut; 0: as they are",
        low=0,
        high=2**12,
    )
    pool: int = count(1, "average blocks of so many pixels a side into one", high=32)
    classes: str = setting(Text(), ALL, f"only these classes, as ship,airplane, which are numbered in this order; or {ALL}")
    image_field: str = setting(Text(), "image", "beton: the name of the field with the images")
    label_field: str = setting(Text(), "label", "beton: the name of the field with the labels")
    train_images: int = count(0, "size N of the training set S; 0: all that there are", low=0, high=2**29)
    test_images: int = count(0, "number T of test images, the targets; 0: all that there are", low=0, high=2**29)
    train_targets: str = setting(
        Text(),
        NO_TARGETS,
        "training images that are targets as well, after the test images: indices or names of files, as 3,17 or dog/0001.png, "
        f"random:50, {ALL}, or {NO_TARGETS}",
    )
    seed: int = seed_of(0, "which images are drawn, and their order")


@dataclass(frozen=True)
class TrainingSettings:
    """The network and the recipe that every model is trained by."""

    network: str = setting(
        OwnOr(*ARCHITECTURES),
        RESNET9,
        f"{RESNET9}; {LINEAR}: softmax regression; or as module:Class a torch.nn.Module of one's own",
    )
    width: int = count(64, "resnet9: channels after the first convolution", high=2**14)
    last_padding: int = count(0, "resnet9: padding of the last convolution in pixels", low=0, high=1)
    epochs: int = count(24, "passes over a model's subset", high=10**6)
    batch_size: int = count(512, "images in a step", high=2**29)
    peak_lr: float = real(0.5, "highest learning rate")
    peak_epoch: float = real(5.0, "epoch of the highest learning rate: linear up to it, then linear to 0")
    momentum: float = real(0.9, "of SGD", high=1.0)
    nesterov: bool = switch(False, "Nesterov's form of momentum")
    weight_decay: float = real(5e-4, "on all parameters")
    label_smoothing: float = real(0.1, "share of the label spread over all classes", high=1.0)
    max_shift: int = count(2, "augmentation: translation by up to so many pixels either way", low=0, high=63)
    flip: bool = switch(True, "augmentation: mirror images, in training and averaged at evaluation")
    cutout: int = count(4, "augmentation: side of the square that is cut out, in pixels; 0 is off", low=0, high=2**10)
    precision: str = setting(
        Choice("float32", "bfloat16"), "float32", "number format of images and activations; weights are always float32"
    )

    def deciding(self) -> dict[str, Any]:
        """What decides a model: all of it, but for the network where it is the default, which older runs do not name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if (name, value) != ("network", RESNET9)}


@dataclass(frozen=True)
class StoreSettings:
    """How many models, on which subsets."""

    num_models: int = count(300_000, "number M of models", high=2**31)
    alpha: float = real(0.5, "share α of the training set that each model sees", high=1.0, open_ends=True)
    seed: int = seed_of(0, "of masks, initialisations, batch orders and augmentation")
    margin_dtype: str = setting(Choice("float16", "float32"), "float16", "number format of the stored margins")
    arrays: str = setting(
        Text(),
        NO_ARRAYS,
        "what else is kept of each model: name:dtype:shape with commas between, such as logits:float16:500x10",
    )


@dataclass(frozen=True)
class WorkerSettings:
    """What trains the models."""

    main: str = setting(
        Text(),
        BUILT_IN,
        f"'{BUILT_IN}' for this package's own training, or as module:name a training function of one's own, or a learner",
    )
    trust_changed_code: bool = switch(False, "go on with a run whose source files have changed since it was begun")


@dataclass(frozen=True)
class GroupSettings:
    """How models share a device. None of it changes a model but in its rounding."""

    models_at_once: int = count(
        0, "models in one group, trained side by side; a worker claims such blocks; 0: chosen by measuring", low=0, high=1024
    )
    models_per_kernel: int = count(
        0,
        "models of a group that share one grouped convolution; the others go on streams; 0: chosen by measuring",
        low=0,
        high=1024,
    )
    program: str = setting(
        Choice(MEASURED, *PROGRAMS),
        MEASURED,
        "how a step is computed. plain: PyTorch's operations; padded: with images of 8 channels, which tensor cores like; "
        f"compiled: by Inductor, of one model a kernel; {MEASURED}: chosen by measuring",
    )


@dataclass(frozen=True)
class PriorSettings:
    """What the worker finds out beforehand for `regress.prior`."""

    models: int = count(16, "models that are trained for it, beside those of the store", high=2**16)
    dimensions: int = count(
        2048, "gradients are projected to so many numbers where products of whole ones would take too long", high=2**20
    )


@dataclass(frozen=True)
class RegressSettings:
    """How weights are estimated."""

    prior: str = setting(
        Text(),
        "none",
        "what is known of weights before the models are: none, for the lasso; gradients or similarity, from a few networks; "
        "flat; or an .npy file (F, N, T) of one's own",
    )
    sparse: bool = switch(
        False,
        "with a prior: the lasso, each weight penalised by what the prior expects of it, in the place of the posterior mean",
    )
    heldout: float = real(
        0.1, "share of the models kept for measuring: used for neither fit nor choice", high=1.0, open_ends=True
    )
    choice: float = real(0.2, "share of the other models that choose λ", high=1.0, open_ends=True)
    seed: int = seed_of(0, "which models are held out")
    targets: str = setting(Text(), "all", "which targets: 'all', or a range as 0:1000, such as for one of several GPUs")
    lams: int = count(100, "values of λ on the path, which ends for a target once its error has risen", low=2, high=10**4)
    lam_ratio: float = real(1e-3, "last λ over the first, λ_max", high=1.0, open_ends=True)
    standardise: bool = switch(False, "penalise each weight by the standard deviation of its image's column of the masks")
    solver: str = setting(
        Choice("auto", "gram", "path", "saga"),
        "auto",
        "gram: from XᵀX; path: from up to 2,048 models and their exact paths; saga: from the models in batches; "
        "auto: path with far more images than models, else gram where XᵀX fits",
    )
    block: int = count(
        0, "targets solved together; memory grows with it; 0: up to 256, on a GPU 1024, as memory allows", low=0, high=2**29
    )
    gap: float = real(1e-4, "relative duality gap at which a solution is accepted", high=1.0, open_ends=True)
    device: str = setting(Choice("auto", "cpu", "gpu"), "auto", "where to compute: on a GPU, when CuPy finds one, or not")


@dataclass(frozen=True)
class VerifySettings:
    """How a prediction is put to the proof."""

    name: str = setting(
        FolderName(), VERIFY, "folder of the verdicts within the run; what is there is added to, under the same settings only"
    )
    methods: str = setting(
        Text(),
        "datamodel",
        "how to order the images of which the smallest set that flips is searched: some of datamodel, relabel, random, "
        "similarity, gradients, tracin, influence, trak, embedding, scores:FILE or scores:NAME=FILE, for anybody's scores, "
        "larger where an image helps more (.npy (N, T), .npz of scores and targets, TRAK's .mmap, dattri's .pt); or none",
    )
    rivals: str = setting(
        Text(),
        "none",
        "other methods, as similarity,gradients, whose orders are asked for a smaller set than the method datamodel has found, "
        "or for one where it has none: the smallest that is proved is its answer; or none",
    )
    sizes: str = setting(Text(), "none", "beside the search: remove so many images, as 20,50; or none")
    counterfactuals: str = setting(
        Text(),
        "none",
        "sizes, as 5,20,80: remove the largest weights, the smallest, and random images, for predicted against measured drops",
    )
    models: int = count(
        2,
        "models that a search trains for a set at a time, until it knows which set to have confirmed",
        low=2,
        high=MOST_OF_A_SET,
    )
    most_models: int = count(
        24,
        "models of the last of three looks at a set that is to be confirmed, and of a recheck; two thirds as many for a "
        "removal of a fixed size, a third for a counterfactual",
        low=2,
        high=MOST_OF_A_SET,
    )
    base_models: int = count(32, "models trained on all of S, for the margin before", low=2, high=MOST_MODELS)
    ratio: float = real(1.25, "the search ends when a set that flips is so many times one that does not", low=1.0)
    max_size: int = count(100, "R is never larger than this", high=2**29)
    goal: str = setting(
        Choice(FLIP, REPAIR),
        FLIP,
        "what a set R is to do: flip a prediction that is right beyond doubt, or repair one that is wrong beyond doubt",
    )
    candidates: str = setting(
        Choice("all", "class"),
        "all",
        "which images the methods datamodel, relabel and scores choose from: all, or the target's class; to repair, the class "
        "that networks take it for",
    )
    relabel_to: int = count(
        -1,
        "the class that the method relabel gives to R; -1: the target's runner-up, or to repair the target's own",
        low=-1,
        high=2**31 - 1,
    )
    embedding: str = setting(
        Text(), "none", "an .npy file (N + T, d) of all images, S and then the test images, for the method embedding"
    )
    subsets: int = count(
        0, "random subsets, of size αN, on which datamodels are judged (LDS), beside the ceiling", low=0, high=MOST_MODELS
    )
    subset_models: int = count(4, "models on each of them, an even number", low=2, high=MOST_MODELS)
    random_targets: int = count(30, "targets that the whole road draws", high=2**29)
    seed: int = seed_of(1, "of the retrained models and of random images")


@dataclass(frozen=True)
class RaySettings:
    """How `--engine ray` uses a Ray cluster. None of it changes a model."""

    address: str = setting(
        Text(), "auto", "the cluster: auto, for the one that this machine is a node of, or IP:port of its head"
    )
    gpus: float = real(
        -1,
        "GPUs of a task, at most 1; 0.5: two tasks share one; 0: none; -1: 1 where the cluster has any at the beginning",
        low=-1,
        high=1,
    )
    cpus: float = real(1, "processor cores of a task", high=2**10)
    patience: float = real(
        10, "a task is ended, and tried elsewhere, after so many times the median time of one, and 30 s at least", low=1
    )
    data: str = setting(
        Choice("send", "local"),
        "send",
        "send: the images reach each node once, through Ray; local: each node has the run's folder data, and it is compared",
    )
    files: str = setting(
        Text(),
        NO_FILES,
        f"files and folders that one's own code reads, with commas between: they travel to every node; or {NO_FILES}",
    )


@dataclass(frozen=True)
class Settings:
    """All settings, section by section."""

    run: RunSettings
    data: DataSettings
    training: TrainingSettings
    store: StoreSettings
    worker: WorkerSettings
    groups: GroupSettings
    prior: PriorSettings
    regress: RegressSettings
    verify: VerifySettings
    ray: RaySettings = RaySettings()


SECTIONS: dict[str, type[Any]] = {
    "run": RunSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "store": StoreSettings,
    "worker": WorkerSettings,
    "groups": GroupSettings,
    "prior": PriorSettings,
    "regress": RegressSettings,
    "verify": VerifySettings,
    "ray": RaySettings,
}

Record = dict[str, Any]


class Parser(argparse.ArgumentParser):
    """A command's: its errors are InputErrors, its help is plain text, and it knows which sections the command uses."""

    def __init__(self, *, sections: Collection[str] = (), **more: Any) -> None:
        super().__init__(**{"formatter_class": Lines, "allow_abbrev": False, **more})
        self.sections = sections

    def error(self, message: str) -> NoReturn:
        """See argparse."""
        raise InputError(f"{message} (--help lists what there is)")


def argument_parser(name: str, description: str = "") -> Parser:
    """A parser for `parse`, to which a command can add arguments. `name` is one of COMMANDS, or another program's."""
    if (command := COMMANDS.get(name)) is None:
        parser = Parser(prog=name, description=description, sections=tuple(SECTIONS))
    else:
        about = description or f"{command.about[0].upper()}{command.about[1:]}."
        parser = Parser(prog=command.prog, description=about, sections=command.sections)
    parser.add_argument("--version", action="version", version=f"datamodels {__version__}")
    return parser


def parse(argv: Sequence[str], parser: Parser | None = None) -> tuple[Settings, argparse.Namespace]:
    """Settings from `-C` (repeatable, later ones win; a file, or the name of a shipped config), then `--section.name value`.

    `parser`, from `argument_parser`, may bring further arguments; they come back in the namespace. With `--help` among the
    arguments the help is printed, with the values that the settings have under the others. Raises InputError for an unknown
    key, a value outside its bounds, or a file that cannot be read.
    """
    config, parser = _declare(), parser or argument_parser("datamodels")
    _add_config_argument(parser)
    if {"-h", "--help"} & set(argv):
        given = _collect(config, _of_settings(config).parse_known_args(list(argv))[0])
        parser.epilog = _settings_told(config, parser.sections, given)
        parser.print_help()
        raise SystemExit(0)
    _add_flags(config, parser)
    args, unknown = parser.parse_known_args(list(argv))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{_nearest_flag(unknown[0], parser)}")
    _collect(config, args)
    return _build(config), args


def engine_arguments(parser: argparse.ArgumentParser, of_gpu: str, metavar: str | None = None) -> None:
    """The arguments that say who computes: `--engine` and `--gpu`."""
    told = f"who computes: {LOCAL}, the devices of this machine that --gpu names (default), or {RAY}, a Ray cluster (--ray.…)"
    parser.add_argument("--engine", choices=ENGINES, default=LOCAL, help=told)
    parser.add_argument("--gpu", metavar=metavar, help=of_gpu)


def yes_argument(parser: argparse.ArgumentParser) -> None:
    """The argument by which long work begins: see `estimates`."""
    parser.add_argument("--yes", action="store_true", help="begin also what will take more than 24 hours")


def gpu_of(args: argparse.Namespace, default: str | None = None) -> str | None:
    """What `--gpu` names. Raises InputError where it is given to an engine that has no use for it."""
    given: str | None = args.gpu
    if args.engine == LOCAL:
        return default if given is None else given
    if given is not None:
        raise InputError(f"--gpu names devices of this machine; for --engine {RAY} see --ray.gpus and --ray.cpus")
    return None


def _declare() -> Config:
    config = Config()
    for name, section in SECTIONS.items():
        params = {f.name: Param(f.metadata["checker"], f.metadata["doc"], f.default) for f in dataclasses.fields(section)}
        Section(name, (section.__doc__ or "").strip(), config).params(**params)
    return config


def _add_config_argument(parser: Parser) -> None:
    told = f"a config: a YAML file, or one of those that are shipped by name, {', '.join(shipped_configs())}; of several "
    told += f"later ones win (default: {DEFAULT_CONFIG})"
    parser.add_argument("--config-file", "-C", action="append", default=[], metavar="CONFIG", help=told)


def _add_flags(config: Config, parser: Parser) -> None:
    for path in config.entries:
        parser.add_argument("--" + ".".join(path), help=argparse.SUPPRESS)


def _of_settings(config: Config) -> Parser:
    """A parser of configs and settings alone, for help about a command line that is not finished."""
    parser = Parser(add_help=False)
    _add_config_argument(parser)
    _add_flags(config, parser)
    return parser


def _collect(config: Config, args: argparse.Namespace) -> str:
    """Read the configs that are given, then the flags; what gave the values, in words."""
    files = [config_named(name) for name in args.config_file] or [CONFIGS / f"{DEFAULT_CONFIG}{SUFFIX}"]
    known = [".".join(path) for path in config.entries]
    for file in files:
        config.collect(read_config(file, known))
    given = {key: value for key, value in vars(args).items() if "." in key and value is not None}
    config.collect(given)
    return ", ".join(args.config_file or [DEFAULT_CONFIG]) + (", and of the flags given" if given else "")


def _settings_told(config: Config, sections: Collection[str], given: str) -> str:
    """The sections of the settings in words, each setting with its value as it is collected."""
    told = []
    for name in sections:
        of_section = [path for path in config.entries if path[0] == name]
        told.append((SECTIONS[name].__doc__ or "", [_shown(config, path) for path in of_section]))
    return settings_in_words(given, told)


def _shown(config: Config, path: tuple[str, ...]) -> Shown:
    param = config.entries[path]
    value = config.content.get(path, param.default)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return Shown(".".join(path), text, param.desc, "" if type(param.checker) is Text else param.checker.help())


def _nearest_flag(given: str, parser: argparse.ArgumentParser) -> str:
    """The flag that an unknown one is meant for: one of the command's own after any section, else a setting of a like name."""
    flag = given.partition("=")[0]
    flags = [option for action in parser._actions for option in action.option_strings]
    own = "--" + flag.lstrip("-").rpartition(".")[2]
    if own in flags:
        return nearest(own, [own])
    return nearest(flag, [name for name in flags if ("." in name) == ("." in flag)])


def _build(config: Config) -> Settings:
    for path in config.validate(mode="errordict"):
        checker, given = config.entries[path].checker, str(config.content[path])
        if isinstance(checker, Text) and not_encoded(given):
            told = f"{shown(ascii(given), 80)} has characters that are none in the encoding of this locale"
            how = "set LC_ALL to a UTF-8 locale, such as C.UTF-8, or PYTHONUTF8=1"
            raise InputError(f"{'.'.join(path)}: {told}, {sys.getfilesystemencoding()}; {how}")
        raise InputError(f"{'.'.join(path)} must be {checker.help()}, not {shown(config.content[path], 80)!r}")
    values: Record = {name: {} for name in SECTIONS}
    for section, name in config.entries:
        values[section][name] = config[f"{section}.{name}"]
    return Settings(**{name: section(**values[name]) for name, section in SECTIONS.items()})
