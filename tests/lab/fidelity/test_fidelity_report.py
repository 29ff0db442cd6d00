"""The fidelity studies as tables and as a picture."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from trio_ray.lab.fidelity.fidelity_report import plot, pool, study

DIVERGENCE = [
    {"selector": name, "depth": depth, "kl": [0.1 * depth, 0.3], "agrees": [True, depth > 1]}
    for name in ("trio", "random")
    for depth in (1, 2)
]
AGREEMENT = [{"depth": depth, "spearman": [0.2, 0.4, 0.6, 0.8, 1.0], "overlap": [0.5, 0.7]} for depth in (1, 2)]
DETAIL = [
    {"method": "all tokens", "retention": 1.0, "fine": 1.0, "coarse": 0.9, "fine_questions": 4, "coarse_questions": 10},
    {"method": "trio", "retention": 0.1, "fine": None, "coarse": 0.5, "fine_questions": 0, "coarse_questions": 10},
]


def test_batches_are_pooled_by_what_they_agree_in() -> None:
    pooled = pool([*DIVERGENCE, *DIVERGENCE[:1]], ("selector", "depth"))
    assert len(pooled) == 4
    assert pooled[0] == {
        "selector": "trio", "depth": 1, "kl": [0.1, 0.3, 0.1, 0.3], "agrees": [True, False, True, False]
    }  # fmt: skip
    assert pooled[1] == DIVERGENCE[1]
    assert len(DIVERGENCE[0]["kl"]) == 2, "the batches' own lists must not grow"  # type: ignore[arg-type]


def test_the_tables_say_means_medians_and_shares() -> None:
    lines = study(DIVERGENCE, AGREEMENT, DETAIL).text.splitlines()
    assert lines[0] == "| depth | trio: KL (first token equal) | random: KL (first token equal) |"
    assert lines[2] == "| 1 | 0.200 (50.0 %) | 0.200 (50.0 %) |"
    assert lines[3] == "| 2 | 0.250 (100.0 %) | 0.250 (100.0 %) |"
    assert "| 1 | 0.60 (0.40 - 0.80) | 60 % |" in lines
    assert "| all tokens | 100.0 % | 100.0 % of 4 | 90.0 % of 10 |" in lines
    assert "| trio | 10.0 % | none asked | 50.0 % of 10 |" in lines


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    file = tmp_path / "fidelity.png"
    plot(DIVERGENCE, AGREEMENT, DETAIL, str(file))
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.width > 1500
