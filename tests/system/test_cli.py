"""The command `fastgen`: help, bad input in one sentence, Ctrl-C, and each command's own work."""

import subprocess
import sys
import types

import pytest

import fastgen
from fastgen import cli

HEAVY = ("matplotlib", "sklearn", "scipy", "jax", "thrml", "pandas", "jinja2", "triton")


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fastgen ARGUMENTS`."""
    try:
        code = cli.main(list(arguments))
    except SystemExit as leaving:  # argparse ends --help and unreadable arguments this way
        code = int(leaving.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture
def failing(monkeypatch):
    """Make the command `doctor` raise."""

    def install(error: BaseException) -> None:
        def execute(given):
            raise error

        module = types.SimpleNamespace(add_arguments=lambda parser: None, execute=execute)
        monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)

    return install


def test_help_names_every_command_and_so_does_no_argument_at_all(capsys):
    code, text, _ = outcome(capsys, "--help")
    assert code == 0
    for name, command in cli.COMMANDS.items():
        assert name in text and command.summary in text
    assert outcome(capsys)[:2] == (0, text)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_its_own_help(capsys, command):
    code, text, _ = outcome(capsys, command, "--help")
    assert code == 0 and text.startswith(f"usage: fastgen {command}")


def test_version(capsys):
    assert outcome(capsys, "--version")[:2] == (0, f"fastgen {fastgen.__version__}\n")


def test_help_imports_nothing_heavy():
    code = "import sys; from fastgen import cli; cli.main([]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stderr.split()
    assert "fastgen.cli" in modules
    assert [name for name in HEAVY if name in modules] == []


def test_an_unknown_command_is_refused_with_the_known_ones(capsys):
    code, _, error = outcome(capsys, "smaple")
    assert code == 2 and "'smaple'" in error and all(name in error for name in cli.COMMANDS)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("n is 0\nand more"),
        FileNotFoundError("n is 0"),
        RuntimeError("n is 0"),
        FloatingPointError("n is 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, failing, error):
    failing(error)
    assert outcome(capsys, "doctor") == (2, "", "fastgen doctor: n is 0\n")


def test_ctrl_c_says_how_to_go_on(capsys, failing):
    failing(KeyboardInterrupt())
    code, _, error = outcome(capsys, "doctor")
    assert code == 130 and error.strip() == f"fastgen doctor: {cli.COMMANDS['doctor'].stopped}"


def test_a_bug_shows_its_traceback(capsys, failing):
    failing(AttributeError("a bug"))
    with pytest.raises(AttributeError):
        cli.main(["doctor"])


def test_a_command_is_imported_only_when_it_is_asked_for(capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(cli.importlib, "import_module", lambda name: asked.append(name) or pytest.fail(name))
    outcome(capsys, "--help")
    assert asked == []
