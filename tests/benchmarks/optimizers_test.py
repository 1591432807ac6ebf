"""The laboratory of optimizers: its runs are those of the engine, chunks continue, and reports give known answers."""

import dataclasses
import math
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import engine
from benchmarks.optimizers import __main__ as command
from benchmarks.optimizers import measures, plan, reports, rows, spaces
from benchmarks.optimizers.chunks import TINY_OPTIMIZERS, chunks, tiny_chunks
from benchmarks.optimizers.optimizers import OPTIMIZERS
from benchmarks.optimizers.plots import FIGURES
from benchmarks.optimizers.problems import CONDITION, PROBLEMS, expected_risk, steady_risk
from benchmarks.optimizers.rows import Row, Run
from benchmarks.optimizers.tasks import TASKS, VALIDATION, config_of
from benchmarks.optimizers.training import train
from engine.api.prepared import check_code, resolve_config
from engine.base import json_text

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="module")
def own_locks(tmp_path_factory):
    """The cores are free for these tests, whatever the laboratory trains on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The rows of a tiny chunk."""
    path = tmp_path_factory.mktemp("optimizers") / "rows.jsonl"
    assert command.main(["run", "--tiny", "--chunk=digits-adamw", f"--rows={path}"]) == 0
    return path


def row(task, optimizer, losses, kind="final", seed=1, steps=20, rate=1e-3, **more):
    """Returns a row of a made-up run."""
    run = Run(f"{task}-{optimizer}", "trials", task, optimizer, kind, {"learning_rate": rate}, seed, steps)
    results = {"metric": [], "cpu_s": 1.0, "step_ms": 10.0, "state_bytes": 8, "parameter_bytes": 4, "diverged": False}
    return Row(run=run, loss=losses, **{**results, **more})


def line(first, last, steps=20):
    """Returns losses on a line, at the end of each of 20 parts."""
    return [first + (last - first) * (place + 1) / steps for place in range(steps)]


def test_chunk_trains_tuning_runs_and_repeats_the_best_with_other_seeds(trained):
    found = rows.read(trained)
    assert [(each.run.kind, each.run.seed) for each in found] == [("tune", 0)] * 2 + [("final", 1), ("final", 2)]
    best = min(found[:2], key=lambda each: each.final)
    assert {str(each.run.settings) for each in found[2:]} == {str(best.run.settings)}
    assert all(len(each.loss) == len(each.metric) == len(each.at) == 12 for each in found)
    assert found[0].state_bytes == 2 * found[0].parameter_bytes + 8  # two moments and two counters of AdamW
    assert 0 < found[0].step_ms * found[0].run.steps <= 1000 * found[0].cpu_s


def test_chunk_has_no_threads_of_openblas_on_other_cores():
    code = "import benchmarks.optimizers, numpy, os; print(os.listdir('/proc/self/task'))"
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.count("'") == 2  # the main thread


def test_run_is_bitwise_that_of_the_engine(trained, tmp_path):
    last = rows.read(trained)[-1]
    config = config_of(last.run, OPTIMIZERS["adamw"], "")
    config.evaluations[VALIDATION].every = "1 step"
    config.log.every, config.log.progress = "1 step", "none"
    engine.train(config, workdir=tmp_path / "run")
    lines = json_text.read_lines(tmp_path / "run" / "metrics.jsonl", {"step": int, str: object}).values
    losses = [line[f"{VALIDATION}/loss"] for line in lines if f"{VALIDATION}/loss" in line]
    assert last.loss == [float(f"{loss:.{rows.DIGITS}g}") for loss in losses]


def test_killed_chunk_continues_with_the_run_that_was_not_finished(trained, tmp_path, capsys):
    lines = trained.read_text().splitlines(keepends=True)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(lines[:2]) + lines[2][:40])  # a kill while the third row was written
    assert len(rows.read(path)) == 2
    assert command.main(["run", "--tiny", "--chunk=digits-adamw", f"--rows={path}"]) == 0
    assert "digits-adamw: 2 runs" in capsys.readouterr().out
    untimed = [dataclasses.replace(each, cpu_s=0, step_ms=0) for each in rows.read(path)]
    assert untimed == [dataclasses.replace(each, cpu_s=0, step_ms=0) for each in rows.read(trained)]
    assert tiny_chunks()["digits-adamw"].next_runs(rows.read(path)) == []


