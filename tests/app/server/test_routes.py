"""The server as programs meet it: a real one, on a port of this machine, with the untrained stand-in."""

import base64
import io
import json
import re
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from PIL import Image

import safelight
from safelight.app.server.routes import PAGE
from safelight.pipeline.tasks import TASKS

SMALL = {"steps": 2, "width": 64, "height": 64}


def fetched(asked, name):
    with asked.raw(f"/pictures/{name}") as answer:
        assert answer.headers["content-type"] == "image/png"
        return Image.open(io.BytesIO(answer.read())).convert("RGB")


def as_data(image):
    file = io.BytesIO()
    image.save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_a_picture_is_the_one_that_python_draws(asked):
    job = asked.drawn("text_to_image", prompt="a fox", seed=3, **SMALL)
    assert job["state"] == "done" and job["share"] == 1 and job["error"] is None
    (name,) = job["pictures"]
    expected = safelight.text_to_image(safelight.load("random"), "a fox", seed=3, **SMALL)[0]
    assert fetched(asked, name).tobytes() == expected.tobytes()
    status, made = asked(f"/api/pictures/{name}")
    assert status == 200 and made["request"]["seed"] == 3 and made["task"] == "text_to_image"
    assert asked("/api/pictures")[1][0] == name


def test_pictures_go_in_and_come_out(asked):
    image = Image.new("RGB", (64, 64), "red")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    job = asked.drawn("inpaint", prompt="a fox", image=as_data(image), mask=as_data(mask), steps=2, seed=1)
    painted = fetched(asked, job["pictures"][0])
    assert painted.getpixel((60, 5)) == (255, 0, 0) != painted.getpixel((5, 5))
    again = asked.drawn("image_to_image", prompt="a fox", image=job["pictures"][0], steps=2, strength=0.5, count=3)
    assert len(again["pictures"]) == 3 and again["request"]["count"] == 3
    sent = asked("/api/read", {"picture": as_data(image)})
    assert sent[0] == 422 and "says nothing" in sent[1]["error"]["what"]
    with asked.raw(f"/pictures/{job['pictures'][0]}") as answer:
        read = asked("/api/read", {"picture": base64.b64encode(answer.read()).decode()})
    assert read[0] == 200 and read[1]["task"] == "inpaint" and read[1]["request"]["seed"] == 1


