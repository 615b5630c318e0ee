"""A pipeline with a trained method's weights in place: one folder that loads in one line, wherever it is."""

import dataclasses
import json
import shutil
import warnings

import diffusers
import huggingface_hub
import pytest
import torch
from helpers import BY_NAME
from stand_in import StandIn

from fastdit import FastDiTPipeline, Recipe, TokenMerging
from fastdit.methods.adapter import push_adapter, read_adapter, write_adapter
from fastdit.methods.base import METHODS, load_methods
from fastdit.methods.trained import TrainedMethod
from fastdit.pipelines.loading import load_pipeline
from fastdit.pipelines.merged import save_merged

TINY = BY_NAME["pixart_alpha"]


@pytest.fixture(autouse=True)
def known(monkeypatch):
    load_methods()
    monkeypatch.setitem(METHODS._items, "stand_in", StandIn)


def adapter(folder, kind="full"):
    """An adapter of a transformer that was trained on from the tiny one."""
    transformer = TINY.make().transformer
    if kind == "full":
        for parameter in transformer.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    lora = {"proj_out.down": torch.ones(2, 32), "proj_out.up": torch.ones(1, 32, 2)} if kind == "lora" else None
    return write_adapter(
        folder, method="stand_in", kind=kind, structure={"gains": 1}, transformer=transformer, lora_state=lora,
        own_state={"gain": torch.tensor([0.5])}, training={"steps": 7},
    )  # fmt: skip


def attached(tmp_path, kind="full", *more):
    TINY.make().save_pretrained(tmp_path / "base")
    return FastDiTPipeline.from_pretrained(
        tmp_path / "base",
        methods=Recipe((StandIn(str(adapter(tmp_path / "adapter", kind))), *more), call={"guidance_scale": 2.5}),
    )


def outputs(pipe):
    """With the method, and without it."""
    with pipe.dense():
        dense = TINY.call(pipe)
    return TINY.call(pipe), dense


