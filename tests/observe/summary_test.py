import dataclasses

from engine.observe.summary import Summary, summary_text
from engine.run.directory import RunDirectory


def make_summary(tmp_path, monkeypatch, **changes):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "packages/tensorboard").mkdir(parents=True, exist_ok=True)  # tests do not install it
    monkeypatch.syspath_prepend(tmp_path / "packages")
    run = RunDirectory.open("runs/digits")
    run.metrics.write_text("")
    run.tensorboard.mkdir()
    summary = Summary(
        state="done",
        name="digits",
        directory=run,
        step=1410,
        total_steps=1410,
        metrics={"step": 1410, "loss": 0.041234, "heldout/accuracy": 0.98333, "examples_per_s": 30000.0},
        best={"heldout/accuracy": (1200, 0.98611)},
        checkpoints=(1200, 1410),
        wall_s=12.34,
        compile_s=1.42,
        rates={"examples_per_s": 31249.8, "step_time_s": 0.00205, "data_wait": 0.0031},
        command="convoy train --config=configs/digits.py",
    )
    return dataclasses.replace(summary, **changes)


def test_tensorboard_command_is_printed_only_if_it_is_installed(tmp_path, monkeypatch):
    summary = make_summary(tmp_path, monkeypatch)
    monkeypatch.setattr("sys.path", [])
    assert "  tensorboard  runs/digits/tensorboard   (pip install tensorboard to view it)\n" in summary_text(summary)


def test_summary_of_a_finished_run(tmp_path, monkeypatch):
    assert (
        summary_text(make_summary(tmp_path, monkeypatch))
        == """\
digits: done at step 1,410/1,410

  loss              0.04123
  heldout/accuracy  0.9833   best 0.9861 at step 1,200

  time        12.3 s, 1.4 s of it compiling
  throughput  31,250 examples/s, 2.05 ms a step, 0.3% of the time waiting for data

  run          runs/digits
  checkpoints  runs/digits/checkpoints   steps 1200, 1410
  metrics      runs/digits/metrics.jsonl
  tensorboard  tensorboard --logdir runs/digits/tensorboard

  evaluate      convoy evaluate runs/digits
  train longer  convoy train --config=configs/digits.py --config.train.total="..."
"""
    )


def test_summary_of_a_config_without_a_name_begins_with_the_folder(tmp_path, monkeypatch):
    assert summary_text(make_summary(tmp_path, monkeypatch, name="")).startswith("digits: done at step 1,410")


def test_summary_of_a_trial_proposes_no_longer_training(tmp_path, monkeypatch):
    summary = make_summary(tmp_path, monkeypatch, trial=True)
    for objects, call in (((), "  evaluate  convoy evaluate runs/digits"), (("task",), "engine.evaluate(")):
        text = summary_text(dataclasses.replace(summary, objects=objects))
        assert call in text and "longer" not in text


def test_summary_of_a_preempted_run(tmp_path, monkeypatch):
    summary = make_summary(
        tmp_path,
        monkeypatch,
        state="preempted",
        step=700,
        reason="The machine asked the run to stop; the state of step 700 is saved.",
        metrics={"loss": 0.3},
        best={},
        checkpoints=(700,),
    )
    text = summary_text(summary)
    assert text.startswith("digits: preempted at step 700/1,410\n\n")
    assert text.endswith("""
  run          runs/digits
  checkpoints  runs/digits/checkpoints   step 700
  metrics      runs/digits/metrics.jsonl
  tensorboard  tensorboard --logdir runs/digits/tensorboard

  evaluate         convoy evaluate runs/digits
  resume from 700  convoy train --config=configs/digits.py
""")


def test_summary_without_a_command_resumes_by_the_config_of_the_run(tmp_path, monkeypatch):
    text = summary_text(make_summary(tmp_path, monkeypatch, state="interrupted", step=1300, command=None))
    assert "digits: interrupted at step 1,300/1,410" in text
    assert "  resume from 1410  convoy train --config=runs/digits --workdir=runs/digits\n" in text


