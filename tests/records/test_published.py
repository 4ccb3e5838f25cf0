"""Published numbers as data: every table opens, and holds what the papers print."""

import pytest

from probe.errors import ProbeError
from probe.records.published import TABLES, published


@pytest.mark.parametrize("name", TABLES)
def test_every_table_opens_with_a_row_a_setting(name):
    table = published(name)
    assert len(table) > 1 and not table.duplicated().any()
    assert table.iloc[:, 0].notna().all()


def test_a_number_is_found_where_the_paper_prints_it():
    assert published("llava_mini_table1").set_index("method").loc["LLaVA-Mini", "gqa"] == 60.9
    within = published("llava_mini_ablations").query("table == 12 and vqav2 < 77")
    assert within["mmb"].tolist() == [64.5]


def test_another_table_is_one_line():
    with pytest.raises(
        ProbeError, match=r"published: expected a table llava_mini_ablations, .*'x'"
    ):
        published("x")