@pytest.mark.parametrize("kind", ["routers", "lora", "full"])
def test_the_merged_folder_loads_with_the_method_on(kind, tmp_path):
    pipe = attached(tmp_path, kind, TokenMerging(density=0.5, scope="attention"))
    folder = save_merged(pipe, tmp_path / "merged")
    expected = outputs(pipe)
    assert not torch.equal(*expected)
    shutil.rmtree(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    folder = folder.rename(tmp_path / "elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        again = FastDiTPipeline.from_pretrained(folder)
    assert again.methods == (StandIn(str(folder)), TokenMerging(density=0.5, scope="attention"))
    assert again.call_defaults["guidance_scale"] == 2.5
    assert all(torch.equal(left, right) for left, right in zip(outputs(again), expected, strict=True))
    found = read_adapter(folder)
    assert found.kind == ("routers" if kind == "full" else kind) and found.training == {"steps": 7}
    assert json.loads((folder / "fastdit.json").read_text())["methods"][0]["checkpoint"] == "."
    card = (folder / "README.md").read_text()
    assert 'FastDiTPipeline.from_pretrained("merged")' in card and "checkpoint=" not in card
    plain = diffusers.DiffusionPipeline.from_pretrained(folder, text_encoder=None, tokenizer=None)
    assert torch.equal(TINY.call(plain), expected[1])


def test_a_merged_folder_is_replaced_and_no_other(tmp_path):
    pipe = attached(tmp_path)
    folder = save_merged(pipe, tmp_path / "merged")
    save_merged(pipe, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]
    with pytest.raises(ValueError, match=r"model_index\.json"):
        save_merged(pipe, tmp_path / "base")
    with pytest.raises(ValueError, match=r"merged is no adapter's folder .*it holds"):
        adapter(folder)  # an adapter alone does not take a pipeline's place
    (folder / "notes").mkdir()
    with pytest.raises(ValueError, match="it holds notes"):
        save_merged(pipe, folder)
    assert FastDiTPipeline.from_pretrained(folder).methods


def test_a_failure_leaves_the_older_folder(tmp_path, monkeypatch):
    pipe = attached(tmp_path)
    folder = save_merged(pipe, tmp_path / "merged")
    expected = TINY.call(FastDiTPipeline.from_pretrained(folder))

    def full(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr("fastdit.pipelines.merged.write_texts", full)
    with pytest.raises(OSError, match="merged could not be written: no space left"):
        save_merged(pipe, folder)
    assert torch.equal(TINY.call(FastDiTPipeline.from_pretrained(folder)), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "merged"]


def test_a_pipeline_without_a_trained_method_is_refused(tmp_path):
    TINY.make().save_pretrained(tmp_path / "base")
    for pipe in (TINY.make(), FastDiTPipeline.from_pretrained(tmp_path / "base", methods=[StandIn(None)])):
        with pytest.raises(ValueError, match="a trained method at work"):
            save_merged(pipe, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_whole_folder_is_pushed(tmp_path, monkeypatch):
    import huggingface_hub

    sent = []
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda repo_id, **_: f"https://hub/{repo_id}")
    monkeypatch.setattr(huggingface_hub, "upload_folder", lambda folder_path, **_: sent.append(folder_path))
    folder = save_merged(attached(tmp_path), tmp_path / "merged")
    assert push_adapter(folder, "me/merged") == "https://hub/me/merged" and sent == [folder]


def test_paths_in_a_recipe_are_relative_to_it(tmp_path, monkeypatch):
    folder = adapter(tmp_path / "models" / "half")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path)
    for text, path in (
        ("../models/half", folder), (".", tmp_path / "recipes"), ("./x", tmp_path / "recipes" / "x"),
        ("me/half", "me/half"), (str(folder), folder), (None, None),
    ):  # fmt: skip
        data = {**Recipe((StandIn(None),)).to_dict()}
        data["methods"][0]["checkpoint"] = text
        (tmp_path / "recipes" / "r.json").write_text(json.dumps(data))
        for file in ("recipes/r.json", tmp_path / "recipes" / "r.json"):
            assert Recipe.load(file).methods == (StandIn(None if path is None else str(path)),)
        assert Recipe.from_dict(data).methods == (StandIn(text),)  # in no file


def test_every_trained_method_says_that_its_checkpoint_is_a_path():
    for name, method in load_methods().items():
        if issubclass(method, TrainedMethod):
            field = next(field for field in dataclasses.fields(method) if field.name == "checkpoint")
            assert field.metadata.get("path"), f"{name}: checkpoint = option(..., path=True)"


def test_a_merged_folder_on_the_hub_loads_with_the_method_on(tmp_path, monkeypatch):
    pipe = attached(tmp_path)
    expected = TINY.call(pipe)
    hub = save_merged(pipe, tmp_path / "hub")
    snapshot = tmp_path / "cache" / "snapshots" / "abc"
    asked = []

    def fetch(name):
        snapshot.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(hub / name, snapshot / name)

    def one_file(repo_id, filename, **options):
        asked.append((repo_id, filename, options))
        fetch(filename)
        return str(snapshot / filename)

    def files(repo_id, allow_patterns, **options):
        asked.append((repo_id, options))
        for name in filter(lambda name: (hub / name).is_file(), allow_patterns):
            fetch(name)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one_file)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", files)
    monkeypatch.setattr("fastdit.pipelines.fast_pipeline.load_pipeline", lambda path, **more: load_pipeline(hub))
    again = FastDiTPipeline.from_pretrained("someone/merged", revision="v1", variant="fp16")
    options = {"revision": "v1"}
    assert asked == [("someone/merged", "fastdit.json", options), ("someone/merged", options)]
    assert again.methods == (StandIn(str(snapshot)),) and again.call_defaults["guidance_scale"] == 2.5
    assert torch.equal(TINY.call(again), expected)

    def gone(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nPlease check it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", gone)
    with pytest.raises(ValueError, match=r"^cannot fetch what fastdit\.json of model someone/merged .* no connection$"):
        FastDiTPipeline.from_pretrained("someone/merged")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", gone)  # an ordinary model, or none can be asked for it
    with pytest.warns(UserWarning, match="no fastdit.json beside it"):
        assert FastDiTPipeline.from_pretrained("someone/merged").methods == ()


def test_saving_brought_weights_alone_is_a_warning_that_names_the_way(tmp_path):
    pipe = attached(tmp_path)
    with pytest.warns(UserWarning, match=r"stand_in brought, .*save_merged\(pipe, folder\)"):
        pipe.save_pretrained(tmp_path / "alone")
    pipe.restore()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe.save_pretrained(tmp_path / "base_again")
        pipe.set_methods([StandIn(str(adapter(tmp_path / "routers", "routers")))])
        pipe.save_pretrained(tmp_path / "untouched")
        pipe.set_methods([StandIn(str(tmp_path / "adapter"))])
        save_merged(pipe, tmp_path / "merged")
