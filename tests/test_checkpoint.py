"""Checkpoints are whole or refused, with the reason."""

import errno
import json
import os
import pickle
from dataclasses import FrozenInstanceError

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from pnnh import checkpoint
from pnnh._errors import RunError, UsageError
from pnnh._files import check_writable, sha256_file, write_bytes
from pnnh.checkpoint import Damaged


def net(width=4):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.Conv2d(width, width, 3))
    return model.to(memory_format=torch.channels_last)


RECORD = {"model": {"name": "tiny", "kwargs": {}}, "note": "Größe"}


@pytest.fixture
def saved(tmp_path):
    return checkpoint.save(tmp_path / "run", net(), RECORD)


def test_what_is_saved_is_what_is_loaded(saved):
    found = checkpoint.load(saved)
    assert found.record == RECORD
    other = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    found.load_into(other)
    for ours, theirs in zip(other.state_dict().values(), net().state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    assert sorted(path.name for path in saved.iterdir()) == ["manifest.json", "model.safetensors", "record.json"]
    assert load_file(saved / "model.safetensors").keys() == net().state_dict().keys()  # an ordinary file to others
    assert "Größe" in (saved / "record.json").read_text(encoding="utf-8")  # and to people
    assert len({found, checkpoint.load(saved)}) == 2  # two readings are two things
    with pytest.raises(FrozenInstanceError):
        found.record = {}


def test_tied_weights_and_every_dtype_survive(tmp_path):
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    for i, dtype in enumerate((torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.uint8, torch.float64)):
        model.register_buffer(f"b{i}", torch.tensor([0, 1, 1]).to(dtype))
    model.register_buffer("empty", torch.zeros(0))
    model.register_buffer("scalar", torch.tensor(3.0))
    tensors = checkpoint.load(checkpoint.save(tmp_path, model, {})).tensors
    for name, value in model.state_dict().items():
        assert tensors[name].dtype == value.dtype
        assert torch.equal(tensors[name], value)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_or_cut_is_refused_or_harmless(saved, data):
    """Each file of the folder, any bit, any length: refused, or what is read is what was written."""
    path = saved / data.draw(st.sampled_from(["model.safetensors", "record.json", "manifest.json"]))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:place])
    else:
        path.write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << data.draw(st.integers(0, 7)))]) + whole[place + 1 :]
        )
    try:
        found = checkpoint.load(saved)
    except Damaged:
        pass
    else:  # white space of the manifest
        assert path.name == "manifest.json"
        assert found.record == RECORD
        assert all(torch.equal(found.tensors[name], value) for name, value in net().state_dict().items())
    finally:
        path.write_bytes(whole)


def test_swapped_and_exchanged_tensors_are_refused(saved):
    path = saved / "model.safetensors"
    tensors = load_file(path)
    swapped = dict(tensors)
    swapped["1.weight"], swapped["1.running_var"] = tensors["1.bias"].clone(), tensors["1.weight"].clone()
    save_file(swapped, path)
    with pytest.raises(Damaged, match="was changed after it was written"):
        checkpoint.load(saved)
    del tensors["1.bias"]
    tensors["0.weight"] = torch.zeros(4, 1, 3, 3)
    save_file(tensors, path)
    with pytest.raises(Damaged, match="was changed after it was written, or cut short"):
        checkpoint.load(saved)


