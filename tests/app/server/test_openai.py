"""OpenAI's routes, asked as its clients ask them."""

import io
import socket
import time

import pytest
from PIL import Image
from serving import opened

import safelight

SMALL = {"steps": 2, "size": "64x64"}


def test_pictures_come_in_the_answer_and_are_those_of_their_seeds(asked):
    body = {"model": "random", "prompt": "a fox", "n": 2, "seed": 3, "guidance_scale": 5, "quality": "hd", "user": "me"}
    status, told = asked("/v1/images/generations", body | SMALL, authorization="Bearer sk-anything")
    assert status == 200 and abs(told["created"] - time.time()) < 60
    expected = safelight.text_to_image(
        safelight.load("random"), "a fox", count=2, seed=3, guidance_scale=5, steps=2, width=64, height=64
    )
    assert [opened(one["b64_json"]).tobytes() for one in told["data"]] == [image.tobytes() for image in expected]


def test_other_kinds_of_files_addresses_and_diffusers_names(asked):
    body = {"prompt": "a fox", "num_inference_steps": 1, "size": "64x64", "output_format": "webp"}
    status, told = asked("/v1/images/generations", body)
    assert status == 200 and opened(told["data"][0]["b64_json"]).format == "WEBP"
    told = asked("/v1/images/generations", body | {"response_format": "url"})[1]
    with asked.raw(told["data"][0]["url"].removeprefix(f"http://127.0.0.1:{asked.port}")) as answer:
        assert Image.open(io.BytesIO(answer.read())).size == (64, 64)
    assert [one["id"] for one in asked("/v1/models")[1]["data"]] == ["random"]


WRONG = (
    {"n": 11}, {"n": "two"}, {"size": "large"}, {"size": "65x64"}, {"stream": True}, {"stepz": 1}, {"steps": 0},
    {"response_format": "file"}, {"output_format": "gif"}, {"model": "dall-e-3"},
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_drawn_is_told_in_openais_form(asked, wrong):
    status, told = asked("/v1/images/generations", {"prompt": "a fox"} | wrong)
    assert status == 400 and told["error"]["type"] == "invalid_request_error" and told["error"]["message"]


def test_whoever_hangs_up_stops_the_drawing(asked):
    body = b'{"prompt": "a fox", "steps": 1000, "size": "256x256"}'
    head = ["POST /v1/images/generations HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    head = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""])
    with socket.create_connection(("127.0.0.1", asked.port)) as line:
        line.sendall(head.encode() + body)
        end = time.monotonic() + 30
        while asked("/api/jobs")[1][-1]["state"] != "drawing":
            assert time.monotonic() < end
    job = asked("/api/jobs")[1][-1]
    assert asked(f"/api/jobs/{job['id']}?wait=30")[1]["state"] == "stopped"
