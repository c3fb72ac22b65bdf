"""Weight landscapes as they are drawn: the right way round, gaps hatched, measured cells and the path marked."""

import dataclasses
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from gradlens import WeightSurface, interpolate, plots, weight_line, weight_plane
from tests.analytic import smooth_cnn

Y = [0, 1, 2, 3, 0, 1]


@pytest.fixture
def ax() -> Iterator[Axes]:
    with mpl.rc_context():
        plots.style()
        fig, ax = plt.subplots(figsize=(4, 4))
        yield ax
        fig.canvas.draw()
        plt.close(fig)


@pytest.fixture
def plane(cnn: nn.Module, images: Tensor, generator: torch.Generator) -> WeightSurface:
    """A slope of 10 alpha + beta, so that axes cannot be mistaken."""
    result = weight_plane(cnn, images, Y, points=5, generator=generator)
    slope = 10 * result.alpha[:, None] + result.beta[None]
    return dataclasses.replace(result, values=torch.stack([slope, -slope]))


def test_the_first_direction_runs_to_the_right_and_contours_carry_labels(plane, ax):
    plots.weight_surface(plane, ax, levels=[-6, -3, 0, 3, 6])
    _, lines = (c for c in ax.collections if isinstance(c, QuadContourSet))
    assert ax.get_xlabel() == "filter-normalised random\n(1 = norm of each filter of the model)"
    assert ax.get_ylabel().startswith("second filter-normalised random")
    zero = np.concatenate([path.vertices for path, at in zip(lines.get_paths(), lines.levels, strict=True) if at == 0])
    np.testing.assert_allclose(10 * zero[:, 0] + zero[:, 1], 0, atol=1e-9)
    assert {text.get_text() for text in ax.texts} == {"-6", "0", "6"}  # every second: walls would be full of them
    assert ax.get_aspect() == 1
    assert not [patch for patch in ax.patches if patch.get_label() == "diverged"]
    assert not [line for line in ax.lines if line.get_label() in ("measured", "path")]


def test_labels_can_be_left_out_and_a_plane_of_unequal_reach_is_no_square(plane, ax):
    plots.weight_surface(dataclasses.replace(plane, beta=3 * plane.beta), ax, labels=False)
    assert not ax.texts
    assert ax.get_aspect() == "auto"
    fig, both = plt.subplots(1, 2)
    for is_labelled in (False, True):
        plots.surfaces({"SL": plane, "RL": plane}, both, ends=(-6.0, 6.0), labels=is_labelled)
        assert all(bool(one.texts) == is_labelled for one in both)
    plt.close(fig)


def test_labels_are_those_of_shared_levels_and_none_lies_on_another_or_is_cut_off(plane, ax):
    steep = dataclasses.replace(plane, values=5 * plane.values)
    half = dataclasses.replace(plane, values=plane.values.clamp(max=1.5))  # crosses no level above 1
    fig, both = plt.subplots(1, 2, figsize=(5, 2.5))
    plots.surfaces({"SL": steep, "RL": half}, both, levels=np.arange(-50.0, 51.0, 1.0), ends=(-50.0, 50.0), labels=True)
    plots.weight_surface(plane, ax, levels=[-6, -3, 0, 3, 6])
    for one in (*both, ax):
        one.figure.canvas.draw()
        shown = [text for text in one.texts if text.get_visible()]
        boxes = [text.get_window_extent() for text in shown]
        assert shown and all(float(text.get_text()) % 2 == 0 for text in shown)
        assert not any(box.count_overlaps(boxes[:i]) for i, box in enumerate(boxes))
        corners = np.concatenate([box.corners() for box in boxes])
        assert one.bbox.x0 <= corners[:, 0].min() and corners[:, 0].max() <= one.bbox.x1
        assert one.bbox.y0 <= corners[:, 1].min() and corners[:, 1].max() <= one.bbox.y1
        assert not any(box.contains(*one.transData.transform((0, 0))) for box in boxes)
    plt.close(fig)


@pytest.mark.parametrize("values", [torch.nan, 3.0], ids=["diverged throughout", "beyond the scale"])
def test_a_plane_without_a_line_is_drawn_without_complaint(values, plane, ax):
    nothing = dataclasses.replace(plane, values=torch.full_like(plane.values, values))
    plots.surfaces({"SL": nothing}, ax, ends=(0.0, 2.3), labels=True)
    assert not ax.texts
    assert bool([patch for patch in ax.patches if patch.get_label() == "diverged"]) == np.isnan(values)
    plots.weight_surface(nothing, ax.figure.add_subplot())
    ax.figure.canvas.draw()


@pytest.mark.parametrize("hole", [torch.nan, torch.inf])
def test_a_diverged_cell_is_hatched_not_coloured(hole, plane, ax):
    values = plane.values.clone()
    values[0, 4, 3] = hole
    plots.weight_surface(dataclasses.replace(plane, values=values), ax)
    (patch,) = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert patch.get_hatch() and patch.get_extents().width > 0
    assert (patch.get_x(), patch.get_y(), patch.get_width(), patch.get_height()) == (-1, -1, 2, 2)
    filled = next(c for c in ax.collections if isinstance(c, QuadContourSet))
    at = {(1.0, 0.5): False, (0.5, -0.5): True}
    for place, is_covered in at.items():
        assert any(path.contains_point(place, radius=1e-3) for path in filled.get_paths()) == is_covered
    ax.figure.canvas.draw()


