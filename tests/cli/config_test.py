"""`convoy config` prints the resolved config of a run and of a module, and lists the fields."""

from tests import runs


def test_config_prints_what_a_run_stores(digits):
    path, _ = digits
    done = runs.convoy("config", str(path))
    head, _, stored = (path / "config.txt").read_text().partition("\n")
    assert done.stdout == stored and head == f"# {len(stored.splitlines())} settings"
    assert "train.total: 3 steps" in done.stdout.splitlines()
    changed = runs.convoy("config", "configs.digits", "--config.train.ema_decay=0.9", "--config.checkpoint.best=None")
    lines = changed.stdout.splitlines()
    assert "train.ema_decay: 0.9" in lines
    assert "checkpoint.best: None" in lines
    assert "train.global_batch_size" in runs.convoy("config", "--help").stdout
