"""One process, or several under torchrun: who does which part of a batch, and how weights and gradients meet."""

import os
from typing import Literal

from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from training.config import Config
from training.policy import Part

PRECISIONS: dict[str, Literal["32-true", "bf16-mixed"]] = {"float32": "32-true", "bfloat16": "bf16-mixed"}


def launch(config: Config) -> Fabric:
    """Fabric on the best device here; under torchrun, joined with the other processes.

    Batch norm's statistics are not sent around before each pass: on GPUs they are those of the whole batch
    (`share_statistics`), and elsewhere each process keeps its own, of which the first one's are written.
    """
    precision = PRECISIONS[config.precision]
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Fabric(accelerator="auto", devices=1, precision=precision)
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(
        accelerator="auto",
        devices=local,
        num_nodes=int(os.environ["WORLD_SIZE"]) // local,
        strategy=DDPStrategy(broadcast_buffers=False),
        precision=precision,
    )
    fabric.launch()
    return fabric


def share_statistics(model: nn.Module, fabric: Fabric) -> nn.Module:
    """Batch norm over the whole batch where several GPUs share it. torch has no such layer for the CPU."""
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return model


def part(batch: int, *, rank: int, world: int) -> Part:
    """The rows of a batch of process `rank` among `world`: consecutive, as many as the others' or one more or less."""
    return Part(slice(batch * rank // world, batch * (rank + 1) // world), batch)


def mean(t: Tensor, fabric: Fabric) -> Tensor:
    """The mean over processes."""
    if fabric.world_size == 1:
        return t
    return fabric.all_reduce(t, reduce_op="mean")  # type: ignore[return-value] # a tensor for a tensor
