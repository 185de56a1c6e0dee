"""The tables: CompVis' names in the left column, ours (diffusers') in the right. See `keymap` for how they are read.

Sources: `ldm/modules/diffusionmodules/{openaimodel,model}.py` of CompVis/latent-diffusion for the left column of the
U-Net and of the first stage, open_clip's `transformer.py` for OpenCLIP, diffusers' and transformers' modules for the
right one.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate

from safelight.checkpoint.keymap import KeyMap, Rows, Transform, head_major

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
FIRST_STAGES = (FIRST_STAGE, "vae.", "")  # before the names of an autoencoder in a file of its own, too
CLIP = "cond_stage_model.transformer."
OPENCLIP = "cond_stage_model.model."
COND_STAGE = "cond_stage_model."
SGM = "conditioner.embedders."  # how Stability's generative-models calls its text encoders, by number
CLIP_1, OPENCLIP_2 = f"{SGM}0.transformer.", f"{SGM}1.model."  # Stable Diffusion XL's
EMA = "model_ema."
CONTROLNET = "control_model."
# Empty tensors by which finetunes say what they predict, and that their last step is pure noise (Lin et al. 2023).
V_PREDICTION, ZERO_TERMINAL_SNR = "v_pred", "ztsnr"
# What a training run leaves in a file beside the networks: averages, losses, the schedule's buffers, learned words.
BOOKKEEPING = (
    EMA, f"{FIRST_STAGE}{EMA}", "loss.", f"{FIRST_STAGE}loss.", "betas", "alphas_cumprod", "sqrt_",
    "log_one_minus_alphas_cumprod", "posterior_", "lvlb_weights", "logvar", "scale_factor", "low_scale_model.",
    "denoiser.sigmas", "embedding_manager.", V_PREDICTION, ZERO_TERMINAL_SNR,
)  # fmt: skip
# Networks that are not drawn here: what is no text encoder, MiDaS (SD 2 depth), CLIP's eye with its noise (unCLIP).
NOT_DRAWN = (COND_STAGE, SGM, "depth_model.", "embedder.", "noise_augmentor.")


def inside(place: str, table: str) -> str:
    """The rows of a table within one place: "input_blocks.{n}.0  down_blocks.{i}.resnets.{j}" before each name."""
    theirs, ours = place.split()
    rows = (row.split() for row in table.strip().splitlines())
    return "\n".join(
        " ".join([f"{theirs}.{row[0]}", *(f"{ours}.{name}" if "*" in name else name for name in row[1:])])
        for row in rows
    )


UNET_RESNET = """
in_layers.0.*        norm1.*
in_layers.2.*        conv1.*
emb_layers.1.*       time_emb_proj.*
out_layers.0.*       norm2.*
out_layers.3.*       conv2.*
skip_connection.*    conv_shortcut.*
"""
# The first three rows are the plain AttentionBlock's; a transformer's names are the same on both sides.
UNET_ATTENTION = """
norm.*               group_norm.*
qkv.*                to_q.*  to_k.*  to_v.*     head_major
proj_out.*           to_out.0.*                 conv1d
*                    *
"""
UNET_ENDS = """
time_embed.0.*       time_embedding.linear_1.*
time_embed.2.*       time_embedding.linear_2.*
label_emb.0.0.*      class_embedding.linear_1.*
label_emb.0.2.*      class_embedding.linear_2.*
label_emb.*          class_embedding.*
label_emb.0.0.*      add_embedding.linear_1.*
label_emb.0.2.*      add_embedding.linear_2.*
input_blocks.0.0.*   conv_in.*
out.0.*              conv_norm_out.*
out.2.*              conv_out.*
"""
UNET_DOWN = inside("input_blocks.{n}.0    down_blocks.{i}.resnets.{j}", UNET_RESNET)
UNET_DOWN_ATTENTION = inside("input_blocks.{n}.1    down_blocks.{i}.attentions.{j}", UNET_ATTENTION)
DOWNSAMPLE = "input_blocks.{n}.0.op.*    down_blocks.{i}.downsamplers.0.conv.*\n" + inside(
    "input_blocks.{n}.0    down_blocks.{i}.downsamplers.0", UNET_RESNET
)
UNET_MIDDLE = "\n".join([
    inside("middle_block.0    mid_block.resnets.0", UNET_RESNET),
    inside("middle_block.1    mid_block.attentions.0", UNET_ATTENTION),
    inside("middle_block.2    mid_block.resnets.1", UNET_RESNET),
])  # fmt: skip
UNET_UP = inside("output_blocks.{n}.0    up_blocks.{i}.resnets.{j}", UNET_RESNET)
UNET_UP_ATTENTION = inside("output_blocks.{n}.1    up_blocks.{i}.attentions.{j}", UNET_ATTENTION)
# CompVis appends the upsampling to the last list of a level: after the residual block, or after its attention.
UPSAMPLE = "output_blocks.{n}.{a}.conv.*    up_blocks.{i}.upsamplers.0.conv.*\n" + inside(
    "output_blocks.{n}.{a}    up_blocks.{i}.upsamplers.0", UNET_RESNET
)


def unet_layout(ours: Collection[str], *, down_heads: Sequence[int], mid_heads: int, up_heads: Sequence[int]) -> KeyMap:
    """CompVis' names, without "model.diffusion_model.", for the parameters `ours` of a U-Net.

    The numbers of heads, one for each level in the order of its blocks, say how plain attention blocks lay out their
    qkv.
    """
    rows = _unet_down(Rows(ours), ours, down_heads, mid_heads)
    up = _layers(ours, "up_blocks.{i}.resnets.{j}.")
    for i, (layers, end) in enumerate(zip(up, accumulate(up), strict=True)):
        points = [{"i": i, "j": j, "n": end - layers + j} for j in range(layers)]
        attends = any(name.startswith(f"up_blocks.{i}.attentions.") for name in ours)
        rows.add(UNET_UP, points).add(UNET_UP_ATTENTION, points, head_major=head_major(up_heads[i]))
        rows.add(UPSAMPLE, [{"i": i, "n": end - 1, "a": 1 + attends}])
    return rows.done()


def _unet_down(rows: Rows, ours: Collection[str], down_heads: Sequence[int], mid_heads: int) -> Rows:
    rows.add(UNET_ENDS)
    first = 1  # input_blocks.0 is conv_in
    for i, layers in enumerate(_layers(ours, "down_blocks.{i}.resnets.{j}.")):
        points = [{"i": i, "j": j, "n": first + j} for j in range(layers)]
        rows.add(UNET_DOWN, points).add(UNET_DOWN_ATTENTION, points, head_major=head_major(down_heads[i]))
        rows.add(DOWNSAMPLE, [{"i": i, "n": first + layers}])
        first += layers + 1
    return rows.add(UNET_MIDDLE, head_major=head_major(mid_heads))


# Of the embedding's convolutions the original counts the activations between them as well.
CONTROL = """
zero_convs.{n}.0.*       controlnet_down_blocks.{n}.*
middle_block_out.0.*     controlnet_mid_block.*
input_hint_block.0.*     controlnet_cond_embedding.conv_in.*
input_hint_block.14.*    controlnet_cond_embedding.conv_out.*
"""
CONTROL_EMBEDDING = "input_hint_block.{n}.*    controlnet_cond_embedding.blocks.{k}.*"


def controlnet_layout(ours: Collection[str], *, down_heads: Sequence[int], mid_heads: int) -> KeyMap:
    """The original's names (cldm/cldm.py of lllyasviel/ControlNet), without "control_model.", for a ControlNet."""
    counts = [int(name.split(".")[1]) for name in ours if name.startswith("controlnet_down_blocks.")]
    rows = Rows(ours).add(CONTROL, [{"n": n} for n in range(1 + max(counts))])
    rows.add(CONTROL_EMBEDDING, [{"n": 2 * k + 2, "k": k} for k in range(6)])
    return _unet_down(rows, ours, down_heads, mid_heads).done()


