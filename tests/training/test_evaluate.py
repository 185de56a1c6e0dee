"""Evaluations from end to end, on small sprites and untrained networks; and what pictures score that are known."""

import json
import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from sprite_sets import write_sprites

from safelight.checkpoint.save import save_autoencoder
from safelight.errors import InputError, NonFiniteError
from safelight.models.presets import levels
from safelight.models.unet import UNet
from safelight.pipeline.standin import random_model
from safelight.pipeline.tasks import text_to_image
from safelight.training.data.collections import CollectionError, open_collection
from safelight.training.evaluation.classifier import (
    ClassifierData,
    ClassifierStage,
    Judge,
    Labels,
    lone_things,
    new_classifier,
)
from safelight.training.evaluation.classifier_config import ClassifierRecipe
from safelight.training.evaluation.comparing import (
    compare_copies,
    compare_reconstructions,
    compare_samples,
    compare_variety,
)
from safelight.training.evaluation.evaluate import Subject, Tools, as_bytes, asked, evaluate, open_subject, sections
from safelight.training.evaluation.evaluate_config import EvaluateOptions
from safelight.training.evaluation.features import dct_features
from safelight.training.evaluation.metrics import SizesDiffer, TooFewPictures
from safelight.training.evaluation.references import References
from safelight.training.evaluation.report import Figure, Report

UNCONDITIONAL = {**levels("", "", "", "Attn"), "mid_block_type": "UNetMidBlock2D", "cross_attention_dim": 32,
                 "attention_head_dim": 8}  # fmt: skip
DCT = (dct_features(side=16, keep=2),)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return open_collection(write_sprites(tmp_path_factory.mktemp("sprites") / "set"))


@pytest.fixture(scope="module")
def judge_folder(collection, tmp_path_factory):
    """An untrained classifier, as a training writes it."""
    recipe = ClassifierRecipe(data="", size=32, channels=(8, 8), features=8)
    labels = Labels.of(collection)
    torch.manual_seed(0)
    network = new_classifier(labels, recipe)
    stage = ClassifierStage(network, labels, recipe, ClassifierData(lone_things(collection, 32), labels))
    folder = tmp_path_factory.mktemp("classifier") / "model"
    stage.finish(folder, {"classifier": network.state_dict()}, {"steps": 0})
    return folder


ASKED = {"prompts", "new_pairs", "other_names"}


