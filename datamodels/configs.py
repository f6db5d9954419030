"""Config files: which one `-C` names, and the settings that stand in it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import yaml

from datamodels.errors import InputError, shown
from datamodels.reading import Unreadable, read_text
from datamodels.resources import SUFFIX, shipped_configs

LONGEST_CONFIG, DEEPEST_CONFIG = 2**16, 8
TAG = "tag:yaml.org,2002:"
PLAIN_TAGS = [TAG + kind for kind in ("str", "int", "float", "bool", "null", "timestamp", "merge", "value")]


def config_named(given: str) -> Path:
    """The file that `-C` names: the one of this path where there is one, else the shipped config of this name.

    `digits` and `digits.yaml` both name configs/digits.yaml. A path with neither is given back as it is, for who reads it to
    tell what is wrong with it. Raises InputError for an empty one.
    """
    if not given:
        raise InputError(f"-C needs a config: a file, or one of {', '.join(shipped_configs())}")
    name = given.removesuffix(SUFFIX)
    shipped = shipped_configs()
    return shipped[name] if name in shipped and not Path(given).is_file() else Path(given)


def read_config(file: Path, known: Collection[str]) -> dict[str, str]:
    """The settings of a config file by name, as `store.alpha`, each as the text that stands there.

    Raises InputError for a file that cannot be read, is not plain YAML of sections with settings, or has a key that is not
    one of the `known`.
    """
    try:
        text = read_text(file, LONGEST_CONFIG)
    except Unreadable as e:
        more = f"; by name there are {', '.join(shipped_configs())}" if e.missing else ""
        raise InputError(f"cannot read the config {file}: it {e.why}{more}") from e
    try:
        _refuse_excess(text, file)
        root = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as e:
        why = shown(" ".join(str(e).replace('"<unicode string>", ', "").split()), 300)
        shadowed = f"; it comes before the shipped config {file}" if str(file) in shipped_configs() else ""
        raise InputError(f"the config {file} is not YAML: {why}{shadowed}") from e
    flat: dict[str, str] = {}
    for section, part in _pairs(root, file):
        for name, node in _pairs(part, file):
            key = f"{section}.{name}"
            if key not in known:
                raise InputError(f"unknown key {key} in {file}{nearest(key, known)}")
            if key in flat:
                raise InputError(f"{key} comes twice in {file}")
            flat[key] = _text(node, key, file)
    return flat


def nearest(given: str, known: Collection[str]) -> str:
    """What an unknown name was meant for, as the end of a sentence; nothing where nothing is like it."""
    from difflib import get_close_matches

    found = get_close_matches(given, list(known), 1)
    return f"; did you mean {found[0]}?" if found else ""


def _refuse_excess(text: str, file: Path) -> None:
    """Raise InputError for aliases, by which a few lines can stand for millions, and for nesting, before anything is built."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"the config {file} has an alias, *{shown(event.anchor or '', 80)}; write out what it stands for")
        if depth > DEEPEST_CONFIG:
            raise InputError(f"the config {file} is nested more than {DEEPEST_CONFIG} levels deep")


def _pairs(node: yaml.Node | None, file: Path) -> list[tuple[str, yaml.Node]]:
    """The keys of a mapping, none of which comes twice, and what they stand for."""
    if not isinstance(node, yaml.MappingNode) or not all(isinstance(key, yaml.ScalarNode) for key, _ in node.value):
        raise InputError(f"the config {file} must hold sections with settings, such as 'store:' with 'alpha: 0.5' below it")
    pairs = [(str(key.value), value) for key, value in node.value]
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise InputError(f"{next(key for key in keys if keys.count(key) > 1)} comes twice in {file}")
    return pairs


def _text(node: yaml.Node, name: str, file: Path) -> str:
    """A setting as it stands in the file: a number's digits, a date's, and not what YAML makes of them."""
    if not isinstance(node, yaml.ScalarNode) or node.tag not in PLAIN_TAGS:
        kind = "mapping" if isinstance(node, yaml.MappingNode) else "sequence"
        kind = node.tag.rpartition(":")[2] if isinstance(node, yaml.ScalarNode) else kind
        raise InputError(f"{name} in {file} must be one value, not a {shown(kind, 80)}")
    if node.tag == f"{TAG}null":
        raise InputError(f"{name} in {file} has no value")
    return str(node.value)
