"""TensorBoard beside the metrics files: the figures of the progress bar, a few times a second at most."""

from pathlib import Path

from isoflop.errors import RecipeError
from isoflop.training.monitor import Progress


class Board:
    """Event file in `run_dir`/tensorboard; a resumed run adds a second file that goes on from its checkpoint.

    Raises:
        RecipeError: TensorBoard is not installed.
    """

    def __init__(self, run_dir: Path):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise RecipeError("--tensorboard needs TensorBoard: pip install isoflop[log], or leave it off") from error
        self._writer = SummaryWriter(str(run_dir / "tensorboard"))

    def write(self, progress: Progress) -> None:
        """One point of each curve."""
        figures = {
            "train/loss_nats": progress.loss_nats,
            "validation/bits_per_byte": progress.bits_per_byte,
            "speed/tokens_per_s": progress.tokens_per_s,
            "speed/share_of_peak": progress.share_of_peak,
        }
        for name, value in figures.items():
            if value is not None:
                self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        self._writer.close()
