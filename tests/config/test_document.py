"""docs/configuration.md, which is generated from the settings."""

import pytest

from config import document
from config.schema import DMDConfig
from utils.errors import ConfigError


def test_configuration_page_is_current():
    document.write_page(check=True)


def test_page_has_one_row_for_each_setting():
    rows = [line for line in document.make_page().splitlines() if line.startswith("| `")]
    keys = [row.split("`")[1] for row in rows]
    assert keys == list(DMDConfig.model_fields)


def test_every_row_has_as_many_cells_as_its_header():
    cells = 0
    for line in document.make_page().splitlines():
        if line.startswith("| key"):
            cells = line.replace(r"\|", "").count("|")
        elif line.startswith("| `"):
            assert line.replace(r"\|", "").count("|") == cells, line


def test_check_refuses_an_outdated_page_and_the_command_renews_it(tmp_path, monkeypatch):
    page = tmp_path / "configuration.md"
    page.write_text(document.make_page().replace("`gamma`", "`old_gamma`"))
    monkeypatch.setattr(document, "PAGE", page)
    with pytest.raises(ConfigError, match=r"configuration.md: does not match .* Run python -m"):
        document.write_page(check=True)
    document.write_page()
    assert page.read_text() == document.make_page()
