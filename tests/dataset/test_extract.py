"""python -m dataset.extract: clips made of a tone and scikit-image's public-domain photograph."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation
from skimage.data import astronaut

from dataset import extract
from dataset.extract import AUDIO, DISTANCES, VISION, face_features
from tests.commands import ROOT, launch, refused
from utils.reading import read_json

# Of a clip; samples a second; Hz of its two halves; of 1
SECONDS, RATE, PITCHES, LEVEL = (
    2,
    24000,
    (180, 270),
    0.3,
)
TIMES = np.arange(15 * SECONDS) / 15  # of the pictures, in seconds
SHIFTS = 80 - np.abs(np.linspace(-80, 80, len(TIMES)))  # pixels to the right
TURNS = 15 - np.abs(np.linspace(-30, 30, len(TIMES)))  # degrees clockwise


def tone(seconds: float = SECONDS) -> np.ndarray:
    """(S,) int16: a sine, lower in the first half."""
    pitch = np.repeat(PITCHES, round(seconds * RATE / 2))
    return (LEVEL * 2**15 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)).astype(np.int16)


def write(
    path: Path, images=(), samples=None, times=TIMES, late: float = 0, layout: str = "mono"
) -> None:
    """Images (512, 512, 3) at these seconds, and samples (S,) from `late` on."""
    import av

    with av.open(str(path), "w") as container:
        video = (
            container.add_stream("mpeg4", rate=15, width=512, height=512, bit_rate=4_000_000)
            if images
            else None
        )
        codec = "aac" if images else "pcm_s16le"
        sound = None if samples is None else container.add_stream(codec, rate=RATE, layout=layout)
        for image, time in zip(images, times, strict=bool(images)):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts = round(15 * time)
            container.mux(video.encode(frame))
        container.mux(video.encode() if images else [])
        if sound:
            both = np.repeat(samples, len(sound.layout.channels))[None]
            frame = av.AudioFrame.from_ndarray(both, format="s16", layout=layout)
            frame.sample_rate, frame.pts = RATE, round(late * RATE)
            container.mux([*sound.encode(frame), *sound.encode()])


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    pytest.importorskip("mediapipe")
    photograph = astronaut()  # (512, 512, 3), with a face
    folder, grey = tmp_path_factory.mktemp("clips"), np.full((512, 512, 3), 128, np.uint8)
    write(
        folder / "moved.mp4",
        [np.roll(photograph, int(by), axis=1) for by in SHIFTS],
        tone(),
        layout="stereo",
    )
    turned = [ndimage.rotate(photograph, -turn, reshape=False, order=1) for turn in TURNS]
    write(folder / "turned.mkv", turned, 0 * tone())
    write(folder / "turned.wav", samples=tone())
    write(folder / "lying.mp4", [np.rot90(photograph)], times=[0])
    content = bytearray((folder / "lying.mp4").read_bytes())
    # The matrix of the track (ISO 14496-12): to be shown turned clockwise
    at = content.index(b"tkhd") + 44
    content[at : at + 20] = np.array([0, 1 << 16, 0, -(1 << 16), 0], ">i4").tobytes()
    (folder / "lying.mp4").write_bytes(content)
    write(
        folder / "close.mp4",
        [photograph[70:198, 158:286].repeat(4, axis=0).repeat(4, axis=1)],
        times=[0],
    )
    write(folder / "silent.mp4", [photograph, grey, grey], times=[0, 0.4, 1])
    write(folder / "faceless.mkv", [grey] * len(TIMES), tone(1), late=1)
    write(folder / "nothing.mov", [grey], 0 * tone(), times=[0])
    (folder / "broken.mp4").write_bytes((folder / "moved.mp4").read_bytes()[:20000])
    (folder / "empty.webm").touch()
    (folder / "void.wav").write_bytes((folder / "turned.wav").read_bytes()[:44])
    return folder


@pytest.fixture(scope="module")
def extracted(clips, tmp_path_factory):
    """-> how the command ended; its folder"""
    output = tmp_path_factory.mktemp("work") / "features"
    return launch(
        "-m", "dataset.extract", str(clips), "-o", str(output), "-j", "2", cwd=ROOT
    ), output


def read(output: Path, key: str, name: str) -> dict[str, np.ndarray]:
    """The columns (T,) of a feature file."""
    columns = {"audio": AUDIO, "vision": VISION}[key]
    return dict(zip(columns, np.load(output / key / f"{name}.npy").T, strict=True))


def test_failed_clips_are_skipped_and_missing_modalities_are_zeros(extracted):
    result, output = extracted
    assert result.returncode == 2, result
    assert "10 clips: 2 complete, 3 without sound, 1 without a face, 4 failed.\n" in result.stdout
    named = {line.split(": ")[0] for line in result.stdout.splitlines()[:-1]}
    assert named == {"broken", "empty", "void", "nothing", "silent", "lying", "close", "faceless"}
    assert "a face in only 33% of the frames" in result.stdout
    names = ["close.npy", "faceless.npy", "lying.npy", "moved.npy", "silent.npy", "turned.npy"]
    assert sorted(os.listdir(output / "audio")) == sorted(os.listdir(output / "vision")) == names
    columns = read_json(output / "features.json")["columns"]
    assert (
        not np.load(output / "audio/silent.npy").any()
        and not np.load(output / "vision/faceless.npy").any()
    )
    # The photograph is shown until 0.4 s, grey ones to 1 s
    vision = np.load(output / "vision/silent.npy")
    assert (
        vision.shape == (6, len(columns["vision"]))
        and vision[:2].any(axis=1).all()
        and not vision[2:].any()
    )


@pytest.mark.parametrize(("name", "begin"), [("moved", 0), ("turned", 0), ("faceless", 1)])
def test_audio_features_of_a_tone_match_known_values(extracted, name, begin):
    """For stereo and mono sound, and for a sound track that begins late."""
    audio, middle = read(extracted[1], "audio", name), 10 * (begin + SECONDS)
    assert len(audio["f0"]) == pytest.approx(SECONDS * 20, abs=3)
    assert not audio["rms"][: begin * 18].any() and not audio["f0"][: begin * 18].any()
    for part, pitch in (
        (slice(begin * 20 + 3, middle - 2), PITCHES[0]),
        (slice(middle + 3, 37), PITCHES[1]),
    ):
        np.testing.assert_allclose(audio["f0"][part], pitch, rtol=0.02)
        np.testing.assert_allclose(audio["spectral_centroid"][part], pitch, rtol=0.1)
        np.testing.assert_allclose(audio["zero_crossings"][part], 2 * pitch / 16000, rtol=0.1)
        np.testing.assert_allclose(audio["rms"][part], LEVEL / np.sqrt(2), rtol=0.05)
        assert (audio["voicing"][part] > 0.5).all()


def test_vision_features_follow_a_moving_face(extracted):
    moved, turned, lying, close = (
        read(extracted[1], "vision", name) for name in ("moved", "turned", "lying", "close")
    )
    assert moved["size"].all() and len(moved["x"]) == SECONDS * 5 and close["size"].all()
    # 5 of 15 are looked at
    np.testing.assert_allclose((moved["x"] - moved["x"][0]) * 512, SHIFTS[::3], atol=4)
    np.testing.assert_allclose(
        turned["roll"] - turned["roll"].mean(), TURNS[::3] - TURNS[::3].mean(), atol=3
    )
    np.testing.assert_allclose(turned["size"], moved["size"].mean(), rtol=0.1)
    np.testing.assert_allclose(
        [lying[key][0] for key in ("x", "y")], [moved[key][0] for key in ("x", "y")], atol=0.01
    )
    assert all(
        (moved[key] > 0.02).all()
        for key in ("mouth_corner_right", "mouth_corner_left", "mouth_open")
    )


def test_second_run_extracts_new_clips_and_gives_the_same_bytes(clips, extracted):
    output = extracted[1]
    files = sorted(output.rglob("*.npy"))
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    (output / "vision/moved.npy").unlink()
    os.utime(clips / "turned.wav")
    arguments = ["-m", "dataset.extract", str(clips), "-o", str(output)]
    assert "another folder" in launch(*arguments, "--vision-rate", "10", cwd=ROOT).stderr
    result = launch(*arguments, cwd=ROOT)
    assert "4 done before, 2 complete, 4 failed" in result.stdout and result.returncode == 2
    assert all(file.read_bytes() == before[file][0] for file in files)
    assert {file.stem for file in files if file.stat().st_mtime_ns != before[file][1]} == {
        "moved",
        "turned",
    }


def test_features_with_other_unit_descriptions_are_accepted(clips, extracted):
    output = extracted[1]
    description = read_json(output / "features.json")
    description["columns"]["vision"]["pitch"] = (
        "degrees up, of which only differences mean something"
    )
    (output / "features.json").write_text(json.dumps(description))
    result = launch("-m", "dataset.extract", str(clips), "-o", str(output), cwd=ROOT)
    assert "6 done before, 4 failed" in result.stdout
    assert read_json(output / "features.json")["columns"]["vision"] == VISION
    (output / "features.json").write_text("[]")
    assert (
        "another folder"
        in launch("-m", "dataset.extract", str(clips), "-o", str(output), cwd=ROOT).stderr
    )


def test_missing_or_ambiguous_clips_and_missing_libraries_give_one_line(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [".", "-o", "out"]
    assert "no clips" in refused(capsys, extract, *arguments)
    Path("a.mp4").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install -r requirements-extract.txt" in refused(capsys, extract, *arguments)
    assert "--audio-rate" in refused(capsys, extract, *arguments, "--audio-rate", "0")
    Path("a.MOV").touch()
    assert "more than one video of a" in refused(capsys, extract, *arguments)


def test_pose_and_distances_match_known_points():
    """A head turned by known angles has them, and keeps its distances anywhere in the image."""
    points = np.random.default_rng(0).normal(size=(478, 3))
    points[[33, 263]], points[[10, 2]] = [[-1, 0, 0], [1, 0, 0]], [[0, -1, 0], [0, 1.5, 0]]
    straight = None
    for yaw, pitch, roll in ([0, 0, 0], [30, 0, 0], [0, -20, 0], [0, 0, 15], [25, 10, -40]):
        # X right, y down
        turned = Rotation.from_euler("YXZ", [-yaw, -pitch, roll], degrees=True).apply(points)
        found = dict(zip(VISION, face_features(turned * 50 + [300, 200, 0], 640, 480), strict=True))
        np.testing.assert_allclose(
            [found[key] for key in ("yaw", "pitch", "roll")], [yaw, pitch, roll], atol=1e-6
        )
        np.testing.assert_allclose(
            [found["x"], found["y"], found["size"]], [300 / 640, 200 / 480, 100 / 640]
        )
        shape = [found[key] for key in (*DISTANCES, "mouth_corner_left", "gaze_x")]
        straight = straight or shape
        np.testing.assert_allclose(shape, straight)
    # Towards the camera is -z
    nose = Rotation.from_euler("YXZ", [-30, -30, 0], degrees=True).apply([0, 0, -1])
    assert nose[0] > 0 and nose[1] < 0
