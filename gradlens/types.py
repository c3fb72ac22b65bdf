"""Names for the tensors that travel through gradlens. No logic.

`...Like` names what a public function accepts from outside and checks at the door; the other names are what comes
after the check and what results hold.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

ImagesLike = Tensor | np.ndarray | Iterable  # an iterable, such as a DataLoader, yields images or (images, labels)
LabelsLike = Tensor | np.ndarray | Sequence[int]

Images = Float[Tensor, "batch *chw"]
Labels = Int[Tensor, "batch"]
Logits = Float[Tensor, "batch classes"]
PerSample = Float[Tensor, "batch"]
SampleMask = Bool[Tensor, "batch"]
PerPoint = Float[Tensor, "points batch"]
PointMask = Bool[Tensor, "points batch"]
PerStep = Float[Tensor, "steps batch"]
PerRadius = Float[Tensor, "radii batch"]
PerLoss = Float[Tensor, "losses batch"]
PerSmoothLoss = Float[Tensor, "smooth_losses batch"]
PerScale = Float[Tensor, "scales batch"]
PerDtype = Float[Tensor, "dtypes batch"]
PointLabels = Int[Tensor, "points batch"]
Targets = Int[Tensor, "batch ranks"]
PathSum = Float[Tensor, "points *summed"]  # added up over samples
Axis = Float[Tensor, "_"]  # a plane's two axes may differ in length
Grid = Float[Tensor, "rows columns batch"]
GridMean = Float[Tensor, "rows columns"]
GridLabels = Int[Tensor, "rows columns batch"]
GridMask = Bool[Tensor, "rows columns batch"]
Stack = Float[Tensor, "vectors rows size"]  # vectors for each of several operators on `size` numbers
Rows = Float[Tensor, "rows size"]
PerRow = Float[Tensor, "rows"]
PerSpectrum = Float[Tensor, "*batch"]  # one for the weights, one a sample for the inputs
PerRank = Float[Tensor, "*batch k"]
RankMask = Bool[Tensor, "*batch k"]
PerNode = Float[Tensor, "*batch nodes"]
PerRise = Float[Tensor, "*batch radii"]
MetricGrid = Float[Tensor, "metrics rows columns"]
PerMetric = Float[Tensor, "metrics"]
CellMask = Bool[Tensor, "rows columns"]
Places = Float[Tensor, "models 2"]  # coordinates on a plane through weight space
MetricPlaces = Float[Tensor, "metrics models"]
PerAxis = Float[Tensor, "axes"]
PerModel = Float[Tensor, "models"]
AttackMask = Bool[Tensor, "attacks batch"]
PerAttack = Float[Tensor, "attacks"]
SourceTarget = Float[Tensor, "sources targets"]
TargetMask = Bool[Tensor, "targets batch"]
TransferMask = Bool[Tensor, "sources targets batch"]

Direction = dict[str, Tensor]  # what one unit adds to each named parameter; one that is not named stays
Norm = Literal["linf", "l2"]
Precision = Literal["float32", "tf32", "bfloat16"]  # of products of matrices
# (logits, labels) -> one value a sample, higher = closer to an error; losses.targeted_dlr takes targets beside them
Loss = Callable[..., Tensor]
