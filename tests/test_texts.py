"""The texts: the README is short and its figures come from records; links, commands and settings of all of them exist."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import re

import pytest

from datamodels.settings import SECTIONS
from tests.benchmarks.figures import INLINE, ROOT
from tests.test_commands import called

README = ROOT / "README.md"
TEXTS = sorted(path for path in ROOT.rglob("README.md") if not {".venv", "runs", "build", "dist"} & set(path.parts))
MOST_WORDS, LONGEST_SENTENCE = 900, 30
NUMBERS_THAT_ARE_NO_FIGURES = {
    "3.10",  # the least Python
    "0",  # where a margin flips
    "0.5",  # α of the paper
    "2.5",  # the level of a claim
    "24",  # hours after which long work waits for --yes
}


def prose(text):
    """A text without code, tables, comments, pictures, and what links lead to; of a marked figure the figure stays."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"\[?!\[[^\]]*\]\([^)]*\)(\]\([^)]*\))?", "", text)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def sentences(text):
    """The sentences of a prose: they end with their mark, a heading and an entry of a list with itself."""
    parts = re.split(r"\n\s*\n|\n(?=#|- |\* |\d+\. )", text)
    found = [re.split(r"(?<=[.!?])[*_)\"]*\s+", re.sub(r"^[#\-* ]+", "", part.replace("\n", " ")).strip()) for part in parts]
    return [sentence for part in found for sentence in part if sentence]


def words(text):
    return re.findall(r"[^\s|]*\w[^\s|]*", text)


def test_the_readme_is_short_and_so_are_its_sentences():
    text = prose(README.read_text(encoding="utf-8"))
    longest = max(sentences(text), key=lambda sentence: len(words(sentence)))
    print(f"README: {len(words(text))} words; the longest sentence has {len(words(longest))}: {longest}")
    assert len(words(text)) <= MOST_WORDS
    assert len(words(longest)) <= LONGEST_SENTENCE, longest


def test_every_number_of_the_readmes_prose_is_filled_from_a_record():
    text = INLINE.sub("", README.read_text(encoding="utf-8"))
    text = re.sub(r"`[^`]*`|\b[A-Za-z]+-?\d+\b", "", prose(text))  # what is typed; names such as CIFAR-10 and A100
    numbers = set(re.findall(r"\d[\d.,]*\d|\d", text))
    assert numbers <= NUMBERS_THAT_ARE_NO_FIGURES


def test_sentences_and_numbers_are_counted_as_a_reader_would():
    text = "# A title\n\nOne two. Three `four`? *Five.* 4.5 six\nseven\n- eight\n- nine [ten](x.md#y)\n\n"
    text = prose(f"{text}```\nno\n```\n| no |\n")
    assert [len(words(sentence)) for sentence in sentences(text)] == [2, 2, 2, 1, 3, 1, 2]
    assert "no" not in words(text)


def anchors(text):
    """What the headings of a text are called in links."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_links_lead_somewhere(text):
    for link in re.findall(r"\]\(([^)]+)\)", text.read_text(encoding="utf-8")):
        if not re.match(r"https?://", link):
            path, _, anchor = link.partition("#")
            file = text.parent / path if path else text
            assert file.exists(), link
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_rows_of_tables_have_as_many_cells_as_their_heads(text):
    for table in re.findall(r"(?:^\|.*\|\n)+", text.read_text(encoding="utf-8"), re.MULTILINE):
        cells = [len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()]
        assert len(set(cells)) == 1, table


def commands(text):
    """The lines of a text's shell blocks, and what stands in its code: continued lines joined, what is remarked left out."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`((?:make|python -m|datamodels) [^`]*)`", text)
    return [line for line in lines if not line.startswith("#")]


def modules_of(line):
    return re.findall(r"-m ((?:datamodels|tests)[\w.]*)", line)


TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
SETTINGS = {f"{s}.{f.name}" for s, of in SECTIONS.items() for f in dataclasses.fields(of)}


def unknown_options(line):
    """What a command line has of options that its command does not know; a line that names no command is the whole road's."""
    return [
        option
        for command, rest in re.findall(r"(?:-m datamodels|^datamodels)(?:[. ]([a-z]+)\b)?([^|&>]*)", line)
        for option in re.findall(r" --([a-z-]+)(?![\w.])", rest)
        if option not in options_of(command or "run")
    ]


