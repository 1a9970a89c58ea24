"""What several tests of pages share: pages whose charts are not drawn."""

import pytest

from cassava_kit.report import charts


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are empty: a page whose words alone are read is made in a fraction of the time."""
    monkeypatch.setattr(charts, "chart", lambda name, alt, figure: charts.Chart(name, alt, "<svg></svg>", b"png"))
