"""TensorBoard gets the figures of the progress bar."""

import pytest

pytest.importorskip("tensorboard")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from isoflop.training.monitor import Progress
from isoflop.training.tensorboard import Board


def test_board_writes_each_known_figure_at_its_step(tmp_path):
    board = Board(tmp_path)
    for step, bits in ((10, None), (20, 2.5)):
        board.write(
            Progress(
                step=step,
                n_steps=100,
                n_tokens=step * 64,
                loss_nats=5.0 - step / 10,
                bits_per_byte=bits,
                tokens_per_s=1e3,
                share_of_peak=None,
                seconds_left=1.0,
            )
        )
    board.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss_nats")] == [(10, 4.0), (20, 3.0)]
    assert [e.step for e in events.Scalars("validation/bits_per_byte")] == [20]
    assert "speed/share_of_peak" not in events.Tags()["scalars"]
