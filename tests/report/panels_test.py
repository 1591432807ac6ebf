"""Which curves share a chart, and which charts come first."""

from engine.report.panels import COST, FIRST, LAYERS, RESULTS, panels


def test_curves_of_one_metric_share_a_chart():
    names = ["training/grad_norm", "training/accuracy", "training/loss", "heldout/loss", "heldout/ap/car", "compile_s"]
    found = panels(names, ["heldout/ap/car"])
    assert [panel["title"] for panel in found] == ["ap/car", "loss", "accuracy", "grad_norm"]
    assert found[1]["names"] == ["training/loss", "heldout/loss"]
    assert all(panel["section"] == RESULTS and panel["first"] for panel in found)


def test_what_the_engine_measures_is_in_a_section_of_its_own():
    names = ["training/loss", "training/step_time_s", "training/data_wait_s", "training/mfu", "training/data_read_s"]
    found = {panel["title"]: panel for panel in panels(names, []) if panel["section"] == COST}
    assert list(found) == ["Step time", "MFU and HFU", "Reading a batch by stage"]
    assert found["Step time"]["labels"] == {"training/step_time_s": "step", "training/data_wait_s": "waiting for data"}


def test_layers_have_a_chart_for_each_measure():
    names = ["training/grad_norm", "layers/grad_norm", "layers/grad_norm/encoder/0", "layers/dead/encoder/0"]
    found = [panel for panel in panels(names, []) if panel["section"] == LAYERS]
    assert [panel["title"] for panel in found] == ["grad norm", "dead"]
    assert list(found[0]["labels"].values()) == ["whole model", "encoder/0"]
    assert panels(names, [])[0]["names"] == ["training/grad_norm"]


def test_many_charts_are_shown_only_when_asked_for():
    found = panels([f"heldout/m{i}" for i in range(50)] + ["heldout/ap/car"], [])
    assert sum(panel["first"] for panel in found) == FIRST
    assert len(found) == 51