def test_events_tell_how_far_a_job_is_with_previews_until_it_is_done(asked):
    with asked.raw("/api/events") as stream:
        job = asked("/api/tasks/text_to_image", {"prompt": "a fox", "steps": 6, "count": 2, "width": 64, "height": 64})[
            1
        ]
        seen = []
        for line in stream:
            if line.startswith(b"data: "):
                mine = [told for told in json.loads(line[6:]) if told["id"] == job["id"]]
                seen += mine
                if mine and mine[0]["state"] == "done":
                    break
    shares = [told["share"] for told in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    previews = next(told["previews"] for told in seen if told["previews"])
    assert len(previews) == 2 and all(url.startswith("data:image/jpeg;base64,") for url in previews)
    assert len(seen[-1]["pictures"]) == 2


def test_a_job_can_be_stopped(asked):
    long = asked("/api/tasks/text_to_image", {"prompt": "a fox", "steps": 1000, "width": 256, "height": 256})[1]
    waiting = asked("/api/tasks/text_to_image", {"prompt": "a wolf", **SMALL})[1]
    assert waiting["position"] == 1
    assert asked(f"/api/jobs/{waiting['id']}", method="DELETE")[1]["state"] == "stopped"
    asked(f"/api/jobs/{long['id']}", method="DELETE")
    ended = asked(f"/api/jobs/{long['id']}?wait=30")[1]
    assert ended["state"] == "stopped" and ended["pictures"] == []
    assert asked.drawn("text_to_image", prompt="a fox", **SMALL)["state"] == "done"


@pytest.mark.parametrize(("body", "what"), [
    ({"prompt": "a fox", "steps": 0}, "steps=0"),
    ({"prompt": "a fox", "width": 65}, "width=65"),
    ({"prompt": "a fox", "steps": "many"}, "steps='many'"),
    ({"prompt": "a fox", "seed": 1e400}, "seed"),
    ({"prompt": "a fox", "sampler": "magic"}, "magic"),
    ({"prompt": "a fox", "stesp": 3}, "unknown field 'stesp'"),
    ({"prompt": "a fox", "model": "/etc/passwd"}, "is not offered"),
    ({"prompt": "a fox", "model": ["random"]}, "is not offered"),
    ([1, 2], "body"),
])  # fmt: skip
def test_what_cannot_be_drawn_is_refused_before_it_waits(asked, body, what):
    before = len(asked("/api/jobs")[1])
    status, told = asked("/api/tasks/text_to_image", body)
    assert status == 422 and what in told["error"]["what"] and told["error"]["remedy"]
    assert len(asked("/api/jobs")[1]) == before


def test_what_fails_while_it_is_drawn_says_why(asked):
    job = asked.drawn("class_to_image", label="cat")
    assert job["state"] == "failed" and job["error"]["remedy"]


def test_what_is_not_there_is_told_with_a_404(asked):
    for path in ("/api/jobs/none", "/pictures/none.png", "/pictures/..%2f..%2fetc%2fpasswd", "/api/pictures/none.png",
                 "/none", "/page/none.js", "/page/..%2froutes.py", "/page/../routes.py"):  # fmt: skip
        status, told = asked(path)
        assert status == 404 and told["error"]["what"], path
    assert asked("/api/tasks/none", {"prompt": "a fox"})[0] in (404, 405)


def test_a_body_that_is_no_json_is_refused(asked):
    for body in (b"{", b"[" * 200_000, b"\xff\xfe", b"", b"null"):
        told = Request(f"http://127.0.0.1:{asked.port}/api/tasks/text_to_image", body,
                       {"content-type": "application/json"}, method="POST")  # fmt: skip
        with pytest.raises(HTTPError) as refused:
            urlopen(told)
        assert refused.value.code in (400, 422) and json.load(refused.value)["error"]["what"]


def test_a_strangers_page_gets_nothing(asked):
    assert asked("/api/jobs", host="evil.example")[0] == 403
    assert asked("/api/tasks/text_to_image", {"prompt": "a fox"}, origin="http://evil.example")[0] == 403
    with asked.raw("/") as answer:
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_every_task_has_a_route_with_its_schema(asked):
    described = asked("/openapi.json")[1]["paths"]
    shown = asked("/api/tasks")[1]
    assert set(shown["tasks"]) == set(TASKS) and shown["models"] == ["random"]
    assert "inpaint" in shown["tasks_of"]["random"] and "upscale" not in shown["tasks_of"]["random"]
    for task in TASKS:
        body = described[f"/api/tasks/{task}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert {"steps", "seed", "model"} <= set(body["properties"])


def test_the_page_is_whole(asked):
    """No build step checks it: each file that one names is there, each element that a script asks for, each task."""
    html = (PAGE / "index.html").read_text()
    scripts = {file.name: file.read_text() for file in PAGE.glob("*.js")}
    for name in re.findall(r'(?:href|src)="(/page/[^"]+)"', html):
        with asked.raw(name) as answer:
            assert answer.status == 200
    ids = set(re.findall(r'id="([\w-]+)"', html))
    for name, text in scripts.items():
        assert set(re.findall(r'from "\./([\w.]+)"', text)) <= set(scripts)
        assert set(re.findall(r'\$\("([\w-]+)"\)|getElementById\("([\w-]+)"\)', text)) <= {(one, "") for one in ids} | {
            ("", one) for one in ids
        }, name
        for imported, module in re.findall(r'import \{ ([^}]+) \} from "\./([\w.]+)"', text):
            for one in imported.split(", "):
                assert re.search(rf"export .*\b{one}\b", scripts[module]), f"{name} imports {one} of {module}"
    labels = re.search(r"const LABELS = \{(.*?)\}", scripts["main.js"], re.S).group(1)
    assert set(re.findall(r"(\w+):", labels)) == set(TASKS)
    assert sum(len(file.read_bytes()) for file in PAGE.iterdir()) < 60_000
