import pytest

from vineppo.report.charts import bars, dots, lines, points, save_figure

ROWS = [
    {"vines": k, "error": 0.4 / k, "low": 0.3 / k, "high": 0.5 / k, "method": method}
    for method in ("VinePPO", "GRPO")
    for k in (1, 3, 9)
]
CHARTS = {
    "lines": lines("Error by K", ROWS, x="vines", y="error", by="method", ci=True, log_x=True),
    "points": points("Error by K", ROWS, x="vines", y="error", by="method", diagonal=(0, 1)),
    "dots": dots("Error by K", ROWS, x="error", y="method", by="vines"),
    "bars": bars("Error by K", ROWS, x="vines", y="error", by="method", ci=True),
}


@pytest.mark.parametrize("name", CHARTS)
def test_a_figure_says_what_it_shows(name, tmp_path):
    save_figure(CHARTS[name], tmp_path / "figure.svg")
    drawn = (tmp_path / "figure.svg").read_text()
    for word in ("Error by K", "vines", "error", "method", "VinePPO", "GRPO"):
        assert f">{word}<" in drawn


def test_other_formats(tmp_path):
    for suffix, magic in ((".pdf", b"%PDF"), (".png", b"\x89PNG")):
        save_figure(CHARTS["bars"], tmp_path / f"figure{suffix}")
        assert (tmp_path / f"figure{suffix}").read_bytes().startswith(magic)
    with pytest.raises(ValueError, match="bmp"):
        save_figure(CHARTS["bars"], tmp_path / "figure.bmp")


def test_names_that_would_be_read_as_paths_are_refused():
    with pytest.raises(ValueError, match=r"pass@1\[0\]"):
        lines("t", [{"pass@1[0]": 1}], x="pass@1[0]", y="y")