def test_an_option_that_a_command_does_not_know_is_noticed():
    for line in (
        "python -m datamodels -C digits --nonsense 3",
        "datamodels worker --targets 3",
        "python -m datamodels.report --gpu 0",
    ):
        assert len(unknown_options(line)) == 1, line
    assert unknown_options("python -m datamodels -C digits --targets 3 --yes --store.alpha 0.3") == []


OWN_CONFIGS = ("mine.yaml", "FILE.yaml", "X", "NAME")
"""What stands in the texts for a config of the reader's."""


@functools.cache
def options_of(command):
    """What a command's own help names."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        assert called("datamodels", command, "--help") == 0
    return set(re.findall(r"--([a-z-]+)\b(?!\.)", told.getvalue()))


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_commands_exist(text):
    said = text.read_text(encoding="utf-8")
    for line in commands(said):
        for target in re.findall(r"(?:^|&& |`)make ([a-z-]+)", line):
            assert target in TARGETS, line
        for command in re.findall(r"^datamodels ([a-z]+)", line):
            assert command in ("demo", "run") or importlib.util.find_spec(f"datamodels.{command}.__main__") is not None, line
        for module in modules_of(line):
            assert importlib.util.find_spec(module) is not None, line
        for config in re.findall(r"-C ([\w./-]+)", line):
            shipped = ROOT / "configs" / (config if config.endswith(".yaml") else f"{config}.yaml")
            assert (ROOT / config).is_file() or shipped.is_file() or config in OWN_CONFIGS or f"# {config}" in said, line
        assert unknown_options(line) == [], line


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: str(text.relative_to(ROOT)))
def test_settings_exist(text):
    said = text.read_text(encoding="utf-8")
    named = set(re.findall(r"--([a-z_]+\.[a-z_0-9]+)", said))
    named |= {name for name in re.findall(r"`([a-z]+\.[a-z_0-9]+)`", said) if name.partition(".")[0] in SECTIONS}
    assert named - {"verify.json", "verify.csv"} <= SETTINGS


def test_every_config_that_is_shipped_is_told_of_and_no_other():
    told = re.findall(r"^\| `([\w-]+\.yaml)` \|", (ROOT / "configs" / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(told) == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))


def test_nobody_is_told_to_install_the_stranger_of_that_name():
    for text in [*TEXTS, ROOT / "CHANGELOG.md"]:
        for line in text.read_text(encoding="utf-8").splitlines():
            assert not re.search(r"pip install ['\"]?datamodels(?!-lab)\b", line), (text, line)


@pytest.fixture
def for_index():
    pytest.importorskip("hatchling")
    spec = importlib.util.spec_from_file_location("readme_for_index", ROOT / ".ci" / "readme_for_index.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.for_index


def test_a_package_index_shows_no_link_that_leads_nowhere(for_index):
    shown = for_index(README.read_text(encoding="utf-8"))
    assert all(link.startswith("https://") for link in re.findall(r"\]\(([^)]+)\)", shown))
    assert "<!--" not in shown
    assert "![" not in shown
    assert "settings (`configs/README.md`)" in shown
    assert re.search(r"took \d+\.\d minutes", shown)


def test_with_a_public_address_links_and_pictures_lead_there(for_index):
    text = "[![first](a.png)](a.png)\n\n*caption*\n\n[b](c/README.md#d) [e](https://f)\n"
    at = "https://example.org/x"
    wanted = f"![first]({at}/raw/HEAD/a.png)\n\n*caption*\n\n[b]({at}/blob/HEAD/c/README.md#d) [e](https://f)\n"
    assert for_index(text, at) == wanted
    assert for_index(text) == "b (`c/README.md#d`) [e](https://f)\n"


def test_the_built_package_is_described_by_that_text(for_index):
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    core = ProjectMetadata(str(ROOT), PluginManager()).core
    assert core.readme == for_index(README.read_text(encoding="utf-8"), core.urls.get("Source"))
    assert core.readme_content_type == "text/markdown"
