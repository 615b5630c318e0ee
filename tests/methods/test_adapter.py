"""Adapters: written whole, read as they were written, found by name, and refused with one line."""

import json
import resource

import huggingface_hub
import pytest
import torch
from helpers import BY_NAME
from peft import LoraConfig, inject_adapter_in_model
from stand_in import LORA, OWN, contents, make, refused, same, write

from fastdit import zoo
from fastdit.methods import adapter as a


@pytest.mark.parametrize("kind", a.KINDS)
def test_round_trip(kind, tmp_path):
    transformer = make()
    folder = write(tmp_path / "made", kind, transformer, time_frequency_shift=0, training={"steps": 7})
    read = a.read_adapter(str(folder))
    assert (read.method, read.kind, read.structure) == ("stand_in", kind, {"gains": 1})
    assert (read.time_frequency_shift, read.training) == (0, {"steps": 7})
    assert read.base["class"] == "PixArtTransformer2DModel" and read.base["hash"] == a.weights_hash(transformer)
    assert read.base["config"]["num_layers"] == 2 and "sample_size" not in read.base["config"]
    assert same(read.own_state(), OWN) and same(read.lora_state(), LORA if kind == "lora" else {})
    whole = {name: value.bfloat16() for name, value in transformer.state_dict().items()}
    assert same(read.host_state(), whole if kind == "full" else {})
    names = {"fastdit_adapter.json", "method.safetensors", "README.md"}
    names |= {"lora": {"lora.safetensors"}, "full": {"transformer.safetensors"}}.get(kind, set())
    assert {path.name for path in folder.iterdir()} == names
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    a.check_adapter(read, "stand_in", transformer)


def test_the_methods_parameters_keep_float32_and_the_transformer_its_given_dtype(tmp_path):
    read = a.read_adapter(write(tmp_path / "x", "full", own_state={"gain": torch.ones(1).half()}, dtype=torch.float32))
    assert read.own_state()["gain"].dtype == torch.float32
    assert {value.dtype for value in read.host_state().values()} == {torch.float32}


def test_tensors_that_share_memory_are_written(tmp_path):
    transformer = make()
    transformer.transformer_blocks[1].attn1.to_q.weight = transformer.transformer_blocks[0].attn1.to_q.weight
    state = a.read_adapter(write(tmp_path / "x", "full", transformer)).host_state()
    assert torch.equal(*(state[f"transformer_blocks.{i}.attn1.to_q.weight"] for i in (0, 1)))


def test_the_card_says_what_it_is_and_how_to_load_it(tmp_path):
    base = {**a.describe_base(make()), "source": "someone/pixart"}
    more = {"base": base, "training": {"steps": 300, "target": 0.5}}
    card = (write(tmp_path / "emoji-half", method="dydit", **more) / "README.md").read_text()
    for text in ("base_model: someone/pixart", "steps: 300", "target: 0.5", base["hash"], "PixArtTransformer2DModel"):
        assert text in card
    assert 'FastDiTPipeline.from_pretrained("someone/pixart", methods=[DyDiT(checkpoint="emoji-half")])' in card
    assert "plain diffusers" not in card
    shifted = write(tmp_path / "shifted", method="dydit", time_frequency_shift=0, **more) / "README.md"
    assert "downscale_freq_shift=0" in shifted.read_text() and "plain diffusers does not" in shifted.read_text()


def test_the_source_is_named_without_the_path_to_it(tmp_path):
    pipe = BY_NAME["pixart_alpha"].make()
    assert a.describe_base(pipe.transformer)["source"] is None
    pipe.save_pretrained(tmp_path / "my-model")
    for where, source in (
        (tmp_path / "my-model" / "transformer", "my-model"),
        ("/home/x/models--PixArt--alpha/snapshots/1f/transformer", "PixArt/alpha"),
        (zoo.folder_of("fastdit/emoji-image") / "transformer", "fastdit/emoji-image"),
        ("someone/on-the-hub", "someone/on-the-hub"),
    ):
        pipe.transformer.register_to_config(_name_or_path=str(where))
        assert a.describe_base(pipe.transformer)["source"] == source


