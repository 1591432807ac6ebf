import logging
import re

import pytest

from engine.config.errors import RunError
from engine.run.log import RunLog, logger


def test_lines_have_their_time_and_are_there_at_once(tmp_path):
    with RunLog(tmp_path / "log.txt"):
        logging.getLogger("convoy").info("step 5/10  loss 0.5")
        logging.getLogger("convoy").warning("disk is nearly full")
        lines = (tmp_path / "log.txt").read_text().splitlines()
    moment = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(rf"{moment} step 5/10  loss 0\.5", lines[0])
    assert re.fullmatch(rf"{moment} WARNING: disk is nearly full", lines[1])


def test_a_later_attempt_adds_to_the_file(tmp_path):
    for attempt in (1, 2):
        with RunLog(tmp_path / "log.txt"):
            logger.info(f"attempt {attempt}")
    assert [line.split(" ", 1)[1] for line in (tmp_path / "log.txt").read_text().splitlines()] == [
        "attempt 1",
        "attempt 2",
    ]


def test_close_leaves_the_logger_as_it_was(tmp_path, caplog):
    caplog.set_level(logging.ERROR, logger="convoy")
    handlers = list(logger.handlers)
    log = RunLog(tmp_path / "log.txt")
    log.close()
    log.close()
    logger.info("after")
    assert (logger.handlers, logger.level, logger.propagate) == (handlers, logging.ERROR, True)
    assert (tmp_path / "log.txt").read_text() == ""


def test_handlers_of_other_libraries_do_not_repeat_a_line(tmp_path, caplog):
    with RunLog(tmp_path / "log.txt"):
        logger.warning("once")
    logger.warning("no run is open")
    assert caplog.messages == ["no run is open"]


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    with pytest.raises(RunError, match=r"gone/log\.txt: cannot be written"):
        RunLog(tmp_path / "gone" / "log.txt")


@pytest.mark.faults
def test_a_full_disk_does_not_stop_the_run_and_is_told_once(tmp_path, capsys):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with RunLog(tmp_path / "log.txt"):
        logger.info("one")
        logger.info("two")
    told = capsys.readouterr().err
    assert told.count("log.txt: cannot be written (No space left on device)") == 1
    assert "Traceback" not in told
