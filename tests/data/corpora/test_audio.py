"""The corpus audio: .wav files as mu-law levels."""

import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from data.corpora.audio import open_audio
from data.prepare import DataConfig, prepare
from data.shards import Shards


def tone(
    path: Path, frames: int, channels: int = 1, rate: int = 16000, width: int = 2
) -> np.ndarray:
    """Write a sine on each channel, louder from one to the next; return [frames, channels]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave_f = np.sin(np.arange(frames) / 9)[:, None] * np.linspace(1e4, 3e4, channels)
    samples = wave_f.astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())
    return samples


def build(tmp_path: Path) -> Shards:
    config = DataConfig("audio", tmp_path / "shards", str(tmp_path / "wav"))
    return prepare(config, workers=1)


def test_mono_and_stereo_become_one_level_a_frame(tmp_path: Path) -> None:
    mono = tone(tmp_path / "wav/train/a.wav", 1_200_000)
    stereo = tone(tmp_path / "wav/train/b.wav", 500, channels=2)
    tone(tmp_path / "wav/test/c.wav", 300)
    shards = build(tmp_path)
    train = shards.split("train")
    mixed = np.round(stereo.mean(axis=1)).astype("<i2")
    expected = shards.vocabulary.encode(np.concatenate([mono[:, 0], mixed]).tobytes())
    assert np.array_equal(train.tokens, expected)
    assert train.documents["tokens"].tolist() == [1_200_000, 500]
    assert (train.unit, train.words) == ("bits_per_sample", 0)
    assert shards.manifest.source.model_extra == {"sample_rate": 16000}


def test_one_file_is_cut_90_5_5(tmp_path: Path) -> None:
    tone(tmp_path / "wav/a.wav", 1000)
    shards = build(tmp_path)
    assert [len(shards.split(split).tokens) for split in shards.splits] == [900, 50, 50]


def test_folders_name_the_splits_of_two_files(tmp_path: Path) -> None:
    tone(tmp_path / "wav/train/a.wav", 100)
    tone(tmp_path / "wav/test/b.wav", 50)
    shards = build(tmp_path)
    assert {split: shards.split(split).names for split in shards.splits} == {
        "train": ["train/a.wav"],
        "test": ["test/b.wav"],
    }


def test_bad_audio_is_named(tmp_path: Path) -> None:
    tone(tmp_path / "wav/a.wav", 100)
    tone(tmp_path / "wav/b.wav", 100, rate=8000)
    with pytest.raises(
        ValueError, match=r"b\.wav has 8000 samples a second and .*a\.wav has 16000"
    ):
        build(tmp_path)
    tone(tmp_path / "wav/b.wav", 100, width=1)
    with pytest.raises(ValueError, match=r"b\.wav has 8-bit samples"):
        build(tmp_path)
    tone(tmp_path / "wav/b.wav", 100)
    whole = (tmp_path / "wav/b.wav").read_bytes()
    (tmp_path / "wav/b.wav").write_bytes(whole[:-50])
    with pytest.raises(ValueError, match=r"b\.wav is cut short"):
        build(tmp_path)
    (tmp_path / "wav/b.wav").write_bytes(b"RIFF no wave")
    with pytest.raises(ValueError, match=r"b\.wav is not a PCM"):
        build(tmp_path)
    (tmp_path / "wav/a.wav").unlink()
    (tmp_path / "wav/b.wav").unlink()
    with pytest.raises(ValueError, match=r"holds no \.wav files"):
        build(tmp_path)


@pytest.mark.parametrize("lacking", [1, 2, 19, 20, 44, 100])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_file_that_lacks_a_few_bytes_is_cut_short(
    tmp_path: Path, lacking: int, channels: int
) -> None:
    tone(tmp_path / "wav/a.wav", 100, channels=channels)
    whole = (tmp_path / "wav/a.wav").read_bytes()
    (tmp_path / "wav/a.wav").write_bytes(whole[:-lacking])
    with pytest.raises(ValueError, match=r"a\.wav is cut short, since its head says 100 frames"):
        build(tmp_path)


BROKEN: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "streamed": (lambda wav: wav[:40] + b"\xff\xff\xff\xff" + wav[44:], "is cut short"),
    "never finished": (lambda wav: wav[:40] + bytes(4) + wav[44:], "says nothing of its sound"),
    "no rate": (lambda wav: wav[:24] + bytes(4) + wav[28:], "0 samples a second"),
    "no channels": (lambda wav: wav[:22] + bytes(2) + wav[24:], "is not a PCM"),
    "float": (lambda wav: wav[:20] + b"\3\0" + wav[22:], "is not a PCM"),
    "no format": (lambda wav: wav[:12] + wav[36:], "is not a PCM"),
    "empty": (lambda _: b"", "is not a PCM"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_heads_are_refused(tmp_path: Path, case: str) -> None:
    tone(tmp_path / "wav/a.wav", 9000)
    change, message = BROKEN[case]
    path = tmp_path / "wav/a.wav"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message) as refusal:
        build(tmp_path)
    assert "\n" not in str(refusal.value)


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    tone(tmp_path / "wav/a.wav", 1000)
    source = open_audio(str(tmp_path / "wav"))
    whole = (tmp_path / "wav/a.wav").read_bytes()
    (tmp_path / "wav/a.wav").write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=r"a\.wav became shorter"):
        list(source.parts[-1].read())


def test_capitals_are_read_and_hidden_and_other_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tone(tmp_path / "wav/train/a.WAV", 100)
    tone(tmp_path / "wav/test/b.wav", 50)
    tone(tmp_path / "wav/train/._a.wav", 50)
    (tmp_path / "wav/train/c.mp3").write_bytes(b"")
    assert build(tmp_path).split("train").names == ["train/a.WAV"]
    assert "reading 2 .wav, passed over 1 .mp3, 1 hidden\n" in capsys.readouterr().err
