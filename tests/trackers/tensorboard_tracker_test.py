"""A run that is pushed into a folder of TensorBoard has its images, histograms and hyperparameters there."""

from engine.trackers.sender import Sender
from engine.trackers.tensorboard_tracker import TensorBoard
from tests.observe.event_file import read
from tests.trackers.made import make_run, results_row, training_row, write_rows


def send(directory, folder):
    sender = Sender(TensorBoard(str(folder)), directory)
    sender.send()
    sender.finish("done", "")


def test_event_files_have_every_kind_of_result_and_the_settings(tmp_path):
    directory = make_run(tmp_path / "a", training_row(1, 0.5), results_row(1), train__seed=7)
    send(directory, tmp_path / "out")
    found = read(tmp_path / "out" / "a")
    assert found["train/loss"].simple_value == 0.5
    assert found["heldout/figures/0"].image.width == 4
    assert list(found["heldout/weights"].histo.bucket) == [0, 3, 4]
    assert b"example" in found["heldout/worst"].tensor.string_val[0]
    assert b"train.seed" in found["_hparams_/session_start_info"].metadata.plugin_data.content
    write_rows(directory, training_row(2, 0.25))
    send(directory, tmp_path / "out")
    assert len(list((tmp_path / "out" / "a").iterdir())) == 2
