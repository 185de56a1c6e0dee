"""`safelight serve` as a user starts and stops it."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
from command_line import run, told


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def serving(tmp_path):
    """A server in a process of its own; how it ended is asked by `ended`."""
    port = free_port()
    command = [sys.executable, "-m", "safelight", "serve", "--model", "random", "--port", str(port)]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while True:
        try:
            urlopen(f"http://localhost:{port}/health", timeout=5).close()
            break
        except (URLError, ConnectionError):
            assert process.poll() is None and time.monotonic() < end, process.stderr.read()
            time.sleep(0.1)
    yield port, process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_it_draws_into_its_folder_and_stops_when_it_is_told_to(serving, tmp_path, sign):
    port, process = serving
    address = f"http://localhost:{port}"
    body = json.dumps({"prompt": "a fox", "steps": 1, "width": 64, "height": 64, "seed": 5}).encode()
    with urlopen(Request(f"{address}/api/tasks/text_to_image", body, {"content-type": "application/json"})) as answer:
        job = json.load(answer)
    with urlopen(f"{address}/api/jobs/{job['id']}?wait=60") as answer:
        assert json.load(answer)["state"] == "done"
    assert (tmp_path / "outputs" / "a-fox-5.png").exists()
    long = json.dumps({"prompt": "a fox", "steps": 1000, "width": 256, "height": 256}).encode()
    urlopen(Request(f"{address}/api/tasks/text_to_image", long, {"content-type": "application/json"})).close()
    with urlopen(f"{address}/api/events") as listening:  # whoever listens does not hold it up
        listening.readline()
        begun = time.monotonic()
        process.send_signal(sign)
        process.wait(30)
    assert time.monotonic() - begun < 25
    said = process.stderr.read()
    assert process.returncode in (0, -sign) and "Traceback" not in said
    assert re.search(rf"draws at {address}", said)
    assert [file.name for file in (tmp_path / "outputs").iterdir()] == ["a-fox-5.png"]


def test_others_than_this_machine_need_a_token(monkeypatch):
    monkeypatch.delenv("SAFELIGHT_TOKEN", raising=False)
    said = told("serve", "--host", "0.0.0.0", code=2)
    assert "everyone who reaches 0.0.0.0" in said and "SAFELIGHT_TOKEN=" in said


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("safelight.app.serve_command.find_spec", lambda name: None)
    said = told("serve", code=1)
    assert "fastapi and uvicorn" in said and "safelight[server]" in said


def test_a_model_that_is_not_there_and_a_port_that_is_taken_are_told_at_the_start(tmp_path):
    ran = run("serve", "--model", tmp_path / "none", cwd=tmp_path)
    assert ran.returncode == 1 and "none" in ran.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = subprocess.run([sys.executable, "-m", "safelight", "serve", "--model", "random", "--port", str(port)],
                                 cwd=tmp_path, capture_output=True, text=True, timeout=120)  # fmt: skip
    assert process.returncode == 2 and f"port {port}" in process.stderr and "--port" in process.stderr
