"""Who takes part: for each, the module in `engines` that runs it, and the packages it needs, by exact version.

What is not pinned here is pinned by constraints.txt. torch is the very build that Safelight runs on: of a range of
versions pip would fetch the newest, which on Linux is gigabytes of CUDA.
"""

from dataclasses import dataclass
from importlib.metadata import version

TORCH = f"torch=={version('torch')}"
DIFFUSERS = (TORCH, "diffusers", "transformers", "accelerate")
OPENVINO = (*DIFFUSERS, "openvino==2026.4.1")
INT8 = (*OPENVINO, "nncf==3.4.0")


@dataclass(frozen=True)
class Contestant:
    """One column of the page. `mode` tells an engine which of its ways to take; `converts` that it has a `prepare`."""

    name: str
    label: str
    engine: str
    packages: tuple[str, ...] = ()
    mode: str = ""
    converts: bool = False

    @property
    def ours(self) -> bool:
        """Whether it runs in Safelight's own environment."""
        return not self.packages


CONTESTANTS = {
    one.name: one
    for one in (
        Contestant("safelight", "Safelight", "safelight_engine"),
        Contestant("int8-ours", "Safelight int8", "safelight_engine", mode="int8"),
        Contestant("diffusers", "diffusers", "diffusers_engine", DIFFUSERS),
        Contestant("compiled", "diffusers, compiled", "diffusers_engine", DIFFUSERS, mode="compiled"),
        Contestant("openvino", "OpenVINO", "openvino_engine", OPENVINO, converts=True),
        Contestant("int8", "OpenVINO int8 (NNCF)", "openvino_engine", INT8, mode="int8", converts=True),
        Contestant("sdcpp", "stable-diffusion.cpp", "sdcpp_engine", ("stable-diffusion-cpp-python==0.4.7",)),
    )
}