def test_nan_weights_are_refused_even_with_a_matching_manifest(tmp_path):
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("nan")
    checkpoint.save(tmp_path, model, RECORD)
    with pytest.raises(Damaged, match=r"tensor '2.weight' holds NaN"):
        checkpoint.load(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("pickle-was-executed",)


def test_a_pickle_in_the_place_of_weights_is_never_executed(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = saved / "model.safetensors"
    manifest = json.loads((saved / "manifest.json").read_text())
    path.write_bytes(pickle.dumps(Bomb()))
    manifest["files"]["model.safetensors"] = sha256_file(path)
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Damaged, match="not a readable safetensors file"):
        checkpoint.load(saved)
    assert not (tmp_path / "pickle-was-executed").exists()


def test_folders_that_are_no_checkpoint(saved, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        checkpoint.load(tmp_path / "nowhere")
    for other in ([], {"format": "other", "files": {}}, {"format": checkpoint.FORMAT, "files": []}):
        (saved / "manifest.json").write_text(json.dumps(other))
        with pytest.raises(Damaged, match="is not a 'pnnh checkpoint 2'"):
            checkpoint.load(saved)
    (saved / "manifest.json").unlink()
    with pytest.raises(Damaged, match="never finished"):
        checkpoint.load(saved)
    outside = tmp_path / "secret.json"
    outside.write_text("{}")
    escape = {"format": checkpoint.FORMAT, "files": {"../secret.json": "0"}}
    (saved / "manifest.json").write_text(json.dumps(escape))
    with pytest.raises(Damaged, match="outside"):
        checkpoint.load(saved)


@pytest.mark.parametrize("missing", ["model.safetensors", "record.json"])
def test_a_whole_folder_without_weights_or_record_is_no_trained_model(tmp_path, missing):
    tensors, values = {"model.safetensors": {"x": torch.ones(1)}}, {"record.json": {}}
    (tensors if missing in tensors else values).clear()
    checkpoint.write_folder(tmp_path / "run", tensors, values)
    assert checkpoint.read_folder(tmp_path / "run") == (tensors, values)
    with pytest.raises(Damaged, match="is no trained model"):
        checkpoint.load(tmp_path / "run")


def test_a_folder_of_the_former_format_is_refused_in_one_line_that_says_why(saved):
    old = {"format": "pnnh checkpoint 1", "files": {"model.safetensors": {"bytes": 9, "tensors": {}}}}
    (saved / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(Damaged, match=r"an older pnnh .* train again, or load its model.safetensors") as refusal:
        checkpoint.load(saved)
    assert "\n" not in str(refusal.value)


def test_a_save_cut_short_over_an_older_one_was_never_finished(saved, monkeypatch):
    def killed(tensors):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "format_safetensors", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(saved, net(), RECORD)
    with pytest.raises(Damaged, match="never finished"):
        checkpoint.load(saved)


def test_a_folder_is_written_anew_whatever_was_left_of_an_earlier_attempt(tmp_path):
    left = tmp_path / "deep" / f".state.{os.getpid()}.partial"
    left.mkdir(parents=True)
    (left / "old").write_text("")
    for number in (1, 2):
        checkpoint.write_folder(tmp_path / "deep" / "state", {}, {"n.json": number})
        assert checkpoint.read_folder(tmp_path / "deep" / "state") == ({}, {"n.json": number})
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "manifest.json", "n.json", "state"]


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"^cannot write to .*/file/run: Not a directory; choose another --out$"):
        check_writable(tmp_path / "file" / "run")
    check_writable(tmp_path / "a" / "b")
    (tmp_path / "there").mkdir()
    check_writable(tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]  # nothing is left behind


def test_another_architecture_is_refused_by_name(saved):
    with pytest.raises(RunError, match=r"'0.bias' is \(4,\) in the checkpoint, \(5,\) in the model") as refusal:
        checkpoint.load(saved).load_into(net(width=5))
    assert str(refusal.value).endswith("; and 3 more")
    with pytest.raises(RunError, match=r"'2.bias' is missing in the model"):
        checkpoint.load(saved).load_into(net()[:2])


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    place = tmp_path / "state" / "step-1"
    checkpoint.write_folder(place, {"a.safetensors": {"x": torch.ones(3)}}, {"b.json": {"n": 1}})

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for name in ("step-1", "step-2"):
        with pytest.raises(RunError, match=rf"/{name}: No space left on device; earlier checkpoints are untouched"):
            checkpoint.write_folder(tmp_path / "state" / name, {"a.safetensors": {"x": torch.zeros(3)}}, {})
    monkeypatch.undo()
    tensors, values = checkpoint.read_folder(place)
    assert torch.equal(tensors["a.safetensors"]["x"], torch.ones(3))
    assert values == {"b.json": {"n": 1}}
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["step-1"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "value.json"
    write_bytes(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_and_the_folders_they_are_renamed_in_are_synced(tmp_path, monkeypatch):
    synced = {}  # inode -> bytes at that moment

    def sync(handle):
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", sync)
    place, handles = tmp_path / "state", len(os.listdir("/dev/fd"))
    checkpoint.write_folder(place, {"a.safetensors": {"x": torch.ones(3)}}, {"b.json": {}})
    assert len(os.listdir("/dev/fd")) == handles
    assert {tmp_path.stat().st_ino, place.stat().st_ino} <= synced.keys()
    for path in place.iterdir():
        assert synced[path.stat().st_ino] == path.stat().st_size > 0
    assert list(synced)[2] == place.joinpath("manifest.json").stat().st_ino  # the third and last file


def wrapped_names(prefix):
    return {prefix + name: value for name, value in net().state_dict().items()}


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_the_prefixes_of_wrappers_are_left_out_of_account(prefix):
    blank = net()
    for value in blank.state_dict().values():
        value.fill_(1)
    checkpoint.fit_weights(blank, wrapped_names(prefix), "the file")
    assert all(torch.equal(value, net().state_dict()[name]) for name, value in blank.state_dict().items())
    wrapped = nn.DataParallel(net())
    checkpoint.fit_weights(wrapped, wrapped_names(""), "the file")


def test_a_model_that_was_compiled_in_parts_and_one_with_a_child_called_module():
    inner = {name.replace("0.", "0._orig_mod."): value for name, value in net().state_dict().items()}
    assert checkpoint.fit_weights(net(), inner, "the file")
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    assert checkpoint.fit_weights(model, model.state_dict(), "the file") is model
    twice = nn.ModuleDict({"module": nn.Linear(2, 2)})
    twice.register_parameter("weight", nn.Parameter(torch.zeros(2, 2)))  # "module.weight" is another one
    given = {name: torch.full_like(value, index) for index, (name, value) in enumerate(twice.state_dict().items())}
    checkpoint.fit_weights(twice, given, "the file")
    assert all(torch.equal(value, given[name]) for name, value in twice.state_dict().items())


def test_of_a_shared_tensor_one_name_is_enough_and_every_other_fault_is_named():
    model = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    tensors = {name: torch.full_like(value, 2) for name, value in model.state_dict().items()}
    del tensors["1.weight"]
    checkpoint.fit_weights(model, tensors, "the file")
    assert model[1].weight.eq(2).all()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    odd = {"0.weight": torch.ones(3, 3), "0.bias": torch.ones(4), "2.bias": torch.ones(3)}
    with pytest.raises(RunError) as refusal:
        checkpoint.fit_weights(model, odd, "FILE")
    text = str(refusal.value)
    assert text.startswith("FILE does not fit ModuleList: ")
    for fault in (
        "'0.bias' is (4,) in FILE, (3,) in the model",
        "'1.bias' is missing in FILE",
        "'2.bias' is missing in",
    ):
        assert fault in text
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
