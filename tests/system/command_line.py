"""The command line, called from within the process."""

from fastgen import cli


def outcome(capsys, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `fastgen ARGUMENTS`."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as leaving:  # argparse ends --help and unreadable arguments this way
        code = int(leaving.code or 0)
    printed = capsys.readouterr()
    return code, printed.out, printed.err
