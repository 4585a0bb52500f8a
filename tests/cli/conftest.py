"""What all tests of the command line share."""

import pytest

from mingle import cli


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs ``mingle <arguments>`` in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mingle", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    return run