def test_a_new_adapter_replaces_an_older_one(tmp_path):
    folder = tmp_path / "x"
    folder.mkdir()  # an empty one will do
    write(folder, "full")
    (folder / ".gitattributes").write_text("from the Hub")
    write(folder, "routers", own_state={"gain": torch.tensor([0.75])})
    assert a.read_adapter(folder).own_state()["gain"] == 0.75
    assert not (folder / "transformer.safetensors").exists() and [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_leaves_the_older_adapter(tmp_path):
    folder = write(tmp_path / "x", "full")
    before = contents(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # the transformer takes more
    try:
        with refused(folder, "could not be written", error=OSError):
            write(folder, "full", own_state={"gain": torch.tensor([0.75])})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_the_older_adapter(error, tmp_path, monkeypatch):
    folder = write(tmp_path / "x", "lora")
    before = contents(folder)

    def interrupted(*_):
        raise error

    monkeypatch.setattr("fastdit.methods.adapter.writing.model_card", interrupted)  # the last file
    with pytest.raises(error):
        write(folder, "full")
    assert contents(folder) == before and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_folders_are_not_replaced(tmp_path):
    model, file, mixed = tmp_path / "model", tmp_path / "file", write(tmp_path / "mixed")
    BY_NAME["pixart_alpha"].make().save_pretrained(model)
    file.write_text("")
    (mixed / "notes.txt").write_text("mine")
    for folder, part in ((model, "model_index.json"), (file, "is a file"), (mixed, "notes.txt")):
        before = contents(folder)
        with refused(folder, part):
            write(folder)
        assert contents(folder) == before


def test_what_cannot_be_written(tmp_path):
    with refused("kind must be one of", "'half'"):
        write(tmp_path / "x", "half")
    with refused("lora_state must be given"):
        write(tmp_path / "x", "lora", lora_state={})
    with refused("lora_state must be given", "routers"):
        write(tmp_path / "x", "routers", lora_state=LORA)
    peft = inject_adapter_in_model(LoraConfig(r=2, target_modules=["to_q"]), make())
    with refused("cannot be written", "LoRA"):
        write(tmp_path / "x", "full", peft)
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "x", training={"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_folders_that_cannot_be_read(tmp_path):
    folder = write(tmp_path / "x", "full")
    file = folder / a.FILE
    data = json.loads(file.read_text())
    for change, parts in (
        ({"fastdit_adapter": a.VERSION + 1}, ("version 2", "update fastdit")),
        ({"fastdit_adapter": "1"}, ("'fastdit_adapter'",)),
        ({"kind": "half"}, ("kind must be one of routers, lora, full", "'half'")),
        ({"method": None}, ("method",)),
        ({"structure": []}, ("structure",)),
        ({"base": {}}, ("base",)),
        ({"time_frequency_shift": "0"}, ("time_frequency_shift",)),
    ):
        file.write_text(json.dumps({**data, **change}))
        with refused(folder, *parts):
            a.read_adapter(str(folder))
    file.write_text(json.dumps(data)[:40])
    with refused(folder, "no JSON file"):
        a.read_adapter(str(folder))
    file.write_text(json.dumps(data))
    for name, read in (("method.safetensors", "own_state"), ("transformer.safetensors", "host_state")):
        whole = (folder / name).read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"no tensors" * 9, None):
            (folder / name).unlink()
            if damaged is not None:
                (folder / name).write_bytes(damaged)
            with refused(folder, name, "missing or damaged", "fetch it again"):
                getattr(a.read_adapter(str(folder)), read)()
            (folder / name).write_bytes(whole)


# --- names -----------------------------------------------------------------------------------------------------------


def test_names_that_lead_nowhere(tmp_path):
    (tmp_path / "model").mkdir()
    with refused(tmp_path / "model", "no fastdit_adapter.json", "fastdit train"):
        a.read_adapter(str(tmp_path / "model"))
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere", "a/b/c"):
        with refused(name, "does not exist", "Hub id"):
            a.read_adapter(name)


def test_bundled_adapters_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "_HERE", tmp_path)
    write(tmp_path / "emoji_half")
    (tmp_path / "emoji_image").mkdir()
    (tmp_path / "emoji_image" / "model_index.json").write_text("{}")
    assert zoo.adapters() == ["fastdit/emoji-half"] and zoo.names() == ["fastdit/emoji-image"]
    assert a.read_adapter("fastdit/emoji-half").folder == tmp_path / "emoji_half"
    with refused("unknown bundled adapter 'fastdit/other'", "fastdit/emoji-half"):
        a.read_adapter("fastdit/other")
    with refused("fastdit/emoji-half is an adapter", "checkpoint=fastdit/emoji-half"):
        zoo.folder_of("fastdit/emoji-half")


def test_a_hub_id_is_fetched(tmp_path, monkeypatch):
    folder, asked = write(tmp_path / "x"), []

    def fetch(repo_id, allow_patterns):
        asked.append((repo_id, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for _ in range(2):  # asked for once
        assert same(a.read_adapter("someone/adapter").own_state(), OWN)
    assert asked == [("someone/adapter", list(a.folder.FILES))]


def test_without_the_hub_there_is_one_line(monkeypatch):
    def fetch(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no connection\nPlease check it")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with refused("someone/other", "no folder here", "cannot be fetched from the Hub: no connection"):
        a.read_adapter("someone/other")


def test_pushing(tmp_path, monkeypatch):
    done = []

    class Address(str):
        pass

    def create_repo(repo_id, private, exist_ok, token):
        done.append(("create", repo_id, private, exist_ok, token))
        return Address(f"https://hub/{repo_id}")

    def upload_folder(repo_id, folder_path, commit_message, token):
        done.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir()), token))

    monkeypatch.setattr(huggingface_hub, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", upload_folder)
    folder = write(tmp_path / "x")
    assert a.push_adapter(folder, "me/half", private=True, token="t") == "https://hub/me/half"
    names = ["README.md", "fastdit_adapter.json", "method.safetensors"]
    assert done == [("create", "me/half", True, True, "t"), ("upload", "me/half", names, "t")]
    (folder / a.FILE).unlink()
    with refused(folder, "no adapter"):
        a.push_adapter(folder, "me/half")
    assert len(done) == 2

    def refuse(*_, **__):
        raise OSError("401: no token\nlog in")

    monkeypatch.setattr(huggingface_hub, "create_repo", refuse)
    with refused("could not be pushed to me/half: 401: no token"):
        a.push_adapter(write(tmp_path / "y"), "me/half")
