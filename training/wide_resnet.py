"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

from torch import Tensor, nn


def wide_resnet(classes: int, shape: tuple[int, ...], *, depth: int, width: int) -> nn.Module:
    """WRN-depth-width for small images: three groups of (depth - 4) / 6 blocks.

    They have 16, 32 and 64 times `width` channels. No dropout. Convolutions start from He's normal weights (fan out),
    as in the original. Raises ValueError for another depth.
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1 or width < 1:
        raise ValueError(f"wide ResNet of depth {depth} and width {width}: expected depth 6 n + 4, such as 16 or 28")
    layers: list[nn.Module] = [nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)]
    channels = 16
    for group in range(3):
        for block in range(blocks):
            outputs = 16 * 2**group * width
            layers.append(Block(channels, outputs, stride=2 if group > 0 and block == 0 else 1))
            channels = outputs
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(channels, classes))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


class Block(nn.Module):
    """Two 3x3 convolutions, batch norm and ReLU before each; a 1x1 convolution leads past them where sizes change."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activated = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        )
        same = inputs == outputs and stride == 1
        self.past = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activated(x)
        return self.body(activated) + (x if self.past is None else self.past(activated))