def _layers(ours: Collection[str], template: str) -> list[int]:
    """How many j there are for each i, while there are any."""

    def count(i: int) -> int:
        return next(j for j in range(1000) if not _any(ours, template.format(i=i, j=j)))

    counts: list[int] = []
    while layers := count(len(counts)):
        counts.append(layers)
    return counts


def _any(names: Collection[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


STAGE_RESNET = """
norm1.*              norm1.*
conv1.*              conv1.*
norm2.*              norm2.*
conv2.*              conv2.*
nin_shortcut.*       conv_shortcut.*
"""
STAGE_ATTENTION = """
norm.*               group_norm.*
q.*                  to_q.*         conv2d
k.*                  to_k.*         conv2d
v.*                  to_v.*         conv2d
proj_out.*           to_out.0.*     conv2d
"""
STAGE_HALF = "\n".join([
    "{half}.conv_in.*     {half}.conv_in.*",
    "{half}.conv_out.*    {half}.conv_out.*",
    "{half}.norm_out.*    {half}.conv_norm_out.*",
    inside("{half}.mid.block_1    {half}.mid_block.resnets.0", STAGE_RESNET),
    inside("{half}.mid.attn_1     {half}.mid_block.attentions.0", STAGE_ATTENTION),
    inside("{half}.mid.block_2    {half}.mid_block.resnets.1", STAGE_RESNET),
])  # fmt: skip
# `k` counts CompVis' levels: highest resolution first on both ways, where diffusers counts the way up from the lowest.
STAGE_LEVEL = "\n".join([
    inside("{half}.{way}.{k}.block.{j}    {half}.{way}_blocks.{i}.resnets.{j}", STAGE_RESNET),
    inside("{half}.{way}.{k}.attn.{j}     {half}.{way}_blocks.{i}.attentions.{j}", STAGE_ATTENTION),
])  # fmt: skip
STAGE_RESAMPLE = "{half}.{way}.{k}.{way}sample.conv.*    {half}.{way}_blocks.{i}.{way}samplers.0.conv.*"
STAGE_BOTTLENECK = """
quant_conv.*         quant_conv.*
post_quant_conv.*    post_quant_conv.*
quantize.*           quantize.*
"""


def first_stage_layout(ours: Collection[str]) -> KeyMap:
    """CompVis' names, without "first_stage_model.", for the parameters `ours` of an autoencoder, KL or VQ."""
    rows = Rows(ours).add(STAGE_BOTTLENECK)
    for half, way in (("encoder", "down"), ("decoder", "up")):
        rows.add(STAGE_HALF, [{"half": half}])
        counts = _layers(ours, f"{half}.{way}_blocks.{{i}}.resnets.{{j}}.")
        for i, layers in enumerate(counts):
            level = {"half": half, "way": way, "i": i, "k": i if way == "down" else len(counts) - 1 - i}
            rows.add(STAGE_LEVEL, [{**level, "j": j} for j in range(layers)]).add(STAGE_RESAMPLE, [level])
    return rows.done()


TAESD_DECODER = "{theirs}.*    layers.{n}.*"


def taesd_layout(ours: Collection[str]) -> KeyMap:
    """The original's names (taesd_decoder.pth) for a tiny decoder: its first layer bends the latents."""
    count = 1 + max(int(name.split(".")[1]) for name in ours)
    return Rows(ours).add(TAESD_DECODER, [{"n": n, "theirs": n + 1} for n in range(count)]).done()


CLIP_NAMES = """
text_model.*         text_model.*
text_projection.*    text_projection.*
"""
CLIP_FLAT_NAMES = """
text_projection.*    text_projection.*
*                    text_model.*
"""
OPENCLIP_ENDS = """
positional_embedding        text_model.embeddings.position_embedding.weight
token_embedding.weight      text_model.embeddings.token_embedding.weight
ln_final.*                  text_model.final_layer_norm.*
text_projection             text_projection.weight                             transposed
"""
OPENCLIP_BLOCK = inside("transformer.resblocks.{n}    text_model.encoder.layers.{n}", """
ln_1.*              layer_norm1.*
ln_2.*              layer_norm2.*
attn.in_proj_*      self_attn.q_proj.*  self_attn.k_proj.*  self_attn.v_proj.*    thirds
attn.out_proj.*     self_attn.out_proj.*
mlp.c_fc.*          mlp.fc1.*
mlp.c_proj.*        mlp.fc2.*
""")  # fmt: skip


def clip_layout(ours: Collection[str], *, flat: bool = False) -> KeyMap:
    """transformers' names for a text encoder; `flat` where "text_model." is missing (old merges, transformers 5)."""
    return Rows(ours).add(CLIP_FLAT_NAMES if flat else CLIP_NAMES).done()


def openclip_layout(ours: Collection[str]) -> KeyMap:
    """open_clip's names for a text encoder."""
    layers = {int(name.split(".")[3]) for name in ours if name.startswith("text_model.encoder.layers.")}
    return Rows(ours).add(OPENCLIP_ENDS).add(OPENCLIP_BLOCK, [{"n": n} for n in sorted(layers)]).done()


CONDITIONER = """
channel_mapper.weight    embedding.weight    channel_mapper
*                        *
"""
# The original's 1x1 convolution of one channel a class, (C, classes, 1, 1), is our table (classes, C).
CHANNEL_MAPPER = Transform("channel_mapper", lambda t: (t.flatten(1).T,), lambda o: o[0].T[..., None, None])


def conditioner_layout(ours: Collection[str], *, of_maps: bool) -> KeyMap:
    """CompVis' names, without "cond_stage_model.", for what tells a U-Net of a class, or, `of_maps`, of a map of them.

    What the original has no names for, such as a layout's embedder, keeps its own.
    """
    table = CONDITIONER if of_maps else "*    *"
    return Rows(ours).add(table, channel_mapper=CHANNEL_MAPPER).done()


# Until 0.17 diffusers' AttentionBlock had names of its own.
OLD_ATTENTION = """
{p}.query.*          {p}.to_q.*
{p}.key.*            {p}.to_k.*
{p}.value.*          {p}.to_v.*
{p}.proj_attn.*      {p}.to_out.0.*
"""


def diffusers_layout(ours: Collection[str], theirs: Collection[str]) -> KeyMap:
    """diffusers' names, new or old: whichever the file `theirs` uses."""
    rows = Rows(ours)
    for name in ours:
        place = name.removesuffix(".group_norm.weight")
        if place != name and f"{place}.query.weight" in theirs:
            rows.add(OLD_ATTENTION, [{"p": place}])
    return rows.add("*    *").done()


def compvis_names(theirs: Collection[str]) -> dict[str, str]:
    """The names of a single file from elsewhere in CompVis' words -> as they are in the file.

    Stability's generative-models (sd_turbo.safetensors) calls the only text encoder the first of the conditioner's.
    Where there are two it is Stable Diffusion XL, whose names are left as they are. A U-Net alone may have "model."
    or all of its prefix left out.
    """
    for prefix in ("diffusion_model.", ""):
        if f"{prefix}input_blocks.0.0.weight" in theirs:
            return {key if is_bookkeeping(key) else UNET + key.removeprefix(prefix): key for key in theirs}
    ours = {key: key for key in theirs}
    if _any(theirs, f"{SGM}0.") and not _any(theirs, f"{SGM}1."):
        ours = {key.replace(f"{SGM}0.", COND_STAGE, 1) if key.startswith(SGM) else key: key for key in theirs}
    return ours


def is_bookkeeping(key: str) -> bool:
    """Whether a tensor of a CompVis file belongs to training, not to a network."""
    return key.startswith(BOOKKEEPING)


def is_position_ids(key: str) -> bool:
    """Whether a tensor is CLIP's buffer 0..76, which some files lack and some hold as floating point."""
    return key.endswith("embeddings.position_ids")


def ema_names(keys: Collection[str]) -> Iterator[tuple[str, str]]:
    """Pairs (U-Net parameter, its moving average): LitEma takes all dots out of a name and "model_ema." before it."""
    for key in keys:
        if key.startswith("model."):
            average = EMA + key.removeprefix("model.").replace(".", "")
            if average in keys:
                yield key, average
