"""Samples read the same wherever they lie; what is no sample is named in one line."""

import io
import json
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mingle.errors import SeedsError, UnknownNameError
from mingle.suites import LazyImages, RawSamples, load_samples, pick

from .conftest import random_images


@pytest.fixture
def pixels():
    """Five uint8 images (N, 3, H, W), not square, so that swapped axes show."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (5, 3, 6, 8), generator=generator, dtype=torch.uint8)


@pytest.fixture
def pictures(pixels):
    return [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]


def as_array(samples):
    """Any samples as one array (N, 3, H, W)."""
    if isinstance(samples, torch.Tensor):
        return samples.numpy()
    return np.stack([np.asarray(image.convert("RGB")).transpose(2, 0, 1) for image in samples])


def write(kind, folder, pixels, pictures):
    """Stores the images in one of the ways that are understood; returns what to pass."""
    channels_last = pixels.permute(0, 2, 3, 1).numpy()
    if kind == "tensor":
        return pixels
    if kind == "list":
        return pictures
    if kind == "tuple":
        return tuple(pictures)
    if kind == "folder":
        for i, picture in enumerate(pictures):
            picture.save(folder / f"{i}.png")
        return folder
    if kind == "classes":
        for i, picture in enumerate(pictures):
            (folder / f"class{i}").mkdir()
            picture.save(folder / f"class{i}" / "image.PNG")
        return str(folder)
    file = folder / {"safetensors": "a.safetensors"}.get(kind, "a.npz")
    if kind == "safetensors":
        save_file({"images": pixels}, file)
    if kind == "npz nchw":
        np.savez(file, images=pixels.numpy())
    if kind == "npz nhwc":
        np.savez_compressed(file, seed_images=channels_last)
    return file


KINDS = ("tensor", "list", "tuple", "folder", "classes", "safetensors", "npz nchw", "npz nhwc")


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_images_and_the_same_ids(kind, tmp_path, pixels, pictures):
    raw = load_samples(write(kind, tmp_path, pixels, pictures))
    assert np.array_equal(as_array(raw.samples), pixels.numpy())
    assert raw.ids() == RawSamples(pixels).ids()
    assert len(set(raw.ids())) == 5
    assert raw.labels is None


def test_ids_follow_content_and_not_place(pixels):
    ids = RawSamples(pixels).ids()
    assert RawSamples(pixels.flip(0)).ids() == ids[::-1]
    changed = pixels.clone()
    changed[2, 0, 0, 0] ^= 1
    assert [a == b for a, b in zip(ids, RawSamples(changed).ids(), strict=True)] == [1, 1, 0, 1, 1]
    strided = pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert RawSamples(strided).ids() == ids


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_pictures_of_any_mode_are_read_as_colours(tmp_path, pictures, mode):
    picture = pictures[0].convert(mode)
    picture.save(tmp_path / "one.png")
    raw = load_samples(tmp_path)
    assert np.array_equal(as_array(raw.samples)[0], as_array([picture])[0])
    assert raw.ids() == load_samples([picture]).ids()


def test_class_folders_bring_names_and_flat_folders_do_not(tmp_path, pictures):
    for i, name in enumerate(["cat", "cat", "dog"]):
        (tmp_path / name).mkdir(exist_ok=True)
        pictures[i].save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    raw = load_samples(tmp_path)
    assert raw.label_names == ("cat", "cat", "dog")
    assert raw.source == str(tmp_path)
    assert load_samples(tmp_path / "cat").label_names is None
    # An image beside the class folders leaves it open what the folders mean.
    pictures[3].save(tmp_path / "loose.png")
    mixed = load_samples(tmp_path)
    assert mixed.label_names is None
    assert len(mixed.samples) == 4


def test_order_of_a_folder_is_that_of_its_names(tmp_path, pictures, pixels):
    for i in (3, 0, 4, 1, 2):
        pictures[i].save(tmp_path / f"image{i}.png")
    assert np.array_equal(as_array(load_samples(tmp_path).samples), pixels.numpy())


def test_single_image(tmp_path, pictures, pixels):
    pictures[0].save(tmp_path / "one.png")
    assert np.array_equal(as_array(load_samples(tmp_path / "one.png").samples), pixels[:1].numpy())


@pytest.mark.parametrize("name", ["labels", "y"])
@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_arrays_may_bring_labels(tmp_path, pixels, name, kind):
    file, labels = tmp_path / f"a.{kind}", torch.tensor([3, 1, 2, 0, 1], dtype=torch.int32)
    if kind == "npz":
        np.savez(file, images=pixels.numpy(), **{name: labels.numpy()})
    else:
        save_file({"images": pixels, name: labels}, file)
    found = load_samples(file).labels
    assert found.dtype == torch.int64
    assert found.tolist() == [3, 1, 2, 0, 1]


def test_image_files_are_opened_when_they_are_looked_at(tmp_path, pixels, pictures):
    files = []
    for i, picture in enumerate(pictures):
        files.append(tmp_path / f"{i}.png")
        picture.save(files[-1])
    lazy = LazyImages.of_files(files)
    for i in (0, 2, 3):
        files[i].unlink()
    assert len(lazy) == 5
    assert np.array_equal(as_array(pick(lazy, [4, 1])), pixels[[4, 1]].numpy())
    assert np.array_equal(as_array(lazy[1:][3:]), pixels[4:].numpy())
    assert RawSamples(pick(lazy, [1, 4])).ids() == RawSamples(pixels[[1, 4]]).ids()
    with pytest.raises(SeedsError, match=r"2\.png: not a readable image"):
        lazy[2]


def test_samples_that_are_ready_pass_through(pixels):
    raw = RawSamples(pixels, source="elsewhere")
    assert load_samples(raw) is raw


def test_texts_in_memory_and_in_a_file(tmp_path):
    texts = ["good film", "bad film", "a.b"]
    raw = load_samples(texts)
    assert raw.samples == texts
    assert raw.ids() == RawSamples(texts).ids()
    assert len(set(raw.ids())) == 3
    file = tmp_path / "texts.jsonl"
    file.write_text("\n\n".join(json.dumps({"text": text, "label": i}) for i, text in enumerate(texts)))
    found = load_samples(file)
    assert found.samples == texts
    assert found.labels.tolist() == [0, 1, 2]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    assert load_samples(file, limit=2).labels is None
    assert len(load_samples(file, limit=2).samples) == 2


# --- what is refused


@pytest.mark.parametrize("text", ["{", "3", '{"sentence": "x"}', '{"text": "x", "label": "one"}', "\xff"])
def test_lines_that_are_no_texts(tmp_path, text):
    (tmp_path / "a.jsonl").write_text(text, "latin-1")
    assert refused(tmp_path / "a.jsonl").startswith(f"{tmp_path}/a.jsonl: expected lines like")


def test_list_of_image_names_is_read_as_images(tmp_path):
    assert "not a readable image (" in refused([str(tmp_path / "none.png")])


def refused(source):
    with pytest.raises(SeedsError) as error:
        list(load_samples(source).samples)
    text = str(error.value)
    assert "\n" not in text
    return text


def test_pickled_arrays_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setattr("pickle.load", lambda *a, **k: pytest.fail("a pickle was opened"))
    monkeypatch.setattr("pickle.loads", lambda *a, **k: pytest.fail("a pickle was opened"))
    file = tmp_path / "a.npz"
    objects = np.empty(2, dtype=object)
    objects[:] = [{"x": 1}, {"y": 2}]
    np.savez(file, images=objects)
    assert refused(file).startswith(f"{file}: not a readable array file (Object arrays cannot be loaded")
    file.write_bytes(b"\x80\x04N.")
    assert refused(file).startswith(f"{file}: not a readable array file (File is not a zip file")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"garbage" * 30])
def test_files_that_are_no_arrays(tmp_path, suffix, content):
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    assert refused(file).startswith(f"{file}: not a readable array file (")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_with_flipped_or_missing_bytes(tmp_path, pixels, save):
    """Every damage is either noticed in one line or leaves samples; nothing else escapes."""
    file = tmp_path / "a.npz"
    save(file, images=pixels.numpy())
    data, random = file.read_bytes(), np.random.default_rng(0)
    outcomes = set()
    for _ in range(150):
        spoiled = bytearray(data)
        for place in random.integers(0, len(data), 3):
            spoiled[place] = random.integers(256)
        if random.random() < 0.3:
            del spoiled[random.integers(len(data)) :]
        file.write_bytes(spoiled)
        try:
            outcomes.add(len(load_samples(file).samples) > 0)
        except SeedsError as error:
            outcomes.add("\n" in str(error))
    assert outcomes <= {False, True}
    assert False in outcomes


def test_archive_with_a_password(tmp_path, pixels):
    file = tmp_path / "a.npz"
    np.savez(file, images=pixels.numpy())
    data = bytearray(file.read_bytes())
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        [member] = archive.infolist()
    for header, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(header) + offset] |= 1
    file.write_bytes(data)
    assert "password required" in refused(file)
    assert member.filename == "images.npy"


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp", "ppm"])
def test_corrupt_images_are_named(tmp_path, pictures, suffix):
    good, bad = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    pictures[0].resize((64, 64)).save(good)
    for content in (b"", b"not an image", good.read_bytes()[:40]):
        bad.write_bytes(content)
        for source in (bad, tmp_path):
            assert refused(source).startswith(f"{bad}: not a readable image (")


def test_absurdly_large_image_is_not_decoded(tmp_path, monkeypatch, pictures):
    pictures[0].save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert "not a readable image (" in refused(tmp_path)
    # Between once and twice the limit Pillow only warns; under strict warnings that is refused too.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "decompression bomb" in refused(tmp_path)


@pytest.mark.parametrize("what", ["folder", "list", "tensor", "arrays"])
def test_nothing_is_not_enough(tmp_path, what):
    if what == "arrays":
        np.savez(tmp_path / "a.npz", images=np.zeros((0, 3, 4, 4), np.uint8))
    source = {
        "folder": tmp_path,
        "list": [],
        "tensor": torch.zeros(0, 3, 4, 4),
        "arrays": tmp_path / "a.npz",
    }[what]
    assert "no samples found; give at least one unlabelled sample" in refused(source)


def test_source_that_is_not_there(tmp_path):
    assert refused(tmp_path / "no" / "where").startswith(f"{tmp_path}/no/where: no such file or folder")


@pytest.mark.parametrize("name", ["a.txt", "a.npy", "a"])
def test_file_of_another_kind(tmp_path, name):
    (tmp_path / name).write_text("hello")
    assert refused(tmp_path / name).startswith(
        f"{tmp_path / name}: expected a folder of images, .safetensors"
    )


def test_arrays_without_images_name_what_they_hold(tmp_path):
    np.savez(tmp_path / "a.npz", pictures=np.zeros((2, 3, 4, 4)), other=np.zeros(2))
    message = refused(tmp_path / "a.npz")
    assert "expected an array named one of images, seed_images, pixel_values, x" in message
    assert message.endswith("found ['other', 'pictures']")


@pytest.mark.parametrize("shape", [(), (4,), (3, 8, 8), (1, 2, 3, 4, 5)])
def test_arrays_that_are_no_images_name_their_shape(tmp_path, shape):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    message = refused(tmp_path / "a.npz")
    assert message.endswith(f"expected images (N, 3, H, W) or (N, H, W, 3), found {shape}")


def test_unreadable_folder_entry_is_not_followed(tmp_path, pictures):
    """A folder that is called like an image is a folder."""
    (tmp_path / "odd.png").mkdir()
    pictures[0].save(tmp_path / "odd.png" / "real.png")
    assert len(load_samples(tmp_path).samples) == 1
    shutil.rmtree(tmp_path / "odd.png")
    assert "no samples found" in refused(tmp_path)


def test_colon_in_a_path_is_no_suite(tmp_path, monkeypatch, pictures):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run:one"
    folder.mkdir()
    pictures[0].save(folder / "a.png")
    assert len(load_samples("run:one").samples) == 1


def test_unknown_suite():
    with pytest.raises(UnknownNameError, match="unknown suite 'glyph9'; did you mean glyph8"):
        load_samples("glyph9:letters")


def test_random_images_of_different_seeds_differ():
    """Guards the fixtures of the evaluation tests, which tell samples apart by content."""
    ids = RawSamples(torch.cat([random_images(seed, 12) for seed in (100, 101, 200, 201)])).ids()
    assert len(set(ids)) == 48


@pytest.mark.parametrize(
    ("folders", "classes", "labels"),
    [
        (("b", "a", "b"), ("a", "b"), [1, 0, 1]),
        (("AnnualCrop", "sea_lake"), ("sea lake", "annual crop"), [1, 0]),
        (("A", "a"), ("a", "A"), [1, 0]),
        (("day1", "day2"), ("a", "b"), None),
        (("C-1",), ("c 1", "C_1"), None),
        (None, ("a",), None),
    ],
)
def test_folders_named_like_classes_are_labels(folders, classes, labels):
    samples = RawSamples(torch.zeros(len(folders or "x"), 3, 2, 2), label_names=folders)
    found = samples.labels_in(classes)
    assert (None if found is None else found.tolist()) == labels
