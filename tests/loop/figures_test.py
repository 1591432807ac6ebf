"""Evaluations draw the worst examples, or the first ones, into the run directory and TensorBoard."""

import shutil
import threading
from typing import Any

import jax
import numpy as np
import pytest

import engine
from engine.base.errors import TaskError
from engine.cli.main import main
from engine.config.schema import Data, MeshSpec
from engine.config.schema import Evaluation as Config
from engine.loop.evaluation import Evaluator
from engine.metrics.results import Image
from tests import runs, zoo
from tests.drawing import Draw
from tests.evaluated import stored
from tests.predicting import NAMES, Unreadable, bucketed


def figures(config, source, mesh=None) -> tuple[Any, dict[str, Any], Any]:
    program = zoo.program(Draw(), mesh=mesh)
    state = program.init()
    found = Evaluator("heldout", config, source, program.evaluation, 16).run(state, step=7)
    assert found is not None
    images = {name: x for name, x in found.items() if isinstance(x, Image)}
    model = program.spec.model.module(jax.device_get(state.params), jax.device_get(state.model_state), None)
    return found, images, model


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [None, MeshSpec(data=4, tensor=2)], ids=str)
def test_worst_examples_are_drawn_with_their_predictions(mesh):
    found, images, model = figures(Config(worst=5, figures=3, score="accuracy", worst_mode="min"), bucketed(), mesh)
    worst = found["heldout/worst_examples"].columns["example"]
    assert [image.file for image in images.values()] == [f"heldout/7/{i}-example-{worst[i]}.png" for i in range(3)]
    data = zoo.examples(37, seed=5)["x"]
    for rank, image in enumerate(images.values()):
        x = data[worst[rank]]
        np.testing.assert_allclose(image.pixels[1], x.clip(0, 1))
        np.testing.assert_allclose(image.pixels[0][:4], np.asarray(model(x[None]))[0].clip(0, 1), atol=1e-5)


@pytest.mark.parametrize("count", [3, 20])  # of one batch, and of two
def test_first_readable_examples_are_drawn_without_a_ranking(count):
    config = Config(figures=count, data=Data(on_error="skip"))
    _, images, _ = figures(config, Unreadable({1}))
    assert list(images) == [f"heldout/figures/{i}" for i in range(count) if i != 1]
    assert {image.file for image in images.values()} >= {f"heldout/7/{count - 1}-example-{count - 1}.png"}


def test_task_that_cannot_draw_is_an_error():
    with pytest.raises(TaskError, match=r"^evaluations.heldout.figures: Classify has no figure\(self, example, pred"):
        Evaluator("heldout", Config(figures=1), zoo.source(), zoo.program(zoo.Classify()).evaluation, 16)


def test_error_of_a_figure_keeps_the_results_and_the_figures_before_it():
    drawn = []

    class Breaks(Draw):
        def figure(self, example, prediction):
            drawn.append(example["id"])
            if len(drawn) == 3:
                raise ZeroDivisionError("division by zero")
            return super().figure(example, prediction)

    program = zoo.program(Breaks())
    subject = Evaluator("heldout", Config(figures=5), Unreadable(), program.evaluation, 16)
    found = subject.run(program.init())
    assert found is not None
    assert [name for name in found if "figures" in name] == ["heldout/figures/0", "heldout/figures/1"]
    assert "heldout/loss" in found
    assert drawn == NAMES[:3]
    assert str(subject.figure_error).startswith("Breaks.figure failed: ZeroDivisionError: division by zero (")


def test_progress_is_reported_between_the_texts_and_between_the_figures():
    seen: list[str] = []

    class Drawn(Draw):
        def figure(self, example, prediction):
            seen.append("figure")
            return super().figure(example, prediction)

    class Read(Unreadable):
        def __getitem__(self, index):
            if threading.current_thread() is threading.main_thread():  # the batches are read by another thread
                seen.append("text")
            return super().__getitem__(index)

    program = zoo.program(Drawn())
    subject = Evaluator("heldout", Config(worst=4, figures=3), Read(), program.evaluation, 16)
    assert subject.run(program.init()) is not None  # the first run also reads an example for the shapes
    seen.clear()
    assert subject.run(program.init(), on_progress=lambda: seen.append(".")) is not None
    texts, figures = seen.index("text"), seen.index("figure")
    assert seen[texts : texts + 8] == ["text", "."] * 4
    assert seen[figures - 2] == "."  # the predictions to draw
    assert seen[figures - 1 :] == ["text", "figure", "."] * 3


@pytest.mark.slow
def test_training_continues_without_figures_and_evaluate_fails(tmp_path, capsys):
    settings = {"train__total": "2 steps", "evaluations__heldout__figures": 2}
    engine.train(runs.config(task={"target": "tests.drawing.Broken"}, **settings), workdir=tmp_path)
    text = "Broken.figure failed: ValueError: no pen ("
    assert f"warning: step 2: figures of heldout are missing: {text}" in (tmp_path / "log.txt").read_text()
    assert main(["evaluate", str(tmp_path)]) == 1
    assert text in capsys.readouterr().err
    assert [result.step for result in stored(tmp_path)] == [2]


@pytest.mark.slow
def test_figures_of_a_run_are_files_and_images_of_tensorboard(tmp_path, capsys):
    run = tmp_path / "run"
    config = runs.config(
        task={"target": "tests.drawing.Draw"}, train__total="2 steps", evaluations__heldout__figures=2,
        log__tensorboard=True,
    )  # fmt: skip
    engine.train(config, workdir=run)
    names = ["0-example-0.png", "1-example-1.png"]
    assert sorted(path.name for path in (run / "figures" / "heldout" / "2").iterdir()) == names
    [events] = (run / "tensorboard").iterdir()
    assert b"heldout/figures/1" in events.read_bytes()
    (run / "figures" / "heldout" / "2" / names[0]).unlink()
    assert main(["evaluate", str(run)]) == 0
    assert (run / "figures" / "heldout" / "2" / names[0]).read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", str(run), "--evaluations.heldout.figures=0"]) == 0
    assert not list((run / "figures" / "heldout" / "2").iterdir())
    shutil.rmtree(run / "figures")
    (run / "figures").write_text("")
    assert main(["evaluate", str(run)]) == 0
    assert "figures: cannot be written (Not a directory), so the figures are not stored." in capsys.readouterr().err
    assert len(stored(run)) == 3
    out = tmp_path / "found.npz"
    assert main(["predict", str(run), f"--out={out}", "--figures=3"]) == 0
    drawn = {path.name for path in (tmp_path / "found_figures").iterdir()}
    assert drawn == {f"example-{i}.png" for i in range(3)}
    assert main(["predict", str(run), f"--out={out}", "--figures=1", "--overwrite"]) == 0
    assert [path.name for path in (tmp_path / "found_figures").iterdir()] == ["example-0.png"]
    assert main(["predict", str(run), f"--out={out}", "--overwrite"]) == 0
    assert not list((tmp_path / "found_figures").iterdir())
