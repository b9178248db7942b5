"""Audio and vision features of video clips, for dataset.build.

python -m dataset.extract clips/ -o features/

They are not the published COVAREP and FACET features: a model is only good for features made as its training data were.
Legend: S samples, T steps, d columns. Step i is at i / rate seconds of the clip.
"""

import math
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from itertools import chain
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from dataset.features import shorten
from utils.cli import ArgumentParser, run_command
from utils.errors import ConfigError, DataError
from utils.files import write_atomically, write_json
from utils.reading import printable, read_json

VIDEO = (".mp4", ".mov", ".mkv", ".webm", ".avi")
SAMPLE_RATE, WINDOW = 16000, 1024  # Hz; samples around each step that audio features look at
# f0 is tracked every 10 ms between these Hz; the thresholds' prior is pYIN's for noisy sound, as of a webcam.
TRACK, LOWEST, HIGHEST, PRIOR = 160, 65, 400, (2, 8)
KINDS = ("done before", "complete", "without sound", "without a face", "failed")
AUDIO = {f"mfcc_{i}": "librosa's scale" for i in range(20)}  # columns, as features.json names them
AUDIO |= {"f0": "Hz; 0 where nothing is voiced", "voicing": "probability", "rms": "of 1"}
AUDIO |= {"zero_crossings": "share of the samples", "spectral_centroid": "Hz"}

SURE = 0.7  # confidence in a face; at MediaPipe's 0.5 drawings on the wall have one
# Landmarks of MediaPipe's face mesh; right and left are the speaker's.
EYE_CORNERS, IRISES, INNER_LIPS, MOUTH_CORNERS = [33, 133, 362, 263], [468, 473], [13, 14], [61, 291]
FOREHEAD, NOSE_BASE = 10, 2
DISTANCES = {
    "mouth_width": MOUTH_CORNERS, "mouth_open": INNER_LIPS, "lips_height": (0, 17), "nose_to_lip": (NOSE_BASE, 0),
    "nose_to_chin": (NOSE_BASE, 152), "brows_gap": (107, 336), "brow_inner_right": (107, 133),
    "brow_inner_left": (336, 362), "brow_outer_right": (105, 33), "brow_outer_left": (334, 263),
    "eye_open_right": (159, 145), "eye_open_left": (386, 374),
}  # fmt: skip
VISION = {
    "yaw": "degrees to the image's right", "pitch": "degrees up, of which only differences mean something",
    "roll": "degrees clockwise in the image", "size": "between the outer corners of the eyes, in widths of the image",
    "x": "share of the image's width, from the left", "y": "share of the image's height, from the top",
    **dict.fromkeys(DISTANCES, "in sizes, in three dimensions"),
    **dict.fromkeys(("mouth_corner_right", "mouth_corner_left"), "in sizes, above the middle of the lips"),
    **dict.fromkeys(("gaze_x", "gaze_y"), "in sizes, of the irises to the image's right and down, the head as it is"),
}  # fmt: skip


class Clip(NamedTuple):
    name: str  # the utterance's id
    video: Path | None
    sound: Path | None  # the wav file, else the video


def find_clips(folder: Path) -> list[Clip]:
    """The clips of a folder by name, `<id>.mp4` and so on, `<id>.wav` or both. Raises DataError."""
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.name[0] != ".")
    videos = {file.stem: file for file in files if file.suffix.lower() in VIDEO}
    sounds = {file.stem: file for file in files if file.suffix.lower() == ".wav"}
    twice = [file.stem for file in files if file.suffix.lower() in VIDEO and file != videos[file.stem]]
    if twice or not (videos or sounds):
        found = f"more than one video of {shorten(twice)}" if twice else "no clips"
        raise DataError(f"{folder}: {found}; expected <id>{', <id>'.join((*VIDEO, '.wav'))}, one of each utterance.")
    return [Clip(name, videos.get(name), sounds.get(name) or videos[name]) for name in sorted(videos | sounds)]


def read_sound(file: Path) -> np.ndarray:
    """The first sound track as mono (S,) at SAMPLE_RATE, in [-1, 1]; zeros before it and in gaps; S = 0 for none."""
    import av

    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)  # in floats, stereo would be louder
    samples, length = [np.zeros(0)], 0
    with av.open(str(file)) as container:
        frames = container.decode(audio=0) if container.streams.audio else ()
        for part in chain.from_iterable(map(resampler.resample, chain(frames, [None]))):
            gap = round(((part.time or 0) - (container.start_time or 0) / av.time_base) * SAMPLE_RATE) - length
            samples += [np.zeros(gap if gap > SAMPLE_RATE / 20 else 0), part.to_ndarray()[0] / 2**15]  # or inexact
            length += len(samples[-2]) + len(samples[-1])
    return np.concatenate(samples, dtype=np.float32)


