"""How commands end: in a sentence for all that comes from outside, with every sibling of a kind; and what output survives."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from datamodels.errors import WHAT_IS_WRONG, InputError, in_a_sentence, of_memory, one_line, run_command


@pytest.mark.parametrize("number", sorted(set(errno.errorcode) - {errno.ENOMEM}))
def test_every_error_of_the_system_is_one_sentence_that_names_the_file(number, capsys):
    def main():
        raise OSError(number, os.strerror(number), "/runs/é\n/done.npy")

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert "done.npy" in said


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no room left on the disk for /a/b; make room and run the same command again to go on"),
        (errno.EDQUOT, "no room left on the disk for /a/b; make room and run the same command again to go on"),
        *((number, meaning.format(path="/a/b")) for number, meaning in WHAT_IS_WRONG.items()),
    ],
)
def test_what_is_wrong_is_said_in_words(number, words):
    for names in (["/a/b"], ["/x", None, "/a/b"], [b"/a/b"]):
        assert str(in_a_sentence(OSError(number, os.strerror(number), *names))).startswith(words)


def failed_allocations():
    def of_numpy():
        np.empty(2**60, np.uint8)

    def of_torch():
        torch.empty(2**50)

    def of_python():
        bytearray(2**62)

    return [of_numpy, of_torch, of_python]


@pytest.mark.parametrize("allocate", failed_allocations())
def test_an_allocation_that_fails_is_a_sentence(allocate, capsys):
    with pytest.raises(SystemExit) as ended:
        run_command(allocate)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: memory does not suffice (")
    assert said.count("\n") == 1


def raise_it(error):
    raise error


def test_other_errors_come_through_for_they_are_faults_of_the_program():
    for error in (ValueError("x"), RuntimeError("x"), OSError("without a number"), KeyError("x")):
        assert in_a_sentence(error) is None
        with pytest.raises(type(error)):
            run_command(lambda: raise_it(error))  # noqa: B023
    assert of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert of_memory(RuntimeError("can't start new thread"))
    assert in_a_sentence(InputError("so it is")) == "so it is"


class MuteError(InputError):
    """Raises when it is asked what it says."""

    def __init__(self, error):
        self.error = error

    def __str__(self):
        raise self.error


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), ValueError("x"), BaseException("x")])
def test_an_error_that_raises_when_it_is_told_ends_nothing(error, capsys):
    assert one_line(MuteError(error)) == "MuteError"
    assert in_a_sentence(MuteError(error)) == "no reason was given"
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: raise_it(MuteError(error)))
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: no reason was given\n"


def test_ctrl_c_comes_through_also_while_an_error_is_told():
    with pytest.raises(KeyboardInterrupt):
        one_line(MuteError(KeyboardInterrupt()))


class Number:
    """No number, though it says that it equals each."""

    def __eq__(self, other):
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("number", ["E1", Number(), 2.0, [5], None])
def test_an_error_of_the_system_without_a_number_is_none_of_the_system(number):
    error = OSError()
    error.errno = number
    error.filename = "/a/b"
    assert not of_memory(error)
    assert in_a_sentence(error) is None


def test_an_exception_is_told_in_one_line_that_can_be_printed():
    assert one_line(ValueError("a\n  b\x1b[2J")) == r"ValueError: a b\x1b[2J"
    assert one_line(ValueError()) == "ValueError"
    assert 300 < len(one_line(ValueError("x" * 10_000))) < 330


PROGRAM = """
import sys, time
from datamodels.errors import run_command
def main():
    for k in range(200):
        print("λ – " + "x" * 1000, flush=True)
        print("λ – ", file=sys.stderr)
    open(sys.argv[1], "w").write("work is done")
run_command(main)
"""


def run(tmp_path, shell, **environment):
    line = [sys.executable, "-c", PROGRAM, str(tmp_path / "done")]
    (tmp_path / "program.sh").write_text(shell)
    command = ["bash", "-o", "pipefail", str(tmp_path / "program.sh"), *line]
    found = subprocess.run(command, capture_output=True, check=False, timeout=60, env={**os.environ, **environment})
    assert b"Traceback" not in found.stdout + found.stderr
    assert b"Exception ignored" not in found.stdout + found.stderr
    assert (tmp_path / "done").read_text() == "work is done"
    assert found.returncode == 0
    return found


@pytest.mark.parametrize(
    "shell",
    ['"$@" | head -n 1', '"$@" 2>&1 | head -n 1', '"$@" >&-', '"$@" 2>&-', '"$@" >&- 2>&- <&-', '"$@" >/dev/full 2>/dev/full'],
)
def test_output_that_nobody_takes_ends_no_work(tmp_path, shell):
    run(tmp_path, shell)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-16"])
def test_output_of_another_encoding_ends_no_work(tmp_path, encoding):
    found = run(tmp_path, '"$@"', PYTHONIOENCODING=encoding)
    assert "? ?" in found.stdout.decode(encoding) or encoding == "utf-16"


def test_no_file_of_ours_gets_the_number_of_an_output_that_is_closed(tmp_path):
    program = (
        "import os\nfrom datamodels.errors import run_command\n"
        f"def main():\n    f = open({str(tmp_path / 'data')!r}, 'w')\n"
        "    os.write(1, b'of a library')\n    assert f.fileno() > 2\n"
        "run_command(main)\n"
    )
    found = subprocess.run(["bash", "-c", '"$0" -c "$1" >&-', sys.executable, program], check=False, capture_output=True)
    assert (found.returncode, found.stderr, (tmp_path / "data").read_text()) == (0, b"", "")


SLOW_END = """
import signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from datamodels.errors import run_command
def main():
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(time.sleep, float(sys.argv[1]))
        print("begun", flush=True)
        future.result()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
run_command(main)
"""


@pytest.mark.parametrize("twice", [False, True])
def test_ctrl_c_says_that_what_is_at_work_is_finished_and_a_second_one_ends_it_at_once(twice):
    line = [sys.executable, "-c", SLOW_END, "60" if twice else "3"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.readline() == "stopping after what is at work; once more ends it at once\n"
        assert process.poll() is None
        if twice:
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) == -signal.SIGINT
            assert time.monotonic() - start < 5
        else:
            assert process.wait(timeout=30) == 130
            assert process.stderr.read() == "interrupted; run the same command again to go on\n"