def test_summary_of_a_run_with_objects_prints_python_calls(tmp_path, monkeypatch):
    objects = ("task", "evaluations.heldout.data", "evaluations.other.data", "hooks.plot")
    summary = make_summary(tmp_path, monkeypatch, command=None, scheduled=True, objects=objects)
    text = summary_text(summary)
    assert text.endswith("""
  evaluate      engine.evaluate('runs/digits', task=task, evaluation_data=evaluation_data)
  train longer  engine.train(engine.config.load('runs/digits', ["train.total=..."]), task=task, \
evaluation_data=evaluation_data, hooks=hooks, workdir='runs/digits', accept_schedule_change=True)
""")
    stopped = summary_text(dataclasses.replace(summary, state="interrupted", objects=("data",)))
    assert "  resume from 1410  engine.train('runs/digits', data=data, workdir='runs/digits')\n" in stopped
    assert "convoy" not in text + stopped


def test_notebook_shows_the_summary_as_tables(tmp_path, monkeypatch):
    html = make_summary(tmp_path, monkeypatch, name="a<b")._repr_html_()
    assert html.startswith('<p style="white-space: pre-wrap">a&lt;b: done at step 1,410/1,410</p><table>')
    assert html.count("<table>") == 4
    assert ">0.9833   best 0.9861 at step 1,200</td>" in html and ">convoy evaluate runs/digits</td>" in html


def test_summary_of_a_run_that_failed_before_its_first_checkpoint(tmp_path, monkeypatch):
    summary = make_summary(
        tmp_path,
        monkeypatch,
        state="failed",
        step=3,
        reason="step 3: the loss is not finite.",
        metrics={},
        best={},
        checkpoints=(),
        compile_s=None,
        rates={},
    )
    assert (
        summary_text(summary)
        == """\
digits: failed at step 3/1,410

  time  12.3 s

  run          runs/digits
  metrics      runs/digits/metrics.jsonl
  tensorboard  tensorboard --logdir runs/digits/tensorboard

  start again  convoy train --config=configs/digits.py   (no checkpoint was written)
"""
    )


def test_summary_shows_flops_and_mfu_if_known(tmp_path, monkeypatch):
    summary = make_summary(tmp_path, monkeypatch)
    rates = {**summary.rates, "flop_per_s": 1.234e14, "mfu": 0.3951}
    text = summary_text(dataclasses.replace(summary, rates=rates))
    assert "  compute     123.4 TFLOP/s, 39.5% of the peak (MFU)\n" in text


def test_rates_without_a_peak_are_details(tmp_path, monkeypatch):
    summary = make_summary(tmp_path, monkeypatch)
    rates, metrics = {**summary.rates, "flop_per_s": 1.234e10}, {"loss": 1.0, "skipped": 0.0, "host_rss_gib": 0.3}
    quiet = dataclasses.replace(summary, rates=rates, metrics=metrics)
    assert not any(word in summary_text(quiet) for word in ("TFLOP/s", "skipped", "host_rss_gib"))
    details = summary_text(dataclasses.replace(quiet, verbose=True))
    assert "0.01234 TFLOP/s\n" in details and "host_rss_gib" in details


def test_skipped_updates_are_shown(tmp_path, monkeypatch):
    assert "  skipped  2\n" in summary_text(make_summary(tmp_path, monkeypatch, metrics={"loss": 1.0, "skipped": 2.0}))


def test_resume_without_steps_shows_no_rates_of_the_attempt_before(tmp_path, monkeypatch):
    before = {"loss": 1.0, "step_time_s": 0.1, "data_wait": 0.0, "flop_per_s": 1e9, "data_read_s": 1e-5}
    text = summary_text(make_summary(tmp_path, monkeypatch, metrics=before, rates={}, compile_s=0.0))
    assert "\n\n  loss  1\n\n  time  12.3 s\n\n" in text


def test_summary_names_the_folder_of_figures_if_there_are_any(tmp_path, monkeypatch):
    summary = make_summary(tmp_path, monkeypatch)
    assert "figures" not in summary_text(summary)
    summary.directory.figures.mkdir()
    assert "  figures      runs/digits/figures\n" in summary_text(summary)


def test_summary_shows_the_attempt_and_quotes_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDirectory("my runs/a")
    run.attempt = 3
    text = summary_text(make_summary(tmp_path, monkeypatch, directory=run, command=None))
    assert text.startswith("digits: done at step 1,410/1,410, attempt 3\n")
    assert "convoy train --config='my runs/a' --workdir='my runs/a' --config.train.total=" in text
    assert "convoy evaluate 'my runs/a'" in text


def test_summary_of_a_temporary_run_names_no_paths(tmp_path, monkeypatch):
    text = summary_text(make_summary(tmp_path, monkeypatch, kept=False))
    assert text.endswith("waiting for data\n\n  run  not kept; use --workdir=DIR to keep it\n")
    assert "runs/digits" not in text
