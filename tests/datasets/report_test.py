import numpy as np

from engine.data.source import ArraySource
from engine.datasets.report import make_report
from engine.datasets.statistics import BadExample, Statistics

TEXT = """\
engine.data.source.ArraySource: 12 examples, 1 bad
  bad: example 3 (record 3 of a.rec): It is damaged.
checksums: 0 of 1 files are as they were written
  damaged: a.rec

bytes per example: 10 to 34, median 22; total 254
  10 - 13  #######################         3
  14 - 17                                  0
  18 - 21                                  0
  22 - 25  ##############################  4
  26 - 29                                  0
  30 - 33                                  0
       34  ##############################  4

label: int64  values 0 to 1
  classes:
  0  90.9%  ##############################  10
  1   9.1%  ###                             1

name: text  constant

x: float32[0 to 2, 3]  values 0 to 9  NOT FINITE in 2 examples (the first: 1, 4)
  length: 0 to 2, median 1
  0  #######################         3
  1  ##############################  4
  2  ##############################  4

duplicates: 3 examples equal an earlier one: 4 = 1, 6 = 0, 9 = 0

read in 0.50 s by 2 processes: 24 examples/s with the check
  read        75%  40 examples/s per process
  decode      25%  120 examples/s per process
note: x has 3 different shapes, and a batch needs one. Pad, bucket or pack it \
(engine.Padded, engine.Bucketed, engine.Packed).
note: x is infinite or not a number in 2 examples. Mask or repair them.
faster: reading takes 75% of the time, most of it waiting for storage: use more data.threads, or a local disk. \
Examples are small: larger files, records or row groups need fewer reads (convoy data write).
faster: decoding takes 25% of the time"""


def test_text_shows_what_was_found():
    found, hashes = Statistics(), []
    for n in range(12):
        if n == 3:
            found.add_bad(BadExample(3, "record 3 of a.rec", "It is damaged."))
            continue
        x = np.full((n % 3, 3), np.inf if n in (1, 4) else n - 2, np.float32)
        hashes.append((n, found.add(n, {"label": int(n == 11), "name": "", "x": x})))
    found.hashes.append(np.array(hashes, np.uint64))
    found.examples, found.times, found.waiting = 12, (0.3 / 4 * 4, 0.1, 0.0, 0.0, 0.0), 0.29
    report = make_report(ArraySource({"x": np.zeros(12)}), found, 1, ["a.rec"], 0.5, 2)
    assert report.to_text()[: len(TEXT)] == TEXT