def test_times_are_measured_in_turns_and_used_by_reports(trained, tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    path.write_text(trained.read_text())
    assert command.main(["run", "--tiny", "--chunk=time-digits", f"--rows={path}"]) == 0
    assert "time-digits: 2 runs" in capsys.readouterr().out
    timed = rows.read(path)[-2:]
    assert [(each.run.optimizer, each.run.kind, each.loss) for each in timed] == [
        (n, "time", []) for n in TINY_OPTIMIZERS
    ]
    assert measures.step_ms(rows.read(path), "digits", "adamw") == timed[0].step_ms > 0


def test_diverged_run_ends_early_and_counts_as_infinite(trained, tmp_path):
    run = rows.read(trained)[-1].run
    ended = train(dataclasses.replace(run, settings={**run.settings, "learning_rate": 1e30}), "")
    assert ended.diverged and len(ended.loss) < run.steps and ended.final == math.inf
    assert row("lm", "adamw", [3.0, 2.0], diverged=True).final == math.inf  # no update was finite
    made = row("lm", "adamw", [3.0, math.nan], diverged=True)
    rows.append(made, tmp_path / "rows.jsonl")
    [read] = rows.read(tmp_path / "rows.jsonl")
    assert (read.final, read.steps_to(5.0), read.at) == (math.inf, math.inf, [1, 2])


def test_steps_to_a_target_are_between_two_evaluations():
    made = row("lm", "adamw", line(20.0, 0.0))  # 19 after the first step
    assert made.steps_to(4.5) == pytest.approx(15.5)
    assert made.steps_to(19.5) == 1 and made.steps_to(-1.0) == math.inf


def test_target_and_ratios_have_the_known_values():
    found = [row("lm", "adamw", line(20.0, 0.0), seed=seed) for seed in (1, 2, 3)]
    found += [row("lm", "lion", line(40.0, -20.0), seed=seed, step_ms=30.0) for seed in (1, 2, 3)]
    found += [row("lm", "soap", line(20.0, 10.0), seed=seed) for seed in (1, 2, 3)]
    assert measures.target(found, "lm") == pytest.approx(1.0)
    steps = {name: measures.to_target(found, "lm", name) for name in ("adamw", "lion", "soap")}
    assert steps == {"adamw": pytest.approx(19), "lion": pytest.approx(13), "soap": math.inf}
    assert measures.to_target(found, "lm", "lion", measures.TIME) == pytest.approx(13 * 0.03)
    assert measures.ratios({"lm": steps}) == {"adamw": [pytest.approx(19 / 13)], "lion": [1.0], "soap": [math.inf]}


def test_final_losses_are_compared_for_equal_seeds():
    found = [row("lm", "adamw", line(20.0, float(seed)), seed=seed) for seed in (1, 2, 3)]
    found += [row("lm", "lion", line(20.0, 0.9 * seed), seed=seed) for seed in (3, 2, 1)]
    known = measures.difference(found, "lm", "lion")
    assert known.estimate == pytest.approx(-0.2)
    assert known.high - known.estimate == pytest.approx(4.30265 * 0.1 / math.sqrt(3), rel=1e-4)


def test_best_point_says_where_no_further_rate_was_tried():
    best = row("lm", "adamw", [1.0], rate=0.1)
    assert reports.point(best, [0.01, 0.1]) == "learning_rate 0.1 (largest tried)"
    assert reports.point(best, [0.1, 1.0]) == "learning_rate 0.1 (smallest tried)"
    assert reports.point(best, [0.01, 0.1, 1.0]) == "learning_rate 0.1"


def test_performance_profile_and_its_area():
    of_tasks = [1.0, 1.5, 2.5, math.inf]
    assert measures.profile(of_tasks, [1.0, 1.5, 2.0, 4.0]) == [0.25, 0.5, 0.5, 0.75]
    assert measures.area(of_tasks) == pytest.approx((3 + 2.5 + 1.5) / (3 * 4))
    assert measures.area([1.0, 1.0]) == 1.0


def test_range_of_rates_near_the_best_is_interpolated():
    rates = [1e-4, 1e-3, 1e-2, 1e-1]
    assert measures.near_best(rates, [1.2, 1.0, 1.2, math.inf]) == pytest.approx(10)  # half a decade on each side
    assert measures.near_best(rates, [1.05, 1.0, 1.0, 1.05]) == pytest.approx(1000)


def test_critical_batch_size_of_known_steps():
    batches = [2, 4, 8, 16]
    least, critical = measures.critical_batch(batches, [100 * (1 + 12 / batch) for batch in batches])
    assert (least, critical) == (pytest.approx(100), pytest.approx(12))


def test_unknown_chunk_is_a_sentence(capsys):
    assert command.main(["run", "--tiny", "--chunk=digit-adamw"]) == 1
    assert "--chunk: 'digit-adamw' matches no chunk. Did you mean digits-adamw?" in capsys.readouterr().err


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    """A file with a made-up row for each run of each chunk."""
    found = []
    for chunk in chunks().values():
        for group in chunk.groups(found):
            found += [made(run) for run in group.tuning]
            found += [made(run) for run in group.final_runs(found)]
    path = tmp_path_factory.mktemp("optimizers") / "rows.jsonl"
    path.write_text("".join(f"{each.to_line()}\n" for each in found))
    return path


def made(run):
    """Returns a row whose loss is smallest at the usual learning rate; those far above it diverge."""
    distance = math.log10(run.settings["learning_rate"] / OPTIMIZERS[run.optimizer].rate)
    seed = zlib.crc32(run.key.encode()) % 100 / 1e4
    losses = [1 + 2 * math.exp(-step / 300) + 0.1 * distance**2 + seed for step in run.evaluations]
    diverged = distance > 0.9
    metric = [0.5] * len(losses) if run.task in TASKS and TASKS[run.task].metric else []
    return Row(run, [math.nan] if diverged else losses, metric, 30.0, 20.0, 2000, 1000, diverged)


def test_page_has_the_tables_and_the_figures_of_the_committed_rows():
    """The command of the page prints its last chapter."""
    page = (ROOT / "docs" / "which-optimizer.md").read_text()
    assert page.partition("## All tables\n\n")[2] == f"{reports.text(rows.read())}\n"
    shown = set(re.findall(r"!\[.+\]\(images/optimizers-(.+)\.png\)", page))
    drawn = {path.stem.removeprefix("optimizers-") for path in (ROOT / "docs" / "images").glob("optimizers-*.png")}
    assert shown == drawn == set(FIGURES)


def test_committed_rows_stay_small(made_up):
    assert made_up.stat().st_size < rows.MAX_BYTES and rows.ROWS.stat().st_size < rows.MAX_BYTES


def test_all_chunks_are_reported_and_drawn(made_up, tmp_path, capsys):
    assert command.main(["report", f"--rows={made_up}"]) == 0
    text = capsys.readouterr().out
    titles = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("###")]
    assert titles[:2] == ["What the shortened tasks reach", "Steps and time to the target"] and len(titles) == 18
    assert text.count("| Adam-mini |") == 5 and "nan" not in text
    assert command.main(["plot", f"--rows={made_up}", f"--output={tmp_path}"]) == 0
    assert sorted(path.stem.removeprefix("optimizers-") for path in tmp_path.iterdir()) == sorted(FIGURES)
    assert command.main(["report", f"--rows={tmp_path / 'none.jsonl'}"]) == 0
    assert "No rows yet" in capsys.readouterr().out


