"""What a user wrote is printed as it is: never read as markup."""

import pytest

from registry.testing import START, make_job
from tasks.cli.output import console, jobs_table, queue_table
from workers.status import job_line


@pytest.mark.parametrize("table", [jobs_table, queue_table])
def test_a_name_that_looks_like_markup_is_printed_as_it_is(table: object) -> None:
    line = job_line(make_job(name="[/red]words"), now=START)
    with console.capture() as captured:
        console.print(table([line]))  # type: ignore[operator]
    assert "[/red]words" in captured.get()
