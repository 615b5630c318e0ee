"""The command line on the bundled model: what it writes, and one clear line for bad input."""

import json
import shutil
import subprocess
import sys

import pytest
from helpers import BY_NAME
from PIL import Image, ImageChops

from fastdit import cli, zoo
from fastdit.cli import options

MODEL = "fastdit/emoji-image"


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastdit", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def test_generate_writes_a_picture_with_its_settings(monkeypatch, capsys, tmp_path):
    target = tmp_path / "apple.png"
    code, out, _ = run(monkeypatch, capsys, "generate", "a red apple", "--steps", 2, "--seed", 5, "-o", target)
    assert code == 0 and "token_merging" in out
    picture = Image.open(target)
    settings = json.loads(picture.text["fastdit"])
    assert picture.size == (64, 64)
    assert (settings["model"], settings["prompt"], settings["seed"]) == (MODEL, "a red apple", 5)
    assert settings["call"]["num_inference_steps"] == 2
    assert settings["macs"]["executed"] < settings["macs"]["dense"]
    assert [path.name for path in tmp_path.iterdir()] == ["apple.png"]


def test_several_prompts_and_pictures_are_numbered_and_equal_single_ones(monkeypatch, capsys, tmp_path):
    run(monkeypatch, capsys, "generate", "rose", "bus", "--num-images", 2, "--steps", 2, "-o", tmp_path / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"out-{i}.png" for i in range(4)]
    run(monkeypatch, capsys, "generate", "bus", "--seed", 3, "--steps", 2, "-o", tmp_path / "single.png")
    one, of_four = (list(Image.open(tmp_path / name).getdata()) for name in ("single.png", "out-3.png"))
    assert max(abs(a - b) for p, q in zip(one, of_four, strict=True) for a, b in zip(p, q, strict=True)) <= 1


def test_batches_of_one_make_the_same_pictures(monkeypatch, capsys, tmp_path):
    for name, size in (("one.png", 1), ("all.png", 3)):
        command = ("generate", "bus", "rose", "bus", "--steps", 2, "--batch", size, "-o", tmp_path / name)
        assert run(monkeypatch, capsys, *command)[0] == 0
    for index in range(3):
        one, all_ = (Image.open(tmp_path / f"{name}-{index}.png") for name in ("one", "all"))
        assert max(high for _, high in ImageChops.difference(one, all_).getextrema()) <= 1
        assert json.loads(one.text["fastdit"])["seed"] == index


def test_negative_prompt_counts_and_is_written_down(monkeypatch, capsys, tmp_path):
    for name, more in (("without.png", ()), ("with.png", ("--negative-prompt", "a red apple"))):
        run(monkeypatch, capsys, "generate", "rose", "--steps", 2, *more, "-o", tmp_path / name)
    without, with_ = (Image.open(tmp_path / name) for name in ("without.png", "with.png"))
    assert json.loads(with_.text["fastdit"])["call"]["negative_prompt"] == "a red apple"
    assert "negative_prompt" not in json.loads(without.text["fastdit"])["call"]
    assert ImageChops.difference(without, with_).getbbox(), "the negative prompt changes nothing"


def test_measure_prints_dense_and_accelerated(monkeypatch, capsys, tmp_path):
    target = tmp_path / "rose.png"
    code, out, _ = run(monkeypatch, capsys, "generate", "rose", "--steps", 2, "--measure", "-o", target)
    assert code == 0 and target.exists()
    for part in ("dense", "accelerated", "seconds, median of 3", "MACs, transformer"):
        assert part in out, out


def test_a_video_file_for_a_picture_model_is_refused_before_generating(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("fastdit.cli.options.prompt_arguments", lambda *_: pytest.fail("it generates"))
    code, _, err = run(monkeypatch, capsys, "generate", "rose", "-o", tmp_path / "out.mp4")
    assert code == 2 and "out.mp4: this model makes pictures, use one of .png .jpg" in err
    assert not list(tmp_path.iterdir())


def test_class_names_and_ids():
    pipe = BY_NAME["dit"].make()
    names = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 2: "great white shark, white shark"}
    pipe = type(pipe)(pipe.transformer, pipe.vae, pipe.scheduler, id2label=names)
    known = {
        "tench": 0, "Tinca tinca": 0, "tench, Tinca tinca": 0, "GoldFish": 1, "carassius auratus": 1,
        "fish of gold, goldfish": 1, " 2 ": 2, "999": 999,
    }  # fmt: skip
    assert {prompt: options.class_id(pipe, prompt) for prompt in known} == known
    assert options.prompt_arguments(pipe, ["tench", "7"]) == {"class_labels": [0, 7]}
    for prompt, message in (
        ("1000", "PROMPT 1000: this model has classes 0 to 999"),
        ("goldfsh", "'goldfsh' is no class of this model: .*; close ones: goldfish"),
        ("-1", "'-1' is no class of this model"),
        ("", "'' is no class of this model"),
        ("quux", r"give a class id \(0 to 999\) or name$"),
    ):
        with pytest.raises(ValueError, match=message):
            options.class_id(pipe, prompt)