def test_plan_fits_the_budget_and_counts_what_is_done(made_up, capsys):
    minutes = {name: plan.estimate(plan.planned(chunk, [])) for name, chunk in chunks().items()}
    assert max(minutes.values()) <= plan.MOST_MINUTES
    assert sum(minutes.values()) <= 2 * 240
    assert command.main(["plan", f"--rows={made_up}"]) == 0
    printed = capsys.readouterr().out
    assert "| 11 of 11 |" in printed and ", 0 of them are left" in printed


def test_chunk_that_varies_the_best_run_of_another_asks_for_it(tmp_path, capsys):
    assert command.main(["run", "--chunk=ema", f"--rows={tmp_path / 'rows.jsonl'}"]) == 1
    assert "run --chunk=lm-adamw first" in capsys.readouterr().err


def test_every_optimizer_takes_its_settings():
    for name, spec in OPTIMIZERS.items():
        points = spaces.points(spec)
        assert len(points) == spaces.TRIALS
        assert len({spaces.program_key(point) for point in points}) == spaces.PROGRAMS
        for point in points[:: spaces.TRIALS // spaces.PROGRAMS]:
            config = config_of(Run("", "", "digits", name, "tune", point, 0, 20), spec, "")
            check_code(resolve_config(config))


def test_momentum_on_the_noisy_quadratic_has_the_expected_risk():
    settings = {"learning_rate": 0.1, "warmup": 0.0, "schedule": "constant", "momentum": 0.9, "nesterov": 0}
    runs = [Run("", "", "noisy_quadratic", "sgd", "tune", settings, seed, 1000) for seed in range(6)]
    at = runs[0].evaluations
    measured = np.mean([train(run, "").loss for run in runs])
    assert measured == pytest.approx(np.mean(expected_risk(0.1, 0.9, at)), rel=0.03)
    assert expected_risk(0.5, 0.9, [20_000], side=4) == [pytest.approx(steady_risk(0.5, 0.9, side=4))]


def test_least_squares_has_the_condition_number_and_the_minimum():
    problem = PROBLEMS["least_squares"]()
    first, key = jnp.asarray(problem.first), jax.random.key(0)
    hessian = jax.jacobian(lambda column: problem.gradient(first.at[:, 0].set(column), key)[:, 0])(first[:, 0])
    assert np.linalg.cond(np.asarray(hessian, np.float64)) == pytest.approx(CONDITION, rel=0.02)
    best = first - jnp.linalg.solve(hessian, problem.gradient(first, key))
    assert (problem.loss(first), problem.loss(best)) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
