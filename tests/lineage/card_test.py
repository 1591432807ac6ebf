"""The model card says what is known, and "unknown" for the rest; the same export gives the same bytes."""

import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from engine.base.errors import ConfigError, RunError
from engine.lineage import card
from engine.lineage.card import TeamText, card_path, model_card, write_card
from engine.lineage.card_results import check_group
from engine.metrics.example_file import path_of, to_parquet
from engine.metrics.mean import Mean
from engine.metrics.slices import Examples
from engine.run import code, lineage
from engine.run.lineage import Names, Record
from tests.lineage.made import data, made_file, record, run, weights

pytest.importorskip("pyarrow")


@pytest.fixture
def export(tmp_path):
    """Exported weights of a run with two evaluations, one of which has kept the metrics of its examples."""
    out = made_file(tmp_path / "a.arrayrecord", "dataset", [data()])
    base = run(
        tmp_path / "base",
        [data(out, limit="60", target="demo.Scans")],
        {"data": Names({"/x": (1, "")}, {"scene|name": ["s1"]})},
        results={5: {"heldout/loss": 1.5, "other/accuracy": 0.25, "other/night/accuracy": 0.125}},
        optimizer__learning_rate=0.5,
        evaluations__other=dict(data=dict(target="tests.zoo.source"), slices=dict(night=dict(target="tests.zoo.x"))),
    )
    found = code.Code((), "ab" * 20, True, {"jax": "1.2"}, 1, "2030", {"devices": "8 x TPU"})
    (base / "code.json").write_text(code.to_text(found))
    path = base / path_of("heldout", 5)
    path.parent.mkdir(parents=True)
    rows = np.arange(60)
    metrics = {"loss": Mean(jnp.asarray(rows % 7, jnp.float32), jnp.ones(60))}
    slices = {"night": rows < 5, "rain": rows >= 20}
    path.write_bytes(to_parquet(Examples(rows, slices, metrics, {"scene": rows // 2})))
    return exported(tmp_path / "w.safetensors", base)


def exported(file, base):
    save_file({"a": np.zeros((3, 4)), "b": np.zeros(5)}, file)
    found = Record(
        kind="export", inputs=(weights(base),), id=lineage.content_id(file), settings={"weights": "averaged"}
    )
    record(lineage.record_path(file), found)
    return file


def lines(text):
    return text.splitlines()


def test_card_has_what_is_stored(export):
    text = lines(model_card(export, TeamText("Only on a closed track.", "Not at night.")))
    assert text[0] == "# Model card: w.safetensors"
    assert "| Weights | averaged, 17 numbers in 2 arrays |" in text
    assert text[text.index("## Intended use") + 2] == "Only on a closed track."
    assert text[text.index("## Limits") + 2] == "Not at night."
    [row] = [line for line in text if line.startswith("| data |")]
    assert row.startswith("| data | `demo.Scans` | 64 |") and row.endswith(r"| limit=60 | file: 1; scene\|name: 1 |")
    assert "Step 5, 60 examples. Intervals: bootstrap over single examples, taken as independent." in text
    [whole] = [line for line in text if line.startswith("| loss |")]
    assert whole.startswith("| loss | 2.9 | 2.4") and " to 3.4" in whole
    assert "| night | loss | 2 | too few examples | 5 |" in text
    assert "Step 5. No intervals: the metrics of its examples were not kept." in text
    assert "| accuracy | 0.25 | unknown |" in text and "| night | accuracy | 0.125 | unknown | unknown |" in text
    assert "- heldout: slices with too few examples to say anything: night (5)." in text
    assert any(line.startswith("- heldout: worst slice by loss: rain, ") for line in text)
    assert "- other: how sure its results are is unknown." in text
    assert "- The code had uncommitted changes, so the commit alone does not repeat the run." in text
    assert "| Environment | devices 8 x TPU |" in text
    assert "| `optimizer.learning_rate` | `0.5` | `0.001` |" in text
    assert not any("evaluations.other.worst`" in line for line in text)  # as by default
    assert "   `- data: demo.Scans (examples 64, content" in "\n".join(text)


def test_intervals_over_groups_and_a_tag_that_no_evaluation_has(export):
    text = model_card(export, group="scene")
    assert "Intervals: bootstrap over groups of equal scene." in text
    with pytest.raises(ConfigError, match=r"--group=city: no stored evaluation of step 5 has such a tag\. Tags: scene"):
        model_card(export, group="city")
    near = r"--group=scenes: .* has such a tag\. Did you mean scene\? Tags: scene"
    check_group(export.parent / "base", 5, "scene")
    with pytest.raises(ConfigError, match=near):
        check_group(export.parent / "base", 5, "scenes")


def test_card_invents_nothing(tmp_path):
    config = run(tmp_path / "bare") / "config.txt"
    config.write_text(re.sub(r"(?m)^evaluations\..*\n", "", config.read_text()))
    text = model_card(exported(tmp_path / "w.safetensors", tmp_path / "bare"))
    assert text.count("The team has given none.") == 2
    assert "unknown: the run has recorded none." in text
    assert "The run has no evaluations: nothing is known of the quality of this model." in text
    assert "| Code | unknown |" in text and "| Environment | unknown |" in text
    assert "- The commit of the code is unknown" in text


def test_unfinished_run_and_damaged_results_are_said(export):
    base = export.parent / "base"
    (base / path_of("heldout", 5)).write_bytes(b"damaged")
    (base / "checkpoints" / "results.json").write_text("{")
    text = model_card(export)
    assert "cannot be read as the metrics of examples" in text and "results.json" in text
    parent = run(export.parent / "parent")
    child = run(export.parent / "child", [weights(parent, "init")], state="failed")
    shutil.rmtree(parent)
    text = model_card(exported(export.parent / "c.safetensors", child))
    assert "its state is 'failed'" in text and "- Of unknown origin: init: parent." in text


def test_moved_run_is_found_by_its_parent_folder_only(export):
    base = export.parent / "base"
    child = exported(export.parent / "c.safetensors", run(export.parent / "child", [weights(base, "init")]))
    base.rename(export.parent / "renamed")
    assert "init: run renamed (step 5" in model_card(child)
    with pytest.raises(RunError, match="its run is not found"):
        model_card(export)


def test_card_is_written_anew_but_never_over_text_of_others(export):
    path = write_card(export)
    before = path.read_bytes()
    card.check_replaceable(export)
    assert write_card(export).read_bytes() == before and path == card_path(export)
    for content in (before + b"and our own notes", b"# Ours", b"\xff"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"MODEL_CARD.md: was changed by hand, .* Move it away"):
            card.check_replaceable(export)


def test_file_that_is_no_export_or_was_changed_is_refused(export):
    made_file(export.parent / "p.npz", "predictions", [data()])
    for name in ("p.npz", "gone", "base"):
        with pytest.raises(RunError, match="no model card can be made: it has no record of an export"):
            model_card(export.parent / name)
    export.write_bytes(export.read_bytes() + b"x")
    with pytest.raises(RunError, match="it was changed after its export"):
        model_card(export)


def test_text_of_the_team_is_read_or_refused(tmp_path):
    (tmp_path / "use.txt").write_text(" Only here.\n")
    (tmp_path / "empty.txt").write_text("\n")
    assert card.read_team_text(str(tmp_path / "use.txt"), "--limits") == "Only here."
    assert card.read_team_text(None, "--limits") == ""
    for name, why in (("gone", "cannot be read"), ("empty.txt", "the file is empty")):
        with pytest.raises(ConfigError, match=rf"--limits=.*{name}: {why}"):
            card.read_team_text(str(tmp_path / name), "--limits")


@pytest.mark.parametrize(
    ("text", "in_text", "in_code"),
    [
        ("a_b|c &lt; ~~d~~ $e$", r"a\_b\|c \&lt; \~\~d\~\~ \$e\$", r"`a_b\|c &lt; ~~d~~ $e$`"),
        ("``x`` y`", r"\`\`x\`\` y\`", "``` ``x`` y` ```"),
        ("a\n| b\x1b[1m", r"a \| b\\x1b\[1m", r"`a \| b\x1b[1m`"),
        ("", "", "empty"),
    ],
)
def test_texts_of_a_run_are_no_markdown_and_stay_the_same(text, in_text, in_code):
    assert (card._text(text), card._code(text)) == (in_text, in_code)