def test_measured_cells_and_the_path_are_marked(plane, ax):
    measured = torch.zeros(5, 5, dtype=torch.bool)
    measured[4, 1] = measured[0, 0] = True
    places = torch.tensor([[0.5, 1.0], [0.0, 0.0], [1.0, -0.5]], dtype=torch.float64)
    result = dataclasses.replace(
        plane, measured=measured, path=places, path_values=torch.full((2, 3), torch.nan, dtype=torch.float64)
    )
    plots.weight_surface(result, ax)
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert sorted(map(tuple, lines["measured"])) == [(-1.0, -1.0), (1.0, -0.5)]
    np.testing.assert_array_equal(lines["path"], places)
    plots.weight_surface(result, ax, path=False)
    assert sum(line.get_label() == "path" for line in ax.lines) == 1


def test_a_line_and_the_models_on_it(images, ax):
    other = smooth_cnn()
    with torch.no_grad():
        other[0].weight += 0.3
    result = interpolate([smooth_cnn(), other], images, Y, points=5, beyond=0.25)
    values = result.values.clone()
    values[0, -1] = torch.inf
    plots.weight_line(dataclasses.replace(result, values=values), ax, name="SL")
    line, dots = ax.lines
    assert line.get_label() == "SL" and line.get_color() == plots.COLOURS["SL"]
    np.testing.assert_array_equal(line.get_xdata(), result.alpha)
    np.testing.assert_array_equal(line.get_ydata()[:-1], result.of("loss")[:-1, 0])
    assert np.isnan(line.get_ydata()[-1])
    np.testing.assert_array_equal(dots.get_xydata(), [[0, result.path_values[0, 0]], [1, result.path_values[0, 1]]])
    assert ax.get_xlabel().startswith("from model 1 to model 2")
    assert line.get_linestyle() == "-"
    plots.weight_line(result, ax, name="RL", dashes=":")
    assert [one.get_linestyle() for one in ax.lines[2:]] == [":", "None"]


def test_a_line_marks_measured_points(cnn, images, ax):
    result = weight_line(cnn, images, Y, points=5)
    measured = torch.tensor([1, 0, 1, 0, 1]).bool()[:, None]
    plots.weight_line(dataclasses.replace(result, measured=measured), ax, metric="error")
    np.testing.assert_array_equal(ax.lines[1].get_xdata(), result.alpha[[0, 2, 4]])
    assert ax.get_ylabel() == "error (share)"


def test_a_relief_stands_over_its_coordinates(plane):
    with mpl.rc_context():
        fig, ax = plt.subplots(subplot_kw={"projection": "3d"})
        values = plane.values.clone()
        values[0, 0, 0] = torch.inf
        plots.surface3d(dataclasses.replace(plane, values=values), ax)
        surface = ax.collections[0]
        faces = surface._vec[:3] if hasattr(surface, "_vec") else np.concatenate(surface._faces).T
        # matplotlib leaves anything at all where a height is nan
        on_grid = np.isin(faces[0], plane.alpha.numpy()) & np.isin(faces[1], plane.beta.numpy())
        corner = (faces[0] == float(plane.alpha[0])) & (faces[1] == float(plane.beta[0]))
        at = faces[:, on_grid & ~corner & np.isfinite(faces[2])]
        np.testing.assert_allclose(at[2], 10 * at[0] + at[1], atol=1e-9)
        assert at.shape[1] >= 4 * 15
        assert ax.get_zlabel() == "cross-entropy (nats)"
        fig.canvas.draw()
        plt.close(fig)


def test_several_planes_share_one_scale(plane):
    with mpl.rc_context():
        fig, axes = plt.subplots(1, 2)
        twice = dataclasses.replace(plane, values=2 * plane.values)
        left, right = plots.surfaces({"SL": plane, "RL": twice}, axes)
        fills = [next(c for c in ax.collections if c.get_array() is not None) for ax in (left, right)]
        assert fills[0].get_clim() == fills[1].get_clim()
        assert fills[0].get_clim()[1] >= float(twice.values.max()) - 1e-6
        assert [ax.get_title() for ax in (left, right)] == ["SL", "RL"]
        plt.close(fig)


def test_one_plane_is_drawn_by_the_same_door_as_a_plane_through_images(plane, ax):
    assert plots.surface(plane, ax, ends=(0.0, 5.0)) is ax
    drawn = next(c for c in ax.collections if c.get_array() is not None)
    assert drawn.get_clim() == (0.0, 5.0)
    assert ax.get_xlabel().startswith(plane.axes[0])
    with pytest.raises(ValueError, match=r"metric is 'margin', expected one of"):
        plots.surface(plane, ax, quantity="margin")
    with pytest.raises(ValueError, match=r"result is a WeightSurface, expected a Surface"):
        plots.decisions.__wrapped__(plane, ax, sample=0)


def test_the_interactive_surface_holds_the_values_the_right_way_round(plane):
    values = plane.values.clone()
    values[0, 1, 2] = torch.inf
    fig = plots.interactive(dataclasses.replace(plane, values=values))
    (surface,) = fig.data
    across, up = np.meshgrid(surface.x, surface.y)
    expected = 10 * across + up
    expected[2, 1] = np.nan
    np.testing.assert_allclose(np.asarray(surface.z, dtype=float), expected)
    assert fig.layout.scene.zaxis.title.text == "cross-entropy (nats)"


def test_of_a_plane_the_line_through_the_model_is_drawn(plane, ax):
    plots.weight_line(plane, ax)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), plane.of("loss")[:, plane.centre[1]])
    assert not torch.equal(plane.of("loss")[:, plane.centre[1]], plane.of("loss")[:, 0])
