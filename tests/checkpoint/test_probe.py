import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.checkpoint.load import load_parts
from safelight.checkpoint.probe import probe, verdict
from safelight.errors import CheckpointError
from safelight.models.unet import UNet
from safelight.models.unet_config import UNetConfig

ALPHA = 0.0047**0.5  # Stable Diffusion's at t = 999
SIGMA = (1 - ALPHA**2) ** 0.5


class Ideal(torch.nn.Module):
    """The best predictor for data N(mean, spread²) at t = 999, in closed form."""

    config = UNetConfig(block_out_channels=(32,), cross_attention_dim=8, attention_head_dim=4,
                        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",))  # fmt: skip

    def __init__(self, kind: str, mean: float, spread: float) -> None:
        super().__init__()
        self.kind, self.mean, self.spread = kind, mean, spread
        self.conv_in = torch.nn.Conv2d(4, 1, 1)

    def forward(self, x, timesteps, context):
        assert timesteps.tolist() == [999]
        assert context.shape[-1] == 8
        gain = ALPHA * self.spread**2 / (ALPHA**2 * self.spread**2 + SIGMA**2)
        x0 = self.mean + gain * (x - ALPHA * self.mean)
        noise = (x - ALPHA * x0) / SIGMA
        return noise if self.kind == "epsilon" else ALPHA * noise - SIGMA * x0


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (0.5, 1.0), (0.0, 2.0), (-1.0, 0.5)])
def test_ideal_predictors_of_noise_are_recognised(mean, spread):
    assert probe(Ideal("epsilon", mean, spread)) == "epsilon"


def test_a_predictor_of_v_answers_with_a_picture_not_with_its_input():
    """Real data are no Gaussian: the mean picture varies over the frame far more than its answer to the noise."""

    class Real(Ideal):
        def forward(self, x, timesteps, context):
            stripes = torch.linspace(-1, 1, x.shape[-1]).expand_as(x)
            return super().forward(x, timesteps, context) - SIGMA * stripes

    assert probe(Real("v_prediction", 0.0, 1.0)) == "v_prediction"


def test_between_the_two_there_is_no_answer():
    assert [verdict(c) for c in (0.99, 0.71, 0.5, 0.1, -0.1, -0.9, float("nan"))] == [
        "epsilon", "epsilon", None, "v_prediction", "v_prediction", None, None
    ]  # fmt: skip


def test_a_net_of_zeros_gives_no_answer():
    assert probe(UNet(Ideal.config)) is None


def test_sd2_files_that_do_not_say_are_probed_or_refused(sd2, tmp_path):
    from safelight.checkpoint.save import save_single_file

    save_single_file(load_parts(sd2), tmp_path / "m.safetensors")
    tensors = load_file(tmp_path / "m.safetensors")
    for part in ("weight", "bias"):
        tensors[f"model.diffusion_model.out.2.{part}"].zero_()  # says nothing
    save_file(tensors, tmp_path / "silent.safetensors")
    with pytest.raises(CheckpointError, match="prediction_type"):
        load_parts(tmp_path / "silent.safetensors")
    parts = load_parts(tmp_path / "silent.safetensors", prediction_type="v_prediction")
    assert (parts.family, parts.prediction_from) == ("sd2", "user")
    torch.save({"state_dict": tensors, "global_step": 875000}, tmp_path / "base.ckpt")
    parts = load_parts(tmp_path / "base.ckpt")
    assert (parts.prediction_type, parts.prediction_from) == ("epsilon", "global_step")
    save_file(tensors, tmp_path / "spec.safetensors", {"modelspec.prediction_type": "v"})
    assert load_parts(tmp_path / "spec.safetensors").prediction_type == "v_prediction"
