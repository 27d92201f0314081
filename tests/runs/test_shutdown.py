import os
import signal

import pytest

from vineppo.runs.shutdown import Shutdown, Stopped


def work_that_is_signalled(shutdown: Shutdown, signum: int) -> None:
    with shutdown.interruptible():
        os.kill(os.getpid(), signum)
        pytest.fail("went on after the signal")


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_work_that_may_be_thrown_away_stops_at_once(signum, exit_code):
    with Shutdown(pytest.fail).installed() as shutdown, pytest.raises(Stopped) as stopped:
        work_that_is_signalled(shutdown, signum)
    assert stopped.value.exit_code == exit_code


def test_other_work_is_finished_first():
    said = []
    with Shutdown(said.append).installed() as shutdown:
        os.kill(os.getpid(), signal.SIGTERM)
        said.append("worked on")
        with pytest.raises(Stopped):
            shutdown.check()
    assert said[-1] == "worked on"
    assert "checkpoint" in said[0]


def test_a_request_is_met_when_interruptible_work_would_begin():
    with Shutdown(lambda _: None).installed() as shutdown:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Stopped), shutdown.interruptible():
            pytest.fail("began work after the signal")


def test_the_handlers_before_come_back():
    before = signal.getsignal(signal.SIGINT)
    with Shutdown(lambda _: None).installed():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