def test_compare_draws_both_and_prints_what_it_cost(monkeypatch, capsys, tmp_path):
    target = tmp_path / "both.png"
    code, out, _ = run(monkeypatch, capsys, "compare", "rose", "--steps", 2, "--repeats", 1, "-o", target)
    assert code == 0 and "PSNR" in out and "MACs" in out
    assert Image.open(target).width > 2 * 256


def test_recipe_file_is_used(monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"fastdit_recipe": 1, "methods": [{"method": "token_merging", "density": 0.25}]}))
    target = tmp_path / "rose.png"
    code, _, err = run(monkeypatch, capsys, "generate", "rose", "--steps", 2, "--recipe", recipe, "-o", target)
    assert code == 0, err
    assert json.loads(Image.open(target).text["fastdit"])["methods"][0]["density"] == 0.25


def test_profile_predicts_from_the_config_alone(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "profile", "--model", "DiT-XL-2-256", "--steps", 2, "--no-guidance")
    assert code == 0 and "119 GMAC" in out.replace("\n", " ")  # 118.67 G, the published figure
    assert "fewer" in out


@pytest.mark.parametrize(
    "command",
    [("methods",), ("methods", "token_merging"), ("models",), ("models", "--prompts", "emoji-image"), ("env",)],
)
def test_listings_run(monkeypatch, capsys, command):
    code, out, _ = run(monkeypatch, capsys, *command)
    assert code == 0 and len(out) > 100


def test_listed_prompts_hold_red_apple(monkeypatch, capsys):
    assert "red apple" in run(monkeypatch, capsys, "models", "--prompts", "emoji-image")[1].split("\n")


BAD = [
    (
        ("generate", "x", "-m", "nonsense"),
        "unknown method 'nonsense'; known: block_streaming, dydit, flexdit, linear_proportional_leap",
    ),
    (("generate", "x", "-m", "token_merging:denisty=0.5"), "token_merging has no option 'denisty'; it has: density"),
    (("generate", "x", "-m", "token_merging:density=0"), "density must lie in (0, 1], got 0"),
    (("generate", "x", "-m", "token_merging:density=1.5"), "density must lie in (0, 1], got 1.5"),
    (("generate", "x", "-m", "token_merging:reducer=poool"), "did you mean 'pool'?"),
    (("generate", "x", "-m", "token_merging", "-m", "token_merging"), "token_merging and token_merging cannot run"),
    (("generate", "x", "--model", "fastdit/nothing"), "unknown bundled model 'fastdit/nothing'; known: fastdit/emoji"),
    (("generate", "x", "--model", "./nowhere"), "does not exist: give a diffusers folder"),
    (("generate", "x", "--model", "nonsense"), "unknown model 'nonsense'"),
    (("generate", "x", "--num-frames", "5"), "--num-frames: PixArtAlphaPipeline does not take it"),
    (("generate", "x", "--height", "62"), "height 62 is not divisible by 4: use 60 or 64"),
    (("generate", "x", "--recipe", "none.json"), "recipe none.json does not exist"),
    (("generate", "x", "--offload", "disk"), "--offload disk: use none or model"),
    (("generate", "x", "--dtype", "int8"), "--dtype int8: use auto"),
    (("generate", "x", "--device", "foo"), "--device foo: use auto, cpu, cuda, cuda:N or mps"),
    (("generate", "x", "--image", "none.png"), "--image none.png does not exist"),
    (("generate", "x", "--lora", "none.safetensors"), "loads no LoRA in diffusers"),
    (("generate", "x", "-o", "no/such/folder/out.png"), "folder no/such/folder does not exist"),
    (("generate", "x", "-o", "out.xyz"), "unknown file type '.xyz'"),
    (("profile", "--model", "nonsense"), "configs that ship: DiT-XL-2-256"),
    (("profile", "--model", "DiT-XL-2-256", "--height", "100"), "height 100 is not divisible by 16: use 96 or 112"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[" ".join(a[0][1:])[:40] for a in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(monkeypatch, capsys, *arguments)
    lines = [line for line in err.strip().split("\n") if line.startswith("fastdit: ")]
    assert code == 2 and len(lines) == 1 and message in lines[0], err
    assert not list(tmp_path.iterdir())


def test_full_disk_is_an_error_before_any_work(monkeypatch, capsys, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    code, _, err = run(monkeypatch, capsys, "generate", "rose", "-o", tmp_path / "out.png")
    assert code == 2 and "only 1 MiB free" in err


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_or_missing_weights_name_the_model(monkeypatch, capsys, tmp_path, damage):
    copy = tmp_path / "model"
    shutil.copytree(zoo.folder_of(MODEL), copy)
    weights = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    code, _, err = run(monkeypatch, capsys, "generate", "rose", "--model", copy, "-o", tmp_path / "out.png")
    assert code == 2 and f"cannot load model {copy}" in err
    assert not (tmp_path / "out.png").exists()


def test_newer_recipe_is_refused(monkeypatch, capsys, tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"fastdit_recipe": 99, "methods": []}))
    code, _, err = run(monkeypatch, capsys, "generate", "rose", "--recipe", recipe)
    assert code == 2 and "update fastdit" in err


def test_help_does_not_import_torch():
    code = "import sys; import fastdit.cli; assert 'torch' not in sys.modules and 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
