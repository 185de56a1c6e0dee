"""A real server on a port of this machine, with the untrained stand-in, and how to ask it."""

import base64
import io
import json
import time
from threading import Thread
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import uvicorn
from PIL import Image

from safelight.app.server.darkroom import Darkroom
from safelight.app.server.gallery import Gallery
from safelight.app.server.jobs import Jobs
from safelight.app.server.routes import create_app


def opened(text):
    """A picture from base64."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def sent(image):
    """A picture as PNG in base64."""
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


class Asked:
    """A server, and how to ask it."""

    def __init__(self, folder):
        darkroom = Darkroom(Gallery(folder), ["random"], loading={})
        darkroom.warm()
        self.jobs = Jobs(darkroom.draw)
        darkroom.changed = self.jobs.changed
        app = create_app(self.jobs, darkroom)
        self.server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=5))
        self.thread = Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        (self.port,) = (one.getsockname()[1] for server in self.server.servers for one in server.sockets)

    def stop(self):
        self.jobs.close()
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()

    def raw(self, path, body=None, method=None, **headers):
        content = None if body is None else json.dumps(body).encode()
        headers = ({"content-type": "application/json"} if content else {}) | headers
        return urlopen(Request(f"http://127.0.0.1:{self.port}{path}", content, headers, method=method), timeout=60)

    def __call__(self, path, body=None, method=None, **headers):
        try:
            with self.raw(path, body, method, **headers) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            return error.code, json.load(error)

    def drawn(self, task, **body):
        status, job = self(f"/api/tasks/{task}", body)
        assert status == 202, job
        return self(f"/api/jobs/{job['id']}?wait=60")[1]
