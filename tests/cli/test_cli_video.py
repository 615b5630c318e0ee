"""The command line on a tiny text-to-video model (and image-to-video), saved as diffusers saves it."""

import json
import re
import sys
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from PIL import Image
from tiny import wan_transformer, weights
from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

from fastdit import FastDiTPipeline, cli
from fastdit.cli import output as out
from fastdit.cli.measure import in_turns
from fastdit.cli.side_by_side import side_by_side, strip
from fastdit.cli.video import check_num_frames
from fastdit.evaluation.fidelity import psnr, ssim
from fastdit.evaluation.frames import read
from fastdit.evaluation.generate import to_uint8

CALL = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 2, "guidance_scale": 3.0,
        "max_sequence_length": 8}  # fmt: skip


def save(folder, cls, in_channels):
    """A pipeline of `cls` with 4 latent channels, space 8x and time 4x, and a recipe beside it."""
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *((f"▁{word}", -1.0) for word in ("red", "blue", "apple"))]
    config = UMT5Config(vocab_size=len(words), d_model=24, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vae = weights(
        diffusers.AutoencoderKLWan, base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1,
        latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
    )  # fmt: skip
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    pipe = cls(
        tokenizer=T5Tokenizer(vocab=words, extra_ids=0, model_max_length=8), vae=vae, scheduler=scheduler,
        text_encoder=weights(UMT5EncoderModel, config=config), transformer=wan_transformer(in_channels),
    )  # fmt: skip
    pipe.save_pretrained(folder)
    recipe = {"fastdit_recipe": 1, "methods": [{"method": "token_merging", "density": 0.5}], "call": CALL}
    (folder / "fastdit.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save(tmp_path_factory.mktemp("video"), diffusers.WanPipeline, 4)


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """A command in this process, in an empty folder: exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fastdit", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = capsys.readouterr()
        return exit_.value.code or 0, captured.out, captured.err

    return run


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_generate_writes_one_numbered_video_a_prompt(run, model, tmp_path):
    code, text, err = run("generate", "--model", model, "red apple", "blue apple", "--num-frames", 9, "--fps", 8,
                          "-o", "out.gif")  # fmt: skip
    assert code == 0 and "token_merging" in text, err
    assert names(tmp_path) == ["out-0.gif", "out-1.gif"]
    videos = [read(tmp_path / name) for name in names(tmp_path)]
    assert all(video.shape == (9, 32, 48, 3) for video in videos) and (videos[0] != videos[1]).any()
    assert Image.open("out-0.gif").info["duration"] == pytest.approx(125, abs=10)  # ms a frame; gif counts in 10


def test_generate_names_a_video_out_mp4(run, model, tmp_path):
    assert run("generate", "--model", model, "red apple")[0] == 0
    assert names(tmp_path) == ["out.mp4"] and read(tmp_path / "out.mp4").shape == (5, 32, 48, 3)
    (text,) = re.findall(rb'{"model".*"lora": null}', (tmp_path / "out.mp4").read_bytes())
    settings = json.loads(text)
    assert (settings["prompt"], settings["seed"], settings["call"]["num_frames"]) == ("red apple", 0, 5)


def test_image_to_video_takes_its_first_frame(run, monkeypatch, tmp_path_factory, tmp_path):
    # diffusers' class mends prompts with ftfy, installed or not
    same = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", same, raising=False)
    model = save(tmp_path_factory.mktemp("image"), diffusers.WanImageToVideoPipeline, 12)
    assert "--image: WanImageToVideoPipeline needs it" in run("compare", "--model", model, "red apple")[2]
    Image.new("RGB", (48, 32), "red").save("first.png")
    code, _, err = run("generate", "--model", model, "red apple", "--image", "first.png", "-o", "out.mp4")
    assert code == 0 and read(tmp_path / "out.mp4").shape == (5, 32, 48, 3), err


@pytest.mark.parametrize("width, height", [(33, 31), (32, 31), (33, 32)])
def test_odd_sizes_keep_every_pixel_in_place(tmp_path, width, height):
    frames = np.full((3, height, width, 3), 255, np.uint8)
    frames[:, -1, -1] = 0
    out.save_video(frames, tmp_path / "odd.mp4", 8)
    back = read(tmp_path / "odd.mp4")
    assert back.shape == frames.shape and (back[:, -1, -1] < 128).all() and (back[:, 0, 0] > 200).all()


def test_compare_writes_a_video_and_a_strip_and_measures_raw_frames(run, model, tmp_path):
    code, text, err = run("compare", "--model", model, "red apple", "blue apple", "--repeats", 1, "--seed", 3)
    assert code == 0, err
    assert names(tmp_path) == ["compare-frames.png", "compare.mp4"]
    assert read(tmp_path / "compare.mp4").shape == (5, 28 + 2 * (256 + 40), 2 * 384 + 36, 3)
    sheet = Image.open("compare-frames.png")
    assert sheet.size == (100 + 5 * (192 + 4) + 12, 2 * (2 * 28 + 2 * (128 + 4) + 12))
    settings = json.loads(sheet.text["fastdit"])
    assert (settings["prompts"], settings["seed"]) == (["red apple", "blue apple"], 3)
    assert set(settings["median_seconds"]) == {"dense", "accelerated"}
    assert "median of 2" in text and "0.500" in text and "mean of 5 frames" in " ".join(text.split())

    pipe = FastDiTPipeline.from_pretrained(model)
    for index, prompt in enumerate(("red apple", "blue apple")):

        def draw(prompt=prompt, seed=3 + index):
            return to_uint8(pipe(prompt, generator=torch.Generator().manual_seed(seed)).frames[0])

        with pipe.dense():
            dense = draw()
        fast = draw()
        assert f"│ {prompt}" in text and f"{psnr(dense, fast):.1f} dB" in text and f"{ssim(dense, fast):.3f}" in text


@pytest.mark.parametrize("command", ["generate", "compare"])
@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--num-frames", 4), "--num-frames 4: this model makes 1 frame and then 4 at a time: use 1 or 5"),
        (("--num-frames", 12), "use 9 or 13"),
        (("-o", "out.png"), "out.png: this model makes videos, use one of .mp4 .gif"),
        (("-o", "no/such/out.mp4"), "folder no/such does not exist"),
        (("--fps", 0), ""),
    ],
)
def test_bad_input_is_refused_before_any_work(run, monkeypatch, model, tmp_path, command, arguments, message):
    monkeypatch.setattr("fastdit.cli.options.prompt_arguments", lambda *_: pytest.fail("it generates"))
    code, _, err = run(command, "--model", model, "red apple", *arguments)
    assert code == 2 and message in err and not names(tmp_path)


def test_compare_refuses_what_it_cannot_show(run, monkeypatch, model, tmp_path):
    monkeypatch.setattr("fastdit.cli.options.prompt_arguments", lambda *_: pytest.fail("it generates"))
    assert "this model makes pictures, use one of .png" in run("compare", "rose", "-o", "out.mp4")[2]
    assert "--num-frames: PixArtAlphaPipeline does not take it" in run("compare", "rose", "--num-frames", 5)[2]
    assert "--height 8: SSIM needs at least 11 pixels" in run("compare", "rose", "--height", 8)[2]
    assert not names(tmp_path)


def test_frame_counts_follow_the_vae():
    def check(count, **pipe):
        check_num_frames(SimpleNamespace(call_defaults=pipe.pop("defaults", {}), **pipe), {"num_frames": count})

    for count in (1, 7, 13):
        check(count, vae_temporal_scale_factor=6)  # Mochi
    with pytest.raises(ValueError, match=r"--num-frames 12: .* 6 at a time: use 7 or 13"):
        check(12, vae_temporal_scale_factor=6)
    check(12)  # Latte codes frame by frame
    check_num_frames(SimpleNamespace(call_defaults={}, vae_scale_factor_temporal=4), {})
    with pytest.raises(ValueError, match=r"--num-frames 30: .* use 29 or 33"):  # from a recipe
        check_num_frames(SimpleNamespace(call_defaults={"num_frames": 30}, vae_scale_factor_temporal=4), {})


def test_runs_take_turns_and_only_the_first_of_each_is_kept():
    class Pipe:
        done, fast, methods = [], True, ()

        def set_progress_bar_config(self, **_): ...

        def dense(self):
            return self

        def __enter__(self):
            self.fast = False

        def __exit__(self, *_):
            self.fast = True

        def run(self, name):
            self.done.append(f"{name} {'fast' if self.fast else 'dense'}")
            self.report = SimpleNamespace(seconds=len(self.done))
            return len(self.done)

    pipe = Pipe()
    timing = in_turns(pipe, [lambda: pipe.run("a"), lambda: pipe.run("b")], repeats=2)
    assert pipe.done == ["a dense", "a fast"] * 3 + ["b dense", "b fast"] * 2
    assert timing.made == [(3, 4), (7, 8)] and len(timing.reports) == 4
    assert timing.seconds == (6, 7) and timing.ratio == "0.86x (0.75 to 0.90)"


def test_both_sides_are_where_the_titles_say():
    clips = [np.random.default_rng(seed).integers(0, 255, (12, 100, 50, 3), np.uint8) for seed in range(4)]
    dense, fast = clips[:2], clips[2:]
    frames = side_by_side(dense, fast, ["one", "two"], {"dense": 2.0, "accelerated": 1.0})
    assert len(frames) == 12 and not any(side % 2 for side in frames.shape[1:3])
    large = dense[0].repeat(3, 1).repeat(3, 2)  # 300 pixels high
    assert (frames[:, 28 : 28 + 300, 12 : 12 + 150] == large).all()
    assert (frames[:, 28 + 340 : 28 + 640, 24 + 150 : 24 + 300] == fast[1].repeat(3, 1).repeat(3, 2)).all()

    sheet = strip(dense, fast, ["one", "two"])
    assert sheet.shape == (2 * (2 * 28 + 2 * 204 + 12), 100 + 8 * 104 + 12, 3)
    assert (sheet[56 : 56 + 200, 100:200] == dense[0][0].repeat(2, 0).repeat(2, 1)).all()
    low = 56 + 204 + 56 + 408 + 12  # the second prompt's lower row
    assert (sheet[low : low + 200, 100 + 7 * 104 : 100 + 7 * 104 + 100] == fast[1][11].repeat(2, 0).repeat(2, 1)).all()
    wide = [np.zeros((1, 400, 1280, 3), np.uint8)]
    assert strip(wide, wide, ["a long title " * 20]).shape == (56 + 2 * 104 + 12, 100 + 324 + 12, 3)
