from engine.sweeps import timeouts


def test_trial_waits_for_many_polls_of_the_driver():
    for poll in (timeouts.POLL_S, timeouts.CLUSTER_POLL_S):
        assert 5 * poll < timeouts.DECISION_S
    assert timeouts.STOP_S > timeouts.DECISION_S  # a run may wait for a decision when it is asked to stop
