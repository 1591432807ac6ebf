import time

from engine.launch.local import Outcome, ProcessExit
from engine.ray.exits import Exits
from engine.ray.process import News
from engine.run import status


def news(step: int | None = None, outcome: Outcome | None = None, now: float = 0.0, path: str = "") -> News:
    return News([], 0, step, path, 7, now, outcome)


def ended(index: int, code: int, when: float, blaming: bool = False, unexplained: bool = False) -> News:
    exits = [ProcessExit(index, code, when, 7)]
    return news(3, Outcome(exits, {index} if unexplained else set(), {index} if blaming else set(), False), when + 1)


def test_clocks_of_nodes_are_compared_by_the_time_at_which_their_news_arrive():
    exits = Exits(3)
    exits.take(0, ended(0, 1, when=5000), received=101)  # a node that has run for longer
    exits.take(1, ended(1, 43, when=8), received=100)
    assert exits.running == [2] and exits.failed
    exits.take(2, ended(2, 0, when=1), received=90)
    found, reason = exits.in_order()
    assert [(end.index, end.time) for end in found] == [(1, 99), (0, 100), (2, 89)]
    assert reason == "process 1 ended first, with 43 (do not retry)" and exits.running == []


def test_lost_node_comes_before_the_processes_that_lost_their_peer():
    exits = Exits(3)
    exits.take(1, news(9), received=time.monotonic())
    exits.take(0, ended(0, 42, when=time.monotonic(), blaming=True), received=time.monotonic() + 1)
    exits.killed.update([1, 2])  # the launcher has tried to end the rest
    exits.lose(2, 137, "")
    exits.lose_node(1, "node a is lost.")
    found, reason = exits.in_order()
    assert [(end.index, end.code, end.text) for end in found] == [(1, 42, "node a is lost."), (0, 42, ""), (2, 137, "")]
    assert reason == "node a is lost." and exits.lost_nodes == {1: "node a is lost."}
    assert found[0].step == 9  # of the job


def test_worker_that_ran_out_of_memory_is_told_apart():
    exits = Exits(1)
    exits.lose(0, 137, "", out_of_memory=True)
    [found], _ = exits.in_order()
    assert found.out_of_memory and "memory ran out" in found.explanation


def test_status_is_that_of_the_run_once_a_process_has_named_it(tmp_path):
    exits = Exits(2)
    assert exits.status is None
    exits.take(1, news(path=str(tmp_path / "status.json")), received=0)
    assert exits.status is None  # the file does not exist yet
    status.write(tmp_path / "status.json", status.Status(state="training"))
    assert exits.status == tmp_path / "status.json" and not exits.failed
