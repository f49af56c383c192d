"""What each process reads of the data for an update."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader

from .config import Config
from .data import EncodedData, Order, collate
from .together import in_all

# Places in the data, and what is there.
Batch = tuple[list[int], dict[str, Tensor]]


class Batches:
    """This process's batches from an iteration on; see `data.Order`."""

    def __init__(
        self, config: Config, data: EncodedData, accelerator: Accelerator, iteration: int
    ) -> None:
        self.data, self.count = data, config.gradient_accumulation_steps
        updates = 1 + config.critic_updates
        order = Order(
            len(data),
            config.batch_size,
            config.seed,
            first=iteration * updates * self.count,
            process=accelerator.process_index,
            processes=accelerator.num_processes,
        )
        loader = DataLoader(
            data, batch_sampler=order, collate_fn=collate, num_workers=config.num_workers
        )
        self._batches = zip(order, loader)

    def read(self) -> list[Batch]:
        """Those of one update.

        Raises:
            ValueError: one of the processes could not read its own; in all of them.
        """
        return in_all(self._read)

    def _read(self) -> list[Batch]:
        try:
            return [next(self._batches) for _ in range(self.count)]
        except ValueError as error:  # a worker's comes with its traceback and its name before it
            raise ValueError(
                str(error).strip().splitlines()[-1].removeprefix("ValueError: ")
            ) from error

    def not_finite(self, batches: list[Batch]) -> list[str]:
        """Sources of the samples, of all processes, that hold a NaN or an infinity."""
        return gather_object(
            [
                self.data.entries[index]["source"]
                for indices, batch in batches
                for place, index in enumerate(indices)
                if not all(value[place].isfinite().all() for value in batch.values())
            ]
        )
