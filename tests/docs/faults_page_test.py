"""The page of faults is the one that the stored results give, and other results make a test fail."""

import dataclasses

from tests.faults import table


def test_page_of_faults_is_generated_from_the_stored_rows():
    assert table.PAGE.read_text() == table.page(table.read_rows()), "run: python -m tests.faults.table"


def test_every_case_of_the_page_has_a_row():
    assert {row.case for row in table.read_rows()} == {*table.CASES}


def test_result_that_differs_from_the_stored_row_is_reported():
    row = next(row for row in table.read_rows() if row.code == 42 and not row.note)
    rows = [other for other in table.read_rows() if other.test == row.test]
    assert table.difference(row.test, [dataclasses.replace(row, what="x", detected_s=99.0) for row in rows]) == ""
    for changed in ([dataclasses.replace(row, code=0) for row in rows], [], [*rows, row]):
        assert "--store-rows" in table.difference(row.test, changed)
