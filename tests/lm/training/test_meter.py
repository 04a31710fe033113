"""A speed and its share of what the machine can do are of the same steps."""

from types import SimpleNamespace

import pytest
import torch

from eval.logs import trained
from lm.training import meter as module
from lm.training.meter import Meter


@pytest.fixture
def meter(monkeypatch: pytest.MonkeyPatch) -> Meter:
    """A meter of one processor, of which products take a tenth of a second each time."""
    made = Meter.__new__(Meter)
    made.clock = 0.0  # type: ignore[attr-defined]

    def rate(*_, **__) -> float:
        made.clock += 0.1  # type: ignore[attr-defined]
        return made.rate  # type: ignore[attr-defined]

    world = SimpleNamespace(device=torch.device("cpu"), size=2)
    config = SimpleNamespace(training=SimpleNamespace(learn="all"))
    made.trainer = SimpleNamespace(world=world, config=config, teaching=False)  # type: ignore[assignment]
    made.split = SimpleNamespace(unit="bits_per_byte", tokens=[0], bytes=1)  # type: ignore[assignment]
    made.teacher_flops = 1e9
    made.flops, made.dtype, made.due, made.total_seconds = 10.0, torch.float32, 0.0, 0.0
    monkeypatch.setattr(module, "matmul_rate", rate)
    monkeypatch.setattr(module.time, "perf_counter", lambda: made.clock)  # type: ignore[attr-defined]
    made._restart()
    return made


def test_a_machine_that_slows_down_is_measured_again(meter: Meter) -> None:
    meter.rate = 500.0  # type: ignore[attr-defined]
    meter.tokens = meter.seconds = 50.0
    assert meter.summary()["mfu"] == pytest.approx(1 * 10 / (2 * 500))
    # A tenth as fast, for the steps and for the products alike.
    meter.clock += 60  # type: ignore[attr-defined]
    meter.rate, meter.tokens, meter.seconds = 50.0, 5.0, 50.0  # type: ignore[attr-defined]
    assert meter.summary()["mfu"] == pytest.approx(0.1 * 10 / (2 * 50))


def test_measuring_takes_a_twentieth_of_the_time_and_what_is_not_measured_is_not_said(
    meter: Meter,
) -> None:
    meter.rate = 500.0  # type: ignore[attr-defined]
    records = []
    for _ in range(400):
        meter.tokens = meter.seconds = 0.5
        meter.clock += 0.5  # type: ignore[attr-defined]
        records.append(meter.summary())
    measured = [record for record in records if "mfu" in record]
    assert 0.03 < 0.1 * len(measured) / 200 < 0.06
    bare = next(record for record in records if "mfu" not in record)
    assert meter.shown(bare)["mfu"] == "not measured"


def test_a_median_speed_and_its_share_are_of_the_same_records() -> None:
    lines = [
        {"step": step, "loss": 1.0, "seconds": 1.0 * step, "tokens_per_second": speed} | share
        for step, (speed, share) in enumerate(
            [(100.0, {"mfu": 0.5}), (1.0, {}), (1.0, {}), (1.0, {}), (200.0, {"mfu": 0.7})], 1
        )
    ]
    found = trained(lines)
    assert found == {"steps": 5, "seconds": 5.0, "tokens_per_second": 150.0, "mfu": 0.6}
