"""The same rows as Markdown and LaTeX."""

import pytest

from ua import tables

ROWS = [
    {"method": "ours", "steps": 51, "psnr": 35.126, "rmse": 1.0},
    {"method": "bi_linear", "psnr": 17.0, "rmse": 0.5},
    {"method": "a|b", "steps": None, "psnr": float("nan"), "rmse": 0.501},
]
STYLE = {"formats": {"psnr": ".2f", "rmse": ".2f"}, "best": {"psnr": "max", "rmse": "min"}}


def test_markdown():
    assert tables.markdown(ROWS, caption="Scores.", **STYLE) == (
        "Scores.\n\n"
        "| method    | steps |      psnr |     rmse |\n"
        "| --------- | ----: | --------: | -------: |\n"
        "| ours      |    51 | **35.13** |     1.00 |\n"
        "| bi_linear |     - |     17.00 | **0.50** |\n"
        "| a\\|b      |     - |         - | **0.50** |\n"
    )


def test_latex():
    text = tables.latex(ROWS, caption="5 % better", label="tab:x", **STYLE)
    assert r"ours & 51 & \textbf{35.13} & 1.00 \\" in text
    assert r"bi\_linear & - & 17.00 & \textbf{0.50} \\" in text
    assert r"\caption{5 \% better}" in text and r"\begin{tabular}{lrrr}" in text


def test_nothing_is_best_where_all_are_equal():
    rows = [{"method": "a", "delta1": 0.999}, {"method": "b", "delta1": 0.9991}, {"method": "c"}]
    assert "**" not in tables.markdown(rows, formats={"delta1": ".2f"}, best={"delta1": "max"})


def test_errors():
    with pytest.raises(ValueError, match="at least one"):
        tables.markdown([])
    with pytest.raises(ValueError, match="accepted are 'min' and 'max'"):
        tables.latex(ROWS, best={"psnr": "highest"})
