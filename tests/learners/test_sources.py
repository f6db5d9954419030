"""Which files a module is made of: its own, and those beside it that it imports, by whatever road."""

import sys

import pytest

from datamodels.errors import InputError
from datamodels.learners.sources import refuse_changed, sources_of

FILES = {
    "pack/__init__.py": "from . import first\n",
    "pack/first.py": "import json\nfrom .second import thing\n",
    "pack/second.py": "def thing():\n    import plain\n    from pack.deep import deeper\n",
    "pack/deep/__init__.py": "",
    "pack/deep/deeper.py": "from ...pack import third\nfrom .. import first\n",
    "pack/third.py": "",
    "pack/unused.py": "",
    "plain.py": "import pack.first\nimport numpy as np\n",
    "other.py": "import plain\n",
    "broken.py": "def (\n",
    "uses_broken.py": "try:\n    import broken\nexcept SyntaxError:\n    pass\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] in ("pack", "plain", "other", "uses_broken")]:
        del sys.modules[name]


ALL_OF_PACK = {"pack/__init__.py", "pack/first.py", "pack/second.py", "pack/deep/__init__.py", "pack/deep/deeper.py"}


@pytest.mark.parametrize(
    ("module", "files"),
    [
        ("other", {"other.py", "plain.py", *ALL_OF_PACK}),
        ("pack", {"plain.py", *ALL_OF_PACK}),
        ("pack.first", {"plain.py", *ALL_OF_PACK}),
        ("pack.deep.deeper", {"plain.py", *ALL_OF_PACK}),
        ("uses_broken", {"uses_broken.py", "broken.py"}),
    ],
)
def test_all_that_is_imported_from_beside_a_module_counts_and_nothing_else(folder, module, files):
    if module == "pack.deep.deeper":
        (folder / "pack/deep/deeper.py").write_text("from .. import first\n")
    else:
        (folder / "pack/deep/deeper.py").write_text("from .. import first\n# no more\n")
    __import__(module)
    found = sources_of(module)
    assert found.keys() == files
    (folder / "pack/unused.py").write_text("x = 1\n")
    assert sources_of(module) == found
    changed = sorted(files)[0]
    (folder / changed).write_text((folder / changed).read_text() + "\n")
    now = sources_of(module)
    assert {name for name in files if now[name] != found[name]} == {changed}
    with pytest.raises(InputError, match=f"{changed} has changed"):
        refuse_changed(found, now, folder)


def test_a_module_without_a_file_has_no_sources():
    assert sources_of("sys") == {}
    assert sources_of("no_such_module_at_all") == {}


def test_new_and_forgotten_files_are_told_apart(tmp_path):
    refuse_changed({"a.py": "1"}, {"a.py": "1"}, tmp_path)
    with pytest.raises(InputError, match=r"b.py is new since"):
        refuse_changed({"a.py": "1"}, {"a.py": "1", "b.py": "2"}, tmp_path)
    with pytest.raises(InputError, match=r"a.py is no longer imported since"):
        refuse_changed({"a.py": "1"}, {}, tmp_path)