def read_images(file: Path, rate: float) -> Iterator[np.ndarray]:
    """The picture (H, W, 3), uint8 RGB, that a player shows at each step up to the last picture's, and the way up."""
    import av

    with av.open(str(file)) as container:
        start, step, shown = (container.start_time or 0) / av.time_base, 0, None
        for frame in chain(container.decode(video=0) if container.streams.video else (), [None]):
            while shown and step / rate < (frame.time - 1e-6 if frame else shown.time + 1e-6) - start:
                yield np.ascontiguousarray(np.rot90(shown.to_ndarray(format="rgb24"), shown.rotation // 90))
                step += 1
            shown = frame


def audio_features(samples: np.ndarray, rate: float) -> np.ndarray:
    """(S,) at SAMPLE_RATE -> (T, 25), the columns AUDIO."""
    from librosa import feature, pyin

    hop = int(SAMPLE_RATE / rate)
    parts = next(n for n in range(math.ceil(hop / TRACK), hop + 1) if hop % n == 0)
    frames = {"frame_length": WINDOW, "hop_length": hop}
    spectrum = {"y": samples, "sr": SAMPLE_RATE, "n_fft": WINDOW, "hop_length": hop}
    track = {"sr": SAMPLE_RATE, "frame_length": WINDOW, "hop_length": hop // parts, "beta_parameters": PRIOR}
    f0, _, voicing = pyin(samples, fmin=LOWEST, fmax=HIGHEST, fill_na=0, **track)
    loudness, crossings = feature.rms(y=samples, **frames), feature.zero_crossing_rate(samples, **frames)
    mfcc, centroid = feature.mfcc(n_mfcc=20, **spectrum), feature.spectral_centroid(**spectrum)
    columns = [mfcc, f0[None, ::parts], voicing[None, ::parts], loudness, crossings, centroid]
    return np.concatenate(columns).T.astype(np.float32)


def vision_features(images: Iterator[np.ndarray]) -> np.ndarray:
    """Images (H, W, 3), one a step -> (T, 22), the columns VISION: zeros where no face is found."""
    from mediapipe.python.solutions import face_detection, face_mesh

    rows, options = [], {"static_image_mode": True, "refine_landmarks": True, "min_detection_confidence": SURE}
    with face_detection.FaceDetection(model_selection=1) as finder, face_mesh.FaceMesh(**options) as mesh:
        for image in images:
            points = find_face(image, finder, mesh)
            rows.append(np.zeros(len(VISION)) if points is None else face_features(points, *image.shape[1::-1]))
    return np.array(rows, np.float32).reshape(-1, len(VISION))


def find_face(image: np.ndarray, finder, mesh) -> np.ndarray | None:
    """The landmarks (478, 3) of the largest face in an image (H, W, 3), in pixels to the right, down and away, or None.

    The mesh overlooks faces that are small in the image, so that it is given what is around one; the finder large ones.
    """
    boxes = [found.location_data.relative_bounding_box for found in finder.process(image).detections or ()]
    size = image.shape[1::-1]
    (left, top), (right, bottom) = (0, 0), size
    if boxes:
        box = max(boxes, key=lambda box: box.width)
        middle, reach = (box.xmin + box.width / 2, box.ymin + box.height / 2) * np.array(size), box.width * size[0]
        (left, top), (right, bottom) = np.clip([middle - reach, middle + reach], 0, size).astype(int)
    around = np.ascontiguousarray(image[top:bottom, left:right])
    faces = mesh.process(around).multi_face_landmarks if around.size else None
    if not faces:
        return None
    points = np.array([(point.x, point.y, point.z) for point in faces[0].landmark])
    return points * [right - left, bottom - top, right - left] + [left, top, 0]  # MediaPipe's depth is in widths


def face_features(points: np.ndarray, width: int, height: int) -> np.ndarray:
    """Landmarks (478, 3) in pixels of an image of that size -> (22,), the columns VISION."""
    across, down = points[263] - points[33], points[NOSE_BASE] - points[FOREHEAD]
    size, middle = np.linalg.norm(across), points[[33, 263]].mean(axis=0)
    axes = [across / size, down / np.linalg.norm(down)]
    head, _ = Rotation.align_vectors(axes, [[1, 0, 0], [0, 1, 0]])
    yaw, pitch, roll = head.as_euler("YXZ", degrees=True)
    face = head.apply(points - middle, inverse=True) / size  # in the axes of the head
    pairs = face[list(DISTANCES.values())]  # (12, 2, 3)
    corners_up = face[INNER_LIPS, 1].mean() - face[MOUTH_CORNERS, 1]
    gaze = (face[IRISES] - face[EYE_CORNERS].reshape(2, 2, 3).mean(axis=1)).mean(axis=0)[:2]
    distances = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    pose = [-yaw, -pitch, roll, size / width, middle[0] / width, middle[1] / height]
    return np.concatenate([pose, distances, corners_up, gaze])


def extract(clip: Clip, output: Path, audio_rate: float, vision_rate: float) -> tuple[str, str]:
    """Write the two files of a clip.  -> which of KINDS it is; a remark"""
    try:
        samples = read_sound(clip.sound)
        vision = vision_features(read_images(clip.video, vision_rate) if clip.video else iter(()))
        silent = np.abs(samples).max(initial=0) < 1e-4  # of 1: a track may be there, and without sound
        seen = vision.any(axis=1).sum() / max(1, len(vision))
        audio = np.zeros((1, len(AUDIO)), np.float32) if silent else audio_features(samples, audio_rate)
    except Exception as error:  # a damaged file can fail in any way that the libraries know
        return "failed", f"cannot be read ({printable(getattr(error, 'strerror', None) or error, 160)})"
    if silent and not seen:
        return "failed", "has neither sound nor a face" if len(samples) or len(vision) else "has no length"
    vision = vision if len(vision) else np.zeros((1, len(VISION)), np.float32)
    for key, array in (("audio", audio), ("vision", vision)):
        write_atomically(output / key / f"{clip.name}.npy", lambda file, array=array: np.save(file, array))
    remarks = {"no sound; its audio is zeros": silent, "no face found; its vision is zeros": not seen}
    remarks[f"a face in only {seen:.0%} of the frames"] = 0 < seen < 0.5
    kind = "without sound" if silent else "complete" if seen else "without a face"
    return kind, "; ".join(remark for remark, holds in remarks.items() if holds)


def is_done(clip: Clip, output: Path) -> bool:
    """Whether both files of a clip are there, and no older than what they were made of."""
    files = [output / key / f"{clip.name}.npy" for key in ("audio", "vision")]
    newest = max(file.stat().st_mtime for file in (clip.video, clip.sound) if file)
    return all(file.is_file() and file.stat().st_mtime >= newest for file in files)


def describe(audio_rate: float, vision_rate: float) -> dict:
    """What features.json says of the features. Raises ConfigError where a library is missing."""
    try:
        import av  # noqa: F401
        from librosa import feature, pyin  # noqa: F401
        from mediapipe.python.solutions import face_mesh  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"{error}. On Python 3.11 or 3.12 type: pip install -r requirements-extract.txt") from error
    return {
        "extractor": "dataset.extract 1",
        "versions": {name: version(name) for name in ("av", "librosa", "mediapipe", "numpy")},
        "rates (Hz)": {"audio": audio_rate, "vision": vision_rate},
        "columns": {"audio": AUDIO, "vision": VISION},
    }


def _prepare_worker() -> None:
    """Ctrl-C is for the main process; MediaPipe cannot be kept off stderr; more threads would add in another order."""
    threadpool_limits(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m dataset.extract", description="Features of video clips.")
    parser.add_argument("clips", type=Path, help=f"folder of <id>{', '.join(VIDEO)}; <id>.wav is taken for the sound")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--audio-rate", type=float, default=20, metavar="HZ", help="steps a second, default: 20")
    parser.add_argument("--vision-rate", type=float, default=5, metavar="HZ", help="steps a second, default: 5")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N", help="processes, default: 1")
    options = parser.parse_args(argv)
    if min(options.audio_rate, options.vision_rate) <= 0 or SAMPLE_RATE % options.audio_rate or options.jobs < 1:
        raise ConfigError(f"rates must be above 0 Hz, that of audio a divisor of {SAMPLE_RATE}; -j must be at least 1.")
    clips = find_clips(options.clips)
    description, file = describe(options.audio_rate, options.vision_rate), options.output / "features.json"
    if file.exists() and read_json(file) != description:
        raise ConfigError(f"{file}: features of other rates or versions are there. Name another folder with -o.")
    write_json(file, description)
    todo = [clip for clip in clips if not is_done(clip, options.output)]
    kind_of = {clip.name: "done before" for clip in clips}
    work = partial(extract, output=options.output, audio_rate=options.audio_rate, vision_rate=options.vision_rate)
    pool = ProcessPoolExecutor(options.jobs, get_context("spawn"), _prepare_worker)
    try:
        for clip, (kind, remark) in zip(todo, tqdm(pool.map(work, todo), total=len(todo), unit="clip"), strict=True):
            kind_of[clip.name] = kind
            if remark:
                tqdm.write(f"{clip.name}: {remark}.")
    except BrokenProcessPool as error:
        name = next(clip.name for clip in todo if kind_of[clip.name] == "done before")
        advice = "If memory ran out, take a smaller -j; if -j 1 stops there too, take the clip away."
        raise DataError(f"{name}: a process died there, or soon after. {advice}") from error
    finally:
        for process in active_children():  # after Ctrl-C some are still at work
            process.terminate()
        pool.shutdown(cancel_futures=True)
    counts, failed = Counter(kind_of.values()), [name for name, kind in kind_of.items() if kind == "failed"]
    print(f"{len(clips)} clips: {', '.join(f'{counts[kind]} {kind}' for kind in KINDS if counts[kind])}.")
    if failed:
        raise DataError(f"{len(failed)} clips failed ({shorten(failed)}): replace them, or leave out their rows.")


if __name__ == "__main__":
    sys.exit(run_command(main, lambda: "The same command goes on."))
