"""Notices on data: a warning at the caller's line in Python, one line on the command line."""

import warnings

import pytest

from sidestep.cli.output import data_notices_shown
from sidestep.data import DataNotice
from sidestep.data.notices import report


def test_a_notice_is_a_warning_at_the_line_that_asked() -> None:
    with pytest.warns(DataNotice, match="two pages") as caught:
        report("two pages")
    assert caught[0].filename == __file__


def test_the_command_line_prints_each_notice_once_and_leaves_other_warnings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def ask() -> None:
        with data_notices_shown():
            report("[two] pages")
            report("[two] pages")
            warnings.warn("another", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="another") as caught:
        ask()
    assert [str(warning.message) for warning in caught] == ["another"]
    assert capsys.readouterr().err == "sidestep: [two] pages\n"
