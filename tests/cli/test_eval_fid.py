"""fastdit eval fid: names that are always right, results where the report finds them, one line for bad input."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import Coarse, crops, save, save_run

from fastdit import cli, zoo
from fastdit.cli.options import reference_from
from fastdit.evaluation import second_engine
from fastdit.evaluation.adm import pack
from fastdit.evaluation.features import inception_tf
from fastdit.evaluation.features.base import EXTRACTORS, load_extractors
from fastdit.evaluation.features.extract import extract
from fastdit.evaluation.frechet import Statistics, frechet_distance
from fastdit.evaluation.kernel import kid, kid_interval
from fastdit.evaluation.samples import Samples


class CoarseInception(Coarse):
    """Stands for Inception where only names and files matter."""

    identity = title = "inception"
    is_inception = True


@pytest.fixture(autouse=True)
def networks(monkeypatch):
    load_extractors()
    monkeypatch.setitem(EXTRACTORS._items, "coarse", Coarse)
    monkeypatch.setitem(EXTRACTORS._items, "inception", CoarseInception)


@pytest.fixture
def sets(tmp_path):
    """A run of 60 samples, 30 prompts twice, and a folder of 70 reference pictures."""
    save_run(tmp_path / "run", crops(60, 1, side=24), [f"prompt {index % 30}" for index in range(60)])
    save(tmp_path / "ref", crops(70, 2, side=24))
    return tmp_path


def run(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    monkeypatch.setenv("COLUMNS", "150")
    monkeypatch.setattr(sys, "argv", ["fastdit", "eval", "fid", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    captured = capsys.readouterr()
    return exit_.value.code or 0, captured.out, captured.err


def values(path) -> tuple[np.ndarray, np.ndarray]:
    return tuple(extract(Samples.open(path / name), Coarse(), workers=0).values for name in ("run", "ref"))


def test_a_run_against_a_folder(monkeypatch, capsys, sets):
    code, out, err = run(
        monkeypatch, capsys, sets / "run", "--ref", sets / "ref", "--features", "coarse", "--kid-subset-size", 40,
        "--json", sets / "out.json",
    )  # fmt: skip
    assert code == 0, err
    for text in ("60 samples, 70 of the reference", "FD(coarse)", "KID(coarse)", "precision", "recall", " to "):
        assert text in out
    assert "FID" not in out and "100 subsets of 40" in out
    x, y = values(sets)
    data = json.loads((sets / "out.json").read_text())
    kept = json.loads((sets / "run" / "results" / "distances.coarse.json").read_text())
    assert {key: kept[key] for key in data} == data and kept["settings"]
    assert (data["n"], data["n_reference"], data["features"], data["engine"]) == (60, 70, "coarse", "fastdit")
    assert (data["num"], data["frames"], data["n_videos"]) == (None, "middle", None)
    found = data["values"]
    assert found["FD(coarse)"]["value"] == pytest.approx(
        frechet_distance(Statistics.of(x, "c"), Statistics.of(y, "c")), rel=1e-6
    )
    one = found["KID(coarse)"]
    assert one["value"] == pytest.approx(kid(x, y)) and one["low"] < one["value"] < one["high"]
    across = found["KID(coarse), across prompts"]
    prompts = [index % 30 for index in range(60)]
    assert across["value"] == kid_interval({"": x}, y, prompts).across.values[""]
    assert "KID(coarse) counts pairs within a prompt too" in out and len(data["warnings"]) == 1
    assert found["KID(coarse), 100 subsets of 40"]["value"] == pytest.approx(kid(x, y, 40))
    assert 0 < found["precision"]["value"] <= 1 and 0 < found["recall"]["value"] <= 1
    assert (sets / "run" / "results" / "features.coarse.npz").is_file()


def test_inceptions_distance_alone_is_called_fid(monkeypatch, capsys, sets):
    code, out, err = run(monkeypatch, capsys, sets / "run", "--ref", sets / "ref", "--num", 50)
    assert code == 0, err
    assert "FID " in out and "KID " in out and "FD(" not in out and "50 samples" in out
    assert "FID of 50 samples is no paper's" in out and "biased at every n: compare equal n only" in out


def test_frames_of_videos_are_counted_and_belong_together(monkeypatch, capsys, tmp_path):
    for name, seed in (("run", 1), ("ref", 2)):
        save_run(tmp_path / name, np.stack(crops(42, seed, side=24)).reshape(14, 3, 24, 24, 3), "abcdefghijklmn", True)
    code, out, err = run(
        monkeypatch, capsys, tmp_path / "run", "--ref", tmp_path / "ref", "--features", "coarse", "--frames", "all",
        "--num", 14, "--json", tmp_path / "out.json", "--save-ref-stats", tmp_path / "ref.npz",
    )  # fmt: skip
    assert code == 0, err
    assert "42 frames of 14 videos, 42 of the reference" in out
    assert "42 frames of 14 videos are not 42 independent samples" in out
    data = json.loads((tmp_path / "out.json").read_text())
    assert (data["num"], data["frames"], data["n"], data["n_videos"]) == (14, "all", 42, 14)
    x, y = (extract(Samples.open(tmp_path / name), Coarse(), workers=0, frames="all").values for name in ("run", "ref"))
    videos = np.repeat(np.arange(14), 3)
    across = kid_interval({"": x}, y, videos, reference_groups=videos).across
    assert data["values"]["KID(coarse), across videos"] == pytest.approx(across.interval("").to_dict())
    assert Statistics.load(tmp_path / "ref.npz").groups.tolist() == videos.tolist()


def test_samples_of_one_prompt_have_no_interval_and_say_so(monkeypatch, capsys, tmp_path):
    save_run(tmp_path / "run", crops(6, 1, side=24), ["a cat"] * 6)
    save(tmp_path / "ref", crops(6, 2, side=24))
    code, out, err = run(
        monkeypatch, capsys, tmp_path / "run", "--ref", tmp_path / "ref", "--features", "coarse", "--json",
        tmp_path / "out.json",
    )  # fmt: skip
    assert code == 0, err
    assert "all samples are of one prompt: KID(coarse) has no interval" in out
    found = json.loads((tmp_path / "out.json").read_text())["values"]
    assert found["KID(coarse)"]["low"] is None and "KID(coarse), across prompts" not in found


def test_brackets_in_names_are_text_and_nothing_is_lost_by_printing(monkeypatch, capsys, sets):
    ref = sets / "ref[" / "x]"  # a path that looks like a closing tag
    ref.parent.mkdir()
    (sets / "ref").rename(ref)
    (ref / "003.png").write_bytes(b"no picture")
    monkeypatch.setattr(Coarse, "title", "coarse[/b]")
    options = ("--ref", ref, "--features", "coarse")
    code, out, err = run(monkeypatch, capsys, sets / "run", *options)
    assert code == 0, err
    assert "ref[/x] could not be read" in out and "FD(coarse[/b])" in out

    def broken(*_: object) -> None:
        raise RuntimeError("no terminal")

    kept = sets / "run" / "results" / "distances.coarse.json"
    kept.unlink()
    monkeypatch.setattr("fastdit.cli.eval.fid.show", broken)
    code, _, _ = run(monkeypatch, capsys, sets / "run", *options, "--json", sets / "out.json")
    assert code == 2 and kept.is_file() and (sets / "out.json").is_file()


def test_too_few_samples_are_refused_before_the_reference_is_read(monkeypatch, capsys, sets):
    read = []
    monkeypatch.setattr("fastdit.evaluation.distribution.open_reference", lambda *given, **_: read.append(given))
    save(sets / "one", crops(1, 2, side=24))
    for engine in ("fastdit", "torch-fidelity"):
        options = ("--ref", sets / "ref", "--features", "coarse", "--engine", engine)
        for arguments, message in (((sets / "run", "--num", 61), "--num 61:"), ((sets / "one",), "2 or more")):
            code, _, err = run(monkeypatch, capsys, *arguments, *options)
            assert code == 2 and message in err and err.count("\n") == 1 and not read, err
    pictures = Samples.open(sets / "run")
    with pytest.raises(ValueError, match=r"--num 61: .* holds 60 samples"):
        second_engine.measure(pictures, pictures, Coarse(), num=61)


def test_saved_statistics_serve_as_reference_and_as_bare_ones_only_for_fd(monkeypatch, capsys, sets):
    options = ("--features", "coarse")
    code, first, _ = run(
        monkeypatch, capsys, sets / "run", "--ref", sets / "ref", *options, "--save-ref-stats", sets / "ref.npz",
        "--save-stats", sets / "run.npz",
    )  # fmt: skip
    assert code == 0 and Statistics.load(sets / "run.npz").n == 60
    code, second, _ = run(monkeypatch, capsys, sets / "run", "--ref", sets / "ref.npz", *options)
    table = [line.split() for line in first.splitlines() if "coarse)" in line]
    assert code == 0 and table == [line.split() for line in second.splitlines() if "coarse)" in line]
    s = Statistics.load(sets / "ref.npz")
    np.savez(sets / "bare.npz", mu=s.mean, sigma=s.covariance, extractor="coarse")
    code, third, _ = run(monkeypatch, capsys, sets / "run", "--ref", sets / "bare.npz", *options)
    assert code == 0 and table[0] in [line.split() for line in third.splitlines()]
    assert "60 samples, the reference: statistics of unknown n; features" in third
    assert "the reference holds statistics only: KID(coarse), precision and recall need its pictures" in third


def test_adms_reference_gives_fid_by_statistics_and_kid_by_pictures(monkeypatch, capsys, sets):
    pack(Samples.open(sets / "ref"), sets / "pictures.npz")
    with np.load(sets / "pictures.npz") as file:
        data = dict(file)
    mean, covariance = np.zeros(48), np.eye(48)
    np.savez(sets / "adm.npz", **data, mu=mean, sigma=covariance, mu_s=np.zeros(3), sigma_s=np.eye(3))
    code, out, err = run(monkeypatch, capsys, sets / "run", "--ref", sets / "adm.npz", "--json", sets / "out.json")
    assert code == 0, err
    assert "taken for Inception's" in out and "ADM's, made with TensorFlow's resizing" in out
    assert "60 samples, the reference: statistics of unknown n; 70 pictures for KID" in out
    x, y = values(sets)
    data = json.loads((sets / "out.json").read_text())
    assert (data["n_reference"], data["n_reference_pictures"]) == (None, 70)
    found = data["values"]
    expected = frechet_distance(Statistics.of(x, "c"), Statistics(mean, covariance, None, "c"))
    assert found["FID"]["value"] == pytest.approx(expected) and found["KID"]["value"] == pytest.approx(kid(x, y))
    code, out, _ = run(monkeypatch, capsys, sets / "run", "--ref", sets / "adm.npz", "--features", "coarse")
    assert code == 0 and "coarse cannot use: only its pictures count" in out and "FID" not in out


def test_torch_fidelity_finds_the_same_from_end_to_end(monkeypatch, capsys, sets):
    pytest.importorskip("torch_fidelity")
    code, out, err = run(
        monkeypatch, capsys, sets / "run", "--ref", sets / "ref", "--features", "coarse", "--engine", "torch-fidelity",
        "--kid-subset-size", 40, "--json", sets / "out.json",
    )  # fmt: skip
    assert code == 0, err
    assert "torch-fidelity's: its loading, loops and arithmetic" in out
    found = {key: value["value"] for key, value in json.loads((sets / "out.json").read_text())["values"].items()}
    x, y = values(sets)
    ours = frechet_distance(Statistics.of(x, "c"), Statistics.of(y, "c"))
    assert found["FD(coarse)"] == pytest.approx(ours, rel=1e-4)
    assert found["KID(coarse), 100 subsets of 40"] == pytest.approx(kid(x, y, 40, seed=2020), rel=1e-4)
    assert (sets / "run" / "results" / "distances.coarse.torch-fidelity.json").is_file()


def test_warnings_count_and_name(monkeypatch, capsys, sets):
    (sets / "ref" / "003.png").write_bytes(b"no picture")
    save(sets / "few", crops(5, 3, side=30))
    code, out, _ = run(monkeypatch, capsys, sets / "few", "--ref", sets / "ref", "--features", "coarse")
    assert code == 0
    for text in (
        "1 of 70 samples of", "003.png",
        "FD(coarse) of 5 samples in 48 dimensions is far too high; it is biased at every n: compare equal n only",
    ):  # fmt: skip
        assert text in out
    assert not (sets / "few" / "results").exists()  # no run: nothing is written there


BAD = [
    (("none", "--ref", "ref"), "none does not exist"),
    (("run", "--ref", "none"), "--ref none does not exist"),
    (("run", "--ref", "nope.npz"), "--ref nope.npz does not exist"),
    (("run", "--ref", "bent.npz", "--features", "coarse"), "--ref bent.npz: features (3,) must be (samples, 48)"),
    (("empty", "--ref", "ref"), "empty holds no samples"),
    (("one", "--ref", "ref"), "1 sample is not enough, a distribution needs 2 or more"),
    (("double", "--ref", "ref"), "two samples of one name"),
    (("run", "--ref", "ref", "--num", "99"), "--num 99:"),
    (("run", "--ref", "ref", "--features", "incepton"), "did you mean 'inception'?"),
    (("run", "--ref", "ref", "--features", "inception-tf"), inception_tf.FILE),
    (("run", "--ref", "ref", "--features", "coarse", "--clip", "x"), "--clip is no option of the features coarse"),
    (("run", "--ref", "ref", "--engine", "clean-fid"), "--engine clean-fid: use fastdit or torch-fidelity"),
    (("run", "--ref", "ref", "--frames", "first"), "--frames first: use middle or all"),
    (("run", "--ref", "ref", "--json", "no/out.json"), "--json no/out.json: folder no does not exist"),
    (("run", "--ref", "ref", "--save-stats", "x.txt"), "--save-stats x.txt: statistics are saved as .npz"),
    (
        ("run", "--ref", "ref", "--engine", "torch-fidelity", "--save-stats", "x.npz"),
        "--save-stats needs --engine fast",
    ),
    (("run", "--ref", "stats.npz", "--engine", "torch-fidelity"), "needs the reference's pictures, not statistics"),
    (
        ("run", "--ref", "stats.npz", "--features", "coarse"),
        "features of other cannot be compared with those of coarse",
    ),
    (("run", "--ref", "wide.npz", "--features", "coarse"), "have 64 dimensions where coarse has 48"),
    (("run", "--ref", "torn.npz", "--features", "coarse"), "torn.npz is no npz that can be read"),
    (("run", "--ref", "ref", "--device", "foo"), "--device foo: use auto"),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=[" ".join(a[0])[:50] for a in BAD])
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    save_run(tmp_path / "run", crops(3, 1, side=24), "abc")
    save(tmp_path / "ref", crops(3, 2, side=24))
    save(tmp_path / "one", crops(1, 2, side=24))
    (tmp_path / "empty").mkdir()
    (save(tmp_path / "double", crops(1, 2, side=24)) / "000.jpg").write_bytes(b"")
    np.savez("stats.npz", mu=np.zeros(48), sigma=np.eye(48), extractor="other")
    np.savez("wide.npz", mu=np.zeros(64), sigma=np.eye(64), extractor="coarse")
    np.savez("bent.npz", mu=np.zeros(48), sigma=np.eye(48), extractor="coarse", features=np.zeros(3))
    (tmp_path / "torn.npz").write_bytes((tmp_path / "wide.npz").read_bytes()[:400])
    before = sorted(tmp_path.rglob("*"))
    code, _, err = run(monkeypatch, capsys, *arguments, "--workers", 0)
    lines = err.strip().split("\n")  # and no empty bar before it
    assert code == 2 and len(lines) == 1 and lines[0].startswith("fastdit: ") and message in lines[0], err
    assert [path for path in sorted(tmp_path.rglob("*")) if path not in before and path.name != "results"] == []


def test_a_bundled_models_name_is_a_reference_of_its_training_pictures():
    path = reference_from(Path("fastdit/emoji-image"))
    samples = Samples.open(path)
    assert len(samples.names) == len(zoo.prompts("fastdit/emoji-image")) == 206
    assert samples.read(samples.names[0]).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="unknown bundled model 'fastdit/none'"):
        reference_from(Path("fastdit/none"))
