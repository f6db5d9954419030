"""Which targets are asked about: one grammar for files, for `--targets`, and for a call.

    7                      a test index
    train:17               a training image that is a target too: what carries it besides itself
    dog/0001.png           the name of a test image, where the data have names; file:7 where a name would be read otherwise
    train:dog/0002.png     the name of a training image
    random:300             so many test images, drawn by verify.seed
    boats: 3, 7, train:17  a behaviour: the mean over several, under a name of one's own
    class:dog              all test images of a class; by its number where classes have no names
    mistaken:dog:cat       the test images of class dog that networks trained on all of S call cat

A file has one on each line, and a # at its beginning, behind a space or an index begins a comment, where it is not of a name.
`--targets` takes several with commas between.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.durable import new_file
from datamodels.errors import InputError, shown
from datamodels.reading import Unreadable, is_there, read_text, whole_number
from datamodels.verify.known import CLASS, FILE, MISTAKEN, RANDOM, RESERVED, TRAIN, Behaviour, Examples, Targets

WORDS = "a file with a target a line, or 7,13, train:17, random:300, class:3, mistaken:3:5, 'boats: 3, 7'"
"""What `--targets` takes, for its help."""
NAME = re.compile(r"[^\W\d][\w-]{0,79}")
"""Of a behaviour: a plain word."""
COMMENT = re.compile(r"(^\d+|^|\s)#.*")
MOST_SHOWN = 10
"""Names of classes in a message."""


@dataclass(frozen=True)
class Group:
    """A behaviour as it was asked about: some columns under a name."""

    name: str
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Mistaken:
    """The test images of class `of` that networks trained on all of S take for class `to`: which they are, these say."""

    name: str
    of: int
    to: int


Asked = int | Group | Mistaken
"""A column, or a behaviour."""


def read_targets(path: Path, examples: Examples, seed: int = 0) -> list[Asked]:
    """What a targets file asks about, in its order.

    Raises InputError, naming the line, for what is no target, for one that comes twice, and for a file that is missing or
    lists nothing.
    """
    try:
        lines = read_text(path).splitlines()
    except Unreadable as e:
        raise InputError(f"cannot read the targets file {path}: it {e.why}") from e
    found: list[Asked] = []
    lines_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        words = _Words(examples, seed, f"{path}, line {number}")
        text = line.strip() if words.is_whole(line.strip()) else COMMENT.sub(r"\1", line).strip()
        for asked in words.read(text) if text else ():
            at = lines_of.setdefault(_called(asked), number)
            if at == number:
                found.append(asked)
            elif not text.startswith(f"{RANDOM}:"):
                raise InputError(f"{words.where}: {_called(asked)} stands on line {at} already")
    if not found:
        raise InputError(f"{path} lists no targets; it takes one a line, as 7, {TRAIN}:17 or {CLASS}:3")
    return found


def targets_named(wanted: str, examples: Examples, seed: int) -> list[Asked]:
    """What `--targets` names: a file, or targets with commas between, or one behaviour of one's own with its list.

    Raises InputError for anything else, and as `read_targets`.
    """
    read = _Words(examples, seed, "--targets")
    if not read.is_prefixed(wanted) and is_there(wanted):
        return read_targets(Path(wanted), examples, seed)
    if read.is_list(wanted) or read.is_whole(wanted):
        return list(read.read(wanted))
    words = [word.strip() for word in wanted.split(",")]
    if not any(map(read.is_known, words)):
        if examples.test_names:  # text that names neither may be meant for either
            missing = f"cannot read the targets file {shown(wanted, 80)}: it is missing"
            raise InputError(f"{missing}, and no test image has that name, as one has {shown(examples.test_names[0], 80)}")
        return read_targets(Path(wanted), examples, seed)  # what it says of a file that is missing
    of_own = next((word for word in words if read.is_list(word)), None)
    if of_own is not None:
        raise InputError(f"--targets: the list {shown(of_own, 80)!r} stands alone, or in a file beside others")
    return _each_once(asked for word in words for asked in read.read(word))


def targets_given(wanted: Iterable[Any], examples: Examples, seed: int = 0) -> list[Asked]:
    """What a call asks about, in its order, each once: test indices, of Python's or NumPy's, and texts as in a file.

    Raises InputError for anything else, such as a mask, and for none at all.
    """
    try:
        values = list(wanted)
    except TypeError as e:
        raise InputError(f"targets are test indices and texts, as [7, '{CLASS}:3'], or one text, not {wanted!r}") from e
    read = _Words(examples, seed, "targets")
    for value in values:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer, str)):
            raise InputError(f"targets: {value!r} is not a test index, nor a text")
    if not values:
        raise InputError("targets: there are none")
    return _each_once(asked for value in values for asked in read.read(str(value).strip()))


def numbered(
    asked: Iterable[Asked], known: Targets, mistaken: Callable[[Mistaken], tuple[int, ...]]
) -> tuple[Targets, list[int]]:
    """The targets that there are then, with the behaviours that are new, and the numbers of those asked about, each once.

    `mistaken` gives the columns of one of these. Raises InputError where a behaviour is known by that name, of other targets.
    """
    behaviours, numbers = {behaviour.name: behaviour for behaviour in known.behaviours}, list[int]()
    for one in asked:
        if isinstance(one, int):
            numbers.append(one)
            continue
        there = behaviours.get(one.name)
        if there is None:
            columns = one.targets if isinstance(one, Group) else mistaken(one)
            there = Behaviour(one.name, known.examples.t + len(behaviours), columns)
            behaviours[one.name] = there
        elif isinstance(one, Group) and set(one.targets) != set(there.targets):
            told = f"the behaviour {one.name} is known, of {len(there.targets)} targets, and these are others"
            raise InputError(f"{told}; give it another name, or --verify.name")
        numbers.append(there.number)
    return Targets(known.examples, tuple(behaviours.values())), list(dict.fromkeys(numbers))


def write_targets(path: Path, targets: Iterable[Asked]) -> None:
    """Write a targets file of test indices."""
    with new_file(path) as temporary:
        temporary.write_text("".join(f"{target}\n" for target in targets), encoding="utf-8")


def draw_targets(number: int, num_targets: int, seed: int) -> list[int]:
    """`number` different test indices, or all of fewer, drawn by a seed, in ascending order."""
    return sorted(np.random.default_rng(seed).choice(num_targets, min(number, num_targets), replace=False).tolist())


def _each_once(found: Iterable[Asked]) -> list[Asked]:
    """Raises InputError where one name is given to two behaviours."""
    each = list(dict.fromkeys(found))
    names = [asked.name for asked in each if not isinstance(asked, int)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"targets: two behaviours are called {twice}")
    return each


def _called(asked: Asked) -> str:
    return f"target {asked}" if isinstance(asked, int) else f"the behaviour {asked.name}"


class _Words:
    """Reads the words for targets; `where` begins what it says of those that are none."""

    def __init__(self, examples: Examples, seed: int, where: str) -> None:
        self.examples, self.seed, self.where = examples, seed, where

    def read(self, text: str) -> Iterator[Asked]:
        """What one line asks about. Raises InputError where it is no target."""
        kind, colon, rest = (part.strip() for part in text.partition(":"))
        if colon and kind == RANDOM:
            yield from self._drawn(rest)
        elif colon and kind == CLASS:
            yield self._of_class(rest)
        elif colon and kind == MISTAKEN:
            yield self._mistaken(rest)
        elif self.is_list(text):
            yield Group(kind, self._listed(kind, rest))
        else:
            yield self._column(text)

    def is_list(self, text: str) -> bool:
        """Whether it is a list under a name of one's own."""
        kind, colon, _ = text.partition(":")
        return bool(colon and kind not in RESERVED and NAME.fullmatch(kind)) and text not in self.examples.tests_by_name

    def is_whole(self, text: str) -> bool:
        """Whether all of it is one name, or one class, whatever is in it."""
        kind, _, rest = (part.strip() for part in text.partition(":"))
        names = {TRAIN: self.examples.training_by_name, FILE: self.examples.tests_by_name, CLASS: self.examples.class_names}
        return text in self.examples.tests_by_name or rest in names.get(kind, ())

    def is_prefixed(self, text: str) -> bool:
        """Whether it begins as a target and no file does."""
        kind, colon, _ = text.partition(":")
        return bool(colon) and kind in RESERVED

    def is_known(self, word: str) -> bool:
        """Whether it is, or is meant to be, a target, and not the name of a targets file."""
        digits = word.isascii() and word.isdigit()
        return digits or self.is_prefixed(word) or self.is_list(word) or word in self.examples.tests_by_name

    def _refuse(self, told: str) -> InputError:
        return InputError(f"{self.where}: {told}")

    def _column(self, text: str) -> int:
        """A single target: an index, a training image, or a name."""
        kind, colon, rest = (part.strip() for part in text.partition(":"))
        if colon and kind == TRAIN:
            return self._of_training(rest)
        if colon and kind == FILE:
            return self._of_name(rest, self.examples.tests_by_name, "test image")
        if text.isascii() and text.isdigit():
            index = whole_number(text)
            if index is None or index >= self.examples.tests:
                most = self.examples.tests - 1
                raise self._refuse(f"{shown(text, 80)} is out of range; test indices run from 0 to {most}")
            return index
        if text in self.examples.tests_by_name:
            return self._of_name(text, self.examples.tests_by_name, "test image")
        named = "the name of a test image" if self.examples.test_names else f"{TRAIN}:17, {CLASS}:3"
        raise self._refuse(f"{shown(text, 80)!r} is not a test index, nor {named}, nor a list as boats: 3, 7")

    def _of_training(self, text: str) -> int:
        """The column of a training image."""
        by_index = text.isascii() and text.isdigit() and text not in self.examples.training_by_name
        image = whole_number(text) if by_index else self._of_name(text, self.examples.training_by_name, "training image")
        if image is None or image >= self.examples.n:
            most = self.examples.n - 1
            raise self._refuse(f"{TRAIN}:{shown(text, 80)} is out of range; training images run from 0 to {most}")
        if image not in self.examples.column_of:
            told = f"training image {image} is no target: its margins are not among those of the models"
            how = f"set data.train_targets, as --data.train_targets {image}, before the models are trained, in a run of its own"
            how += "; a learner of one's own names them in its train_targets"
            raise self._refuse(f"{told}; {how}")
        return self.examples.column_of[image]

    def _of_name(self, text: str, names: Mapping[str, Sequence[int]], what: str) -> int:
        found = names.get(text, ())
        if not found:
            told = f"there is no {what} of the name {shown(text, 80)!r}"
            raise self._refuse(told if names else f"{told}: they have indices only")
        if len(found) > 1:
            raise self._refuse(f"{len(found)} {what}s have the name {shown(text, 80)!r}: give the index, as {found[0]}")
        return found[0]

    def _listed(self, name: str, text: str) -> tuple[int, ...]:
        words = [word.strip() for word in text.split(",")]
        if not all(words):
            raise self._refuse(f"the list {shown(name, 80)} has nothing between two commas, or after its colon")
        columns = [self._column(word) for word in words]
        twice = next((word for k, word in enumerate(words) if columns[k] in columns[:k]), None)
        if twice is not None:
            raise self._refuse(f"the list {shown(name, 80)} has {shown(twice, 80)} twice")
        return tuple(columns)

    def _drawn(self, text: str) -> list[int]:
        drawn, most = whole_number(text) or 0, self.examples.tests
        if not 0 < drawn <= most:
            raise InputError(f"{self.where} {RANDOM}:{shown(text, 80)}: there are 1 to {most} targets to draw")
        return draw_targets(drawn, most, self.seed)

    def _of_class(self, text: str) -> Group:
        label = self._class(text)
        of_class = np.flatnonzero(self.examples.labels[: self.examples.tests] == label).tolist()
        name = self.examples.class_name(label)
        if not of_class:
            raise self._refuse(f"no test image is of class {name}")
        return Group(f"{CLASS}:{name}", tuple(of_class))

    def _mistaken(self, text: str) -> Mistaken:
        parts = text.split(":")
        # A class may have a colon in its name.
        ways = [(":".join(parts[:k]).strip(), ":".join(parts[k:]).strip()) for k in range(1, len(parts))]
        if not ways:
            raise self._refuse(f"{MISTAKEN}: takes two classes, as {MISTAKEN}:dog:cat, not {shown(text, 80)!r}")
        known = [way for way in ways if None not in map(self._class_or_none, way)]
        of, to = map(self._class, (known or ways)[0])
        if of == to:
            raise self._refuse(f"{MISTAKEN}: takes two different classes, not {self.examples.class_name(of)} twice")
        return Mistaken(f"{MISTAKEN}:{self.examples.class_name(of)}:{self.examples.class_name(to)}", of, to)

    def _class_or_none(self, text: str) -> int | None:
        if text in self.examples.class_names:
            return self.examples.class_names.index(text)
        if any(map(str.isdigit, self.examples.class_names)):
            return None  # a number would be taken for one of these names
        number = whole_number(text)
        return number if number is not None and number < self.examples.classes else None

    def _class(self, text: str) -> int:
        found = self._class_or_none(text)
        if found is None:
            names = [self.examples.class_name(label) for label in range(min(self.examples.classes, MOST_SHOWN))]
            have = ", ".join(names) + ", …" * (self.examples.classes > MOST_SHOWN)
            have = f"there are {have}" if names else "no class is known here"
            raise self._refuse(f"there is no class {shown(text, 80)!r}; {shown(have, 300)}")
        return found
