"""The queue: an order, an end for everyone, and nothing that one job does to the next."""

import time
from threading import Event

import pytest

from safelight.app.server.jobs import MOST_KEPT, MOST_WAITING, Job, Jobs, QueueFullError, as_preview
from safelight.errors import InputError


def job(**asked):
    return Job("text_to_image", asked, asked)


def until(true, seconds=10.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def held():
    """A queue whose work waits until it is let go, and tells in which order it was begun."""
    let_go, begun = Event(), []

    def work(one):
        begun.append(one)
        while not let_go.wait(0.01):
            one.check()
        return [f"{one.id}.png"]

    jobs = Jobs(work)
    jobs.open()
    yield jobs, let_go, begun
    let_go.set()
    jobs.join()


def test_jobs_are_drawn_in_order_and_know_their_places(held):
    jobs, let_go, begun = held
    three = [job(prompt=str(k)) for k in range(3)]
    for one in three:
        jobs.add(one)
    until(lambda: len(begun) == 1)
    assert [told["position"] for told in jobs.told()] == [0, 1, 2]
    assert [told["state"] for told in jobs.told()] == ["drawing", "waiting", "waiting"]
    let_go.set()
    until(lambda: all(one.state == "done" for one in three))
    assert begun == three
    assert [told["position"] for told in jobs.told()] == [None] * 3
    assert three[2].pictures == [f"{three[2].id}.png"] and three[2].share == 1
    assert three[0].times["asked"] <= three[0].times["begun"] <= three[0].times["ended"]


def test_a_waiting_job_is_stopped_at_once_and_a_drawn_one_at_its_next_step(held):
    jobs, let_go, begun = held
    first, second, third = (job(prompt=str(k)) for k in range(3))
    for one in (first, second, third):
        jobs.add(one)
    until(lambda: begun == [first])
    jobs.stop(second.id)
    assert second.state == "stopped" and third.state == "waiting"
    jobs.stop(first.id)
    until(lambda: first.state == "stopped")
    assert first.pictures == []
    let_go.set()
    until(lambda: third.state == "done")
    assert begun == [first, third]
    assert jobs.stop(third.id).state == "done"  # what has ended stays as it is


def test_what_a_job_raises_ends_it_alone():
    def work(one):
        if one.asked["prompt"] == "bad":
            raise InputError("steps=0", remedy="take one")
        if one.asked["prompt"] == "worse":
            raise ZeroDivisionError("division by zero")
        return ["a.png"]

    jobs = Jobs(work)
    jobs.open()
    three = [job(prompt=word) for word in ("bad", "worse", "good")]
    for one in three:
        jobs.add(one)
    until(lambda: three[2].state == "done")
    assert three[0].state == three[1].state == "failed"
    assert three[0].error == {"what": "steps=0", "remedy": "take one"}
    assert three[1].error["what"] == "ZeroDivisionError: division by zero"
    jobs.join()


def test_a_full_queue_and_a_closed_one_take_no_more(held):
    jobs, _, begun = held
    jobs.add(job())
    until(lambda: len(begun) == 1)
    for _ in range(MOST_WAITING):
        jobs.add(job())
    with pytest.raises(QueueFullError, match=f"{MOST_WAITING} jobs are waiting"):
        jobs.add(job())
    jobs.join()
    assert begun[0].state == "stopped" and len(begun) == 1
    with pytest.raises(QueueFullError, match="stopping"):
        jobs.add(job())


def test_old_jobs_are_forgotten_and_their_requests_let_go_of():
    jobs = Jobs(lambda one: [])
    jobs.open()
    first = job(prompt="first")
    jobs.add(first)
    until(lambda: first.state == "done")
    assert first.request == {} and first.asked == {"prompt": "first"}
    for _ in range(MOST_KEPT + 5):
        one = job()
        jobs.add(one)
        until(lambda one=one: one.state == "done")
    assert len(jobs.told()) <= MOST_KEPT + 1
    with pytest.raises(InputError, match="there is no job"):
        jobs.get(first.id)
    jobs.join()


def test_every_change_makes_a_new_version(held):
    jobs, let_go, begun = held
    seen = jobs.version
    jobs.add(job())
    until(lambda: begun)
    assert jobs.version > seen
    seen = jobs.version
    let_go.set()
    until(lambda: jobs.version > seen)


def test_previews_are_small_jpegs():
    import base64
    import io

    from PIL import Image

    url = as_preview(Image.new("RGB", (1024, 512), "red"))
    image = Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))
    assert image.format == "JPEG" and image.size == (512, 256)
