import logging
import re

import pytest

from engine.base.errors import RunError
from engine.run.log import RunLog, logger


def test_lines_have_a_timestamp_and_are_written_immediately(tmp_path):
    with RunLog(tmp_path / "log.txt"):
        logging.getLogger("convoy").info("step 5/10  loss 0.5")
        logging.getLogger("convoy").warning("disk is nearly full")
        lines = (tmp_path / "log.txt").read_text().splitlines()
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"{moment} step 5/10  loss 0\.5", lines[0])
    assert re.fullmatch(rf"{moment} WARNING: disk is nearly full", lines[1])


def test_later_attempt_appends_to_the_log(tmp_path):
    for attempt in (1, 2):
        with RunLog(tmp_path / "log.txt"):
            logger.info(f"attempt {attempt}")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "attempt 1",
        "attempt 2",
    ]


def test_close_restores_the_logger(tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="convoy")
    handlers = list(logger.handlers)
    log = RunLog(tmp_path / "log.txt")
    log.close()
    log.close()
    logger.info("after")
    assert (logger.handlers, logger.level, logger.propagate) == (handlers, logging.ERROR, True)
    assert (tmp_path / "log.txt").read_text() == ""


def test_open_log_does_not_propagate_to_the_root_logger(tmp_path, caplog):
    with RunLog(tmp_path / "log.txt"):
        logger.warning("once")
    logger.warning("no run is open")
    assert caplog.messages == ["no run is open"]


def test_unwritable_log_file_raises(tmp_path):
    with pytest.raises(RunError, match=r"gone/log\.txt: cannot be written"):
        RunLog(tmp_path / "gone" / "log.txt")


@pytest.mark.faults
def test_full_disk_does_not_raise_and_is_reported_once(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with RunLog(tmp_path / "log.txt"):
        logger.info("one")
        logger.info("two")
    errors = capsys.readouterr().err
    assert errors.count("log.txt: cannot be written (No space left on device)") == 1
    assert "Traceback" not in errors
