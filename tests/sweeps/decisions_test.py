from engine.sweeps.decisions import read_decision, write_decision


def test_newest_decision_replaces_the_older_one(tmp_path):
    path = tmp_path / "decisions" / "trial-0000.json"
    assert read_decision(path) == (-1, False)
    write_decision(path, 10, False)
    write_decision(path, 20, True)
    assert read_decision(path) == (20, True)


def test_file_that_is_no_decision_counts_as_none(tmp_path):
    path = tmp_path / "trial-0000.json"
    for text in ("", '{"step": 1', '{"step": "1", "prune": true}', "[]"):
        path.write_text(text)
        assert read_decision(path) == (-1, False)