@pytest.fixture(scope="module")
def options(collection, judge_folder):
    return EvaluateOptions(
        data=str(collection.path), count=8, size=64, steps=2, batch_size=4, variety=2, varied_prompts=2, neighbours=8,
        classifier=str(judge_folder),
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(options):
    return evaluate("random", options, device="cpu")


def pictures(n=12, seed=0, size=16):
    return torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# A model


def test_everything_is_measured(report):
    assert {figure.section for figure in report.figures} == {"reconstruction", "samples", *ASKED}
    names = {(figure.section, figure.name) for figure in report.figures}
    assert names >= {("reconstruction", "PSNR (dB)"), ("reconstruction", "SSIM"), ("reconstruction", "rFD-own"),
                     ("samples", "FD-dct"), ("samples", "KD-own"), ("samples", "precision"), ("samples", "coverage"),
                     ("samples", "variety within a prompt"), ("prompts", "concept (top 5)"),
                     ("new_pairs", "place")}  # fmt: skip
    assert not any("FID" in name or "KID" in name for _, name in names)
    assert all(not math.isnan(figure.value) and 0 < figure.pictures <= 16 for figure in report.figures)
    assert set(report.sheets) == {"reconstruction", "samples", "variety", "nearest", *ASKED}


def test_untrained_draws_badly(report):
    """Coloured noise is no scene of shapes: much farther from real scenes than other real ones are."""
    frechet = next(figure for figure in report.figures if figure.name == "FD-dct")
    assert frechet.real is not None and frechet.value > 2 * frechet.real


def test_the_same_again(report, options):
    again = evaluate("random", options, device="cpu")
    assert again.figures == report.figures
    assert all(again.sheets[name].tobytes() == sheet.tobytes() for name, sheet in report.sheets.items())


def test_report_is_written_whole(report, tmp_path, judge_folder):
    report.write(tmp_path / "out")
    read = json.loads((tmp_path / "out" / "report.json").read_text())
    assert read["guidance_scale"] == random_model().guidance_scale  # nothing was asked
    assert read["model"] == "random" and read["size"] == 64 and read["machine"]["device"].startswith("cpu")
    judge = Judge.load(judge_folder)
    assert read["measured with"][judge.extractor.name] == judge.sha256
    assert read["compared with"]["reconstruction"] == "scenes of held-out sprites"
    assert set(read["seconds"]) == {"reconstruction", "samples", "prompts"}
    assert len(read["figures"]) == len(report.figures)
    card = (tmp_path / "out" / "report.md").read_text()
    assert "### Prompt following" in card and "| SSIM ↑ |" in card
    assert Image.open(tmp_path / "out" / "nearest.png").size == report.sheets["nearest"].size


# Other subjects


@pytest.mark.parametrize("classes", [None, 3])
def test_models_without_text(options, classes):
    """They draw what they will, or their classes in turn; nothing can be asked of them in words."""
    model = random_model()
    shape = replace(model.unet.config, **UNCONDITIONAL, num_class_embeds=classes)
    untexted = replace(model, unet=UNet(shape).eval(), text_encoder=None, tokenizer=None)
    told = asked(untexted, ["a", "b", "c"], first=3, each=2, guidance_scale=2.0)
    if classes:
        assert told["prompt"].class_labels.tolist() == [1, 0, 1]
        assert told["negative_prompt"].class_labels.tolist() == [2, 2, 2]
    assert len(text_to_image(untexted, **told, steps=1, width=64, height=64)) == 6
    assert sections(Subject("x", untexted, untexted.autoencoder), options, Tools(DCT)) == ["reconstruction", "samples"]


def test_an_autoencoder_alone(options, tmp_path):
    save_autoencoder(random_model().autoencoder, tmp_path / "vae")
    got = evaluate(tmp_path / "vae", options, device="cpu")
    assert {figure.section for figure in got.figures} == {"reconstruction"}
    with pytest.raises(InputError, match=r"samples of .* needs a model, or pictures"):
        evaluate(tmp_path / "vae", options.model_copy(update={"what": "samples"}), device="cpu")


@pytest.fixture
def folder(collection, tmp_path):
    """The training's own scenes, given out as a model's."""
    source = References(collection, 64).training
    for i, picture in enumerate(as_bytes(torch.cat(list(source.batches(8, 8))))):
        Image.fromarray(picture.movedim(0, -1).numpy()).save(tmp_path / f"{i:02}.png")
    return tmp_path


def test_a_folder_of_copies(folder, options):
    got = evaluate(folder, options.model_copy(update={"size": None}), device="cpu")
    assert {figure.section for figure in got.figures} == {"samples"}
    nearest = [figure for figure in got.figures if "nearest" in figure.name]
    assert all(figure.value == 0 and figure.real > 0 for figure in nearest) and len(nearest) == 3
    assert all(figure.value == 1 for figure in got.figures if "copies" in figure.name)


def test_folders_that_cannot_be_measured(folder, options, tmp_path_factory):
    with pytest.raises(SizesDiffer, match="64x64 pixels, the real ones 32x32"):
        evaluate(folder, options.model_copy(update={"size": 32}), device="cpu")
    Image.new("RGB", (40, 64)).save(folder / "x.png")
    with pytest.raises(InputError, match="of 2 sizes"):
        evaluate(folder, options.model_copy(update={"count": 9}), device="cpu")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(CollectionError, match="holds no pictures"):
        open_subject(empty)
    Image.new("RGB", (40, 64)).save(empty / "x.png")
    with pytest.raises(InputError, match="40x64 pixels are not square"):
        evaluate(empty, options.model_copy(update={"size": None}), device="cpu")
    with pytest.raises(TooFewPictures, match="1 pictures are too few"):
        Image.new("RGB", (64, 64)).save(empty / "x.png")
        evaluate(empty, options.model_copy(update={"size": None}), device="cpu")


def test_what_is_missing_is_named(options, folder):
    with pytest.raises(InputError, match="no real pictures"):
        evaluate("random", EvaluateOptions(), device="cpu")
    with pytest.raises(InputError, match="needs a --classifier"):
        evaluate("random", options.model_copy(update={"what": "prompts", "classifier": None}), device="cpu")


def test_plain_collections_compare_with_other_splits(tmp_path):
    rows = []
    for i in range(10):
        Image.new("RGB", (20, 20), (25 * i, 0, 0)).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": f"number {i}", "split": "test" if i >= 7 else "train"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    references = References(open_collection(tmp_path), 16)
    assert references.apart and not references.scenic
    assert sorted(references.new.captions(5)) == ["number 7", "number 8", "number 9"]
    assert sum(map(len, references.training.batches(100, 4))) == 7
    assert references.unseen is references.new


@pytest.mark.parametrize("splits", [False, True])
def test_where_no_real_pictures_are_left_to_compare_with_the_report_says_so(splits, tmp_path):
    chance, rows = torch.Generator().manual_seed(0), []
    for i in range(12):
        noise = torch.randint(0, 256, (16, 16, 3), dtype=torch.uint8, generator=chance)
        Image.fromarray(noise.numpy()).save(tmp_path / f"{i}.png")
        rows.append({"file_name": f"{i}.png", "text": "", "split": "test" if splits and i % 2 else "train"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    asked_for = EvaluateOptions(data=str(tmp_path), count=6, neighbours=6)
    report = evaluate(tmp_path, asked_for, device="cpu")
    told = " ".join(report.remarks)
    if splits:  # six of them: one set, and no other
        assert "6 more pictures, and the 6 of this collection are too few" in told and "--count 3" in told
        assert "knows no splits" not in told
    else:
        assert "knows no splits" in told and "too few" not in told
    assert told in " ".join(line.removeprefix("* ") for line in report.markdown().splitlines())
    assert report.as_dict()["remarks"] == list(report.remarks)


# Pictures that are known


def test_perfect_reconstructions():
    figures, sheet = compare_reconstructions(pictures(), pictures(), DCT)
    values = {figure.name: figure.value for figure in figures}
    assert values["PSNR (dB)"] == math.inf and values["SSIM"] == 1 and values["rFD-dct"] == pytest.approx(0, abs=1e-9)
    report = Report({"model": "x"}, tuple(figures))
    assert report.as_dict()["figures"][0]["value"] == "infinity" and "| PSNR (dB) ↑ | ∞ |" in report.markdown()
    json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert sheet.width > 8 * 16


def test_perfect_samples():
    figures, _ = compare_samples(pictures(), pictures(), pictures(seed=1), DCT)
    values = {figure.name: (figure.value, figure.real) for figure in figures}
    assert values["FD-dct"][0] == pytest.approx(0, abs=1e-9) and values["FD-dct"][1] > 0
    assert values["precision"][0] == values["recall"][0] == values["coverage"][0] == 1


def test_few_pictures_are_noted():
    figures, _ = compare_samples(pictures(5), pictures(5, seed=1), pictures(0), DCT)
    frechet = figures[0]
    assert frechet.note == "fewer pictures than features: too large" and frechet.real is None
    assert {figure.name for figure in figures} == {"FD-dct", "KD-dct"}  # no manifold of 5 neighbours


def test_variety_of_one_picture_is_none():
    one = pictures(1).repeat(4, 1, 1, 1)
    figures, _ = compare_variety(torch.cat([one, one]), ["a", "b"], pictures(), DCT)
    assert figures[0].value == 0 and figures[0].real > 0


def test_copies_are_found():
    training, known = pictures(20), pictures(10, seed=1)
    half = torch.cat([training[:5], pictures(5, seed=2)])
    figures, _ = compare_copies(half, training, known, DCT)
    shares = [figure.value for figure in figures if figure.name.startswith("suspected")]
    assert len(shares) == 2 and all(0.5 <= share <= 0.7 for share in shares)
    figures, _ = compare_copies(half, training, None, DCT)
    assert not any(figure.name.startswith("suspected") for figure in figures)


def test_nan_is_no_picture():
    with pytest.raises(NonFiniteError):
        as_bytes(torch.full((1, 3, 4, 4), torch.nan))


def test_figures_are_found_by_name():
    report = Report({}, (Figure("samples", "FID", 3.0, 10),))
    assert report.value("samples", "FID") == 3
    with pytest.raises(KeyError):
        report.value("prompts", "FID")
