"""Pictures of several models, of planes through adversaries and of PGD's own path show what was measured."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from matplotlib.image import AxesImage
from torch import Tensor, nn

from gradlens import Ball, Surface, gradients, input_line, input_path, input_plane, pgd, plots, stability
from tests.analytic import Detached, smooth_cnn

BALL = Ball(0.1)


@pytest.fixture
def axes() -> Iterator[list[Axes]]:
    with mpl.rc_context():
        plots.style()
        fig, axes = plt.subplots(1, 2, figsize=(7, 3.5))
        yield list(axes)
        plt.close(fig)


@pytest.fixture
def reliefs() -> Iterator[list[Axes]]:
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.5), subplot_kw={"projection": "3d"})
    yield list(axes)
    plt.close(fig)


@pytest.fixture
def models(cnn: nn.Module) -> dict[str, nn.Module]:
    other = smooth_cnn()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(parameter.flip(0))
    return {"SL": cnn, "other": other}


@pytest.fixture
def planes(models: dict[str, nn.Module], images: Tensor) -> dict[str, Surface]:
    return {name: input_plane(model, images, None, BALL, points=7) for name, model in models.items()}


def filled(ax: Axes) -> QuadContourSet:
    return next(c for c in ax.collections if isinstance(c, QuadContourSet) and c.filled)


def tilted(plane: Surface, by: float = 1.0) -> Surface:
    """Its loss is alpha + 10 beta, the same for each sample."""
    loss = by * (plane.alpha[:, None] + 10 * plane.beta)
    return dataclasses.replace(plane, loss=loss[:, :, None].expand(plane.loss.shape).contiguous())


def test_contours_carry_the_value_of_the_place_where_they_run(planes, axes):
    plots.surface(tilted(planes["SL"]), axes[0])
    labels = [text for text in axes[0].texts if text.get_text()]
    assert len(labels) >= 3
    for text in labels:
        alpha, beta = text.get_position()
        assert alpha + 10 * beta == pytest.approx(float(text.get_text().replace("\N{MINUS SIGN}", "-")), abs=0.5)
    plots.surface(tilted(planes["SL"]), axes[1], labels=False)
    assert not [text for text in axes[1].texts if text.get_text()]


@pytest.mark.parametrize("over", ["mean", "median", "spread"])
@pytest.mark.parametrize("quantity", ["loss", "margin", "entropy", "error"])
def test_a_plane_of_many_samples_shows_their_mean_median_or_spread(over, quantity, planes, axes):
    plane = planes["SL"]
    plots.surface(plane, axes[0], quantity=quantity, over=over)
    values = getattr(plane, quantity).numpy()
    low, median, high = np.percentile(values, (10, 50, 90), axis=2)
    expected = {"mean": values.mean(2), "median": median, "spread": high - low}[over]
    assert filled(axes[0]).zmin == pytest.approx(expected.min())
    assert filled(axes[0]).zmax == pytest.approx(expected.max())


def test_the_dashed_line_runs_where_half_of_the_samples_leave_the_box(planes, axes):
    plane = planes["SL"]
    inside = (plane.alpha[:, None, None] < torch.tensor([-1.0, 0, 0, 1, 2, 2])).expand(7, 7, 6)
    plots.surface(dataclasses.replace(plane, in_box=inside.contiguous()), axes[0])
    (line,) = [c for c in axes[0].collections if isinstance(c, QuadContourSet) and not c.filled
               and np.allclose(c.levels, [0.5])]  # fmt: skip
    share = inside.double().mean(2)[:, 0].numpy()
    crossing = np.interp(-0.5, -share, plane.alpha.numpy())
    np.testing.assert_allclose(np.concatenate([p.vertices for p in line.get_paths()])[:, 0], crossing, atol=1e-6)


@pytest.mark.parametrize("quantity", ["loss", "margin"])
def test_one_number_has_one_colour_on_all_planes(quantity, planes, axes):
    planes = {"SL": planes["SL"], "other": dataclasses.replace(planes["other"], loss=planes["other"].loss * 5)}
    assert plots.surfaces(planes, axes, quantity=quantity) == axes
    low, high = plots.limits(planes.values(), quantity=quantity)
    means = torch.stack([getattr(plane, quantity).mean(2) for plane in planes.values()])
    assert (low, high) == pytest.approx(
        (means.min().item(), means.max().item())
        if quantity == "loss"
        else (-means.abs().max().item(), means.abs().max().item())
    )
    first, second = map(filled, axes)
    np.testing.assert_array_equal(first.levels, second.levels)
    assert first.levels[0] <= low
    assert first.levels[-1] >= high
    for value in np.linspace(low, high, 5):
        assert first.cmap(first.norm(value)) == second.cmap(second.norm(value))
    assert [ax.get_title() for ax in axes] == ["SL", "other"]
    assert len(axes[0].figure.axes) == 3  # and one colour bar
    assert axes[0].figure.axes[2].get_ylabel() == plots.LABELS[quantity]


def test_a_scale_that_is_cut_says_so_on_its_bar(planes, axes):
    low, high = plots.limits(planes.values())
    plots.surfaces(planes, axes, ends=(low, (low + high) / 2))
    assert {filled(ax).extend for ax in axes} == {"max"}
    given = np.linspace(low, low + 1, 5)
    axes[1].clear()
    plots.surface(planes["SL"], axes[1], levels=given)
    np.testing.assert_array_equal(filled(axes[1]).levels, given)
    plots.surface(planes["SL"], axes[0].figure.add_subplot(), ends=(low - 1, high + 1))
    assert filled(axes[0].figure.axes[-1]).extend == "neither"


def test_limits_of_what_has_no_reach(planes):
    plane = planes["SL"]
    nothing = dataclasses.replace(plane, loss=torch.full_like(plane.loss, torch.nan))
    assert plots.limits([nothing]) == (0, 1)
    assert plots.limits([nothing, plane]) == plots.limits([plane])
    low, high = plots.limits([dataclasses.replace(plane, loss=torch.full_like(plane.loss, 3.0))])
    assert low < 3 < high
    with pytest.raises(ValueError, match="results are empty"):
        plots.limits([])


def test_a_plane_that_is_constant_or_undefined_is_drawn_without_complaint(planes, images, cnn, axes):
    plane = planes["SL"]
    plots.surface(dataclasses.replace(plane, loss=torch.full_like(plane.loss, 3.0)), axes[0])
    undefined = input_plane(Detached(cnn), images, None, BALL, points=3)
    plots.surfaces({"SL": undefined}, axes[1])
    plots.decisions(undefined, axes[1], sample=0)
    axes[0].figure.canvas.draw()


def test_a_sample_without_a_direction_has_no_class_on_the_map(cnn, images, axes):
    undefined = input_plane(Detached(cnn), images, None, BALL, points=3)
    plots.decision_maps({"SL": undefined}, axes[0], sample=0, classes=4)
    (image,) = (c for c in axes[0].get_children() if isinstance(c, AxesImage))
    assert image.get_array().mask.all()


@pytest.mark.parametrize("classes", [4, 100])
def test_a_class_has_one_colour_on_all_decision_maps(classes, planes, axes):
    changed = planes["other"].predicted.clone()
    changed[0, 0, 1] = 3
    planes = planes | {"other": dataclasses.replace(planes["other"], predicted=changed)}
    assert plots.decision_maps(planes, axes, sample=1, classes=classes) == axes
    shown = [next(c for c in ax.get_children() if isinstance(c, AxesImage)) for ax in axes]
    seen = set()
    for image, plane in zip(shown, planes.values(), strict=True):
        np.testing.assert_array_equal(image.get_array(), plane.predicted[:, :, 1].T)
        seen |= set(plane.predicted[:, :, 1].unique().tolist())
    for k in range(classes):
        assert shown[0].cmap(shown[0].norm(k)) == shown[1].cmap(shown[1].norm(k))
    assert len({shown[0].cmap(shown[0].norm(k)) for k in range(classes)}) == classes
    (legend,) = axes[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [str(c) for c in sorted(seen)]


@pytest.mark.parametrize("sample", [None, 2])
def test_the_image_and_two_adversaries_are_marked(sample, models, images, axes):
    traces = {f"attack on {name}": pgd(model, images, None, BALL, steps=3) for name, model in models.items()}
    plane = input_plane(models["SL"], images, None, BALL, directions=traces, points=5, span=1.5)
    plots.surface(plane, axes[0], sample=sample)
    marks = {tuple(np.concatenate(line.get_data())) for line in axes[0].lines if len(line.get_data()[0]) == 1}
    assert marks == {(0, 0), (1, 0), (0, 1)}
    words = {text.get_text(): getattr(text, "xy", None) for text in axes[0].texts}
    assert words["x"] == (0, 0)
    assert words["a"] == (1, 0)
    assert words["b"] == (0, 1)
    angle = plane.angle.median() if sample is None else plane.angle[sample]
    assert any(word == f"angle {angle:.0f}°" for word in words)
    assert axes[0].get_xlabel() == "attack on SL (1 = its end)"


def test_a_line_is_dotted_where_most_samples_have_left_the_box(cnn, images, axes):
    result = input_line(cnn, images, None, BALL, points=7)
    inside = (result.alpha[:, None, None] < torch.tensor([-1.5, -1.5, 0.5, 1.5, 9, 9])).contiguous()
    plots.line(dataclasses.replace(result, in_box=inside), axes[0], name="SL")
    median = np.median(result.loss[:, 0].numpy(), axis=1)
    full, kept = axes[0].lines[0], axes[0].lines[3]
    np.testing.assert_allclose(full.get_ydata(), median)
    assert full.get_linestyle() == ":"
    # half of the samples are inside up to 1.5, two thirds up to 0.5
    np.testing.assert_allclose(kept.get_ydata(), np.where(result.alpha.numpy() < 1.5, median, np.nan))
    assert kept.get_linestyle() == "-"
    assert axes[0].get_legend_handles_labels()[1] == ["SL"]


def test_of_a_plane_the_line_through_the_image_is_drawn(planes, axes):
    plots.line(planes["SL"], axes[0], quantity="margin")
    expected = np.median(planes["SL"].margin[:, 3].numpy(), axis=1)
    np.testing.assert_allclose(axes[0].lines[0].get_ydata(), expected)


def test_a_line_has_no_area(cnn, images, axes):
    line = input_line(cnn, images, None, BALL, points=3)
    for draw in (plots.surface, lambda *a: plots.decisions(*a, sample=0), lambda r, _: plots.interactive(r)):
        with pytest.raises(ValueError, match=r"a single column, expected that of a plane; plots\.line"):
            draw(line, axes[0])


def test_what_is_undefined_is_hatched_even_where_all_points_are_in_the_box(cnn, images, axes):
    plane = input_plane(cnn, images, None, BALL, points=3, box="project")
    loss = plane.loss.clone()
    loss[0] = torch.nan
    for ax, values, is_hatched in zip(axes, (plane.loss, loss), (False, True), strict=True):
        plots.surface(dataclasses.replace(plane, loss=values), ax)
        hatched = [c for c in ax.collections if isinstance(c, QuadContourSet) and c.hatches == ["////"]]
        assert bool(hatched) == is_hatched
    assert any(path.contains_point((-2.9, 0)) for path in hatched[0].get_paths())
    assert not any(path.contains_point((1, 0)) for path in hatched[0].get_paths())


def vertices(ax: Axes) -> np.ndarray:
    """(N, 3): the corners of a relief's faces."""
    return np.concatenate([np.asarray(path) for path in ax.collections[0]._faces]).reshape(-1, 3)  # type: ignore[attr-defined]


def test_a_relief_stands_at_its_coordinates_and_values(planes, reliefs):
    plane = tilted(planes["SL"], by=0.1)
    assert plots.surface3d(plane, reliefs[0]) is reliefs[0]
    corners = vertices(reliefs[0])
    np.testing.assert_allclose(corners[:, 2], 0.1 * corners[:, 0] + corners[:, 1], atol=1e-9)
    assert {round(v, 6) for v in corners[:, 0]} == {round(v, 6) for v in plane.alpha.tolist()}


def test_a_face_of_a_relief_has_the_colour_of_the_height_in_its_middle(planes, reliefs):
    """Faces of one tilted plane that lie equally high are alike in colour, whichever way they fall."""
    plane = tilted(planes["SL"], by=0.1)
    plots.surface3d(dataclasses.replace(plane, in_box=torch.ones_like(plane.in_box)), reliefs[0], ends=(-6.0, 6.0))
    relief = reliefs[0].collections[0]
    middles = vertices(reliefs[0]).reshape(len(relief._faces), -1, 3).mean(1)  # type: ignore[attr-defined]
    expected = mpl.colormaps["viridis"]((middles[:, 2] + 6) / 12)
    np.testing.assert_allclose(relief._facecolor3d, expected, atol=2 / 256)  # type: ignore[attr-defined]


def test_reliefs_side_by_side_share_their_height_and_one_bar(planes, reliefs):
    plots.surfaces(planes, reliefs, quantity="margin")
    low, high = plots.limits(planes.values(), quantity="margin")
    for ax in reliefs:
        assert ax.get_zlim() == pytest.approx((low, high))  # type: ignore[attr-defined]
    assert len(reliefs[0].figure.axes) == 3


@pytest.mark.parametrize(("cut", "extend"), [(0.0, "neither"), (0.5, "max")])
def test_the_bar_of_reliefs_says_whether_heights_are_cut(cut, extend, planes, reliefs):
    low, high = plots.limits(planes.values())
    plots.surfaces(planes, reliefs, ends=(low, high - cut * (high - low)))
    assert reliefs[0].figure.axes[2]._colorbar.extend == extend


def test_a_relief_on_flat_axes_is_refused(planes, axes):
    with pytest.raises(ValueError, match="ax has the projection 'rectilinear', expected '3d'"):
        plots.surface3d(planes["SL"], axes[0])


def test_an_interactive_relief_holds_each_model_s_values_on_one_scale(planes):
    figure = plots.interactive(planes, quantity="margin", over="median")
    low, high = plots.limits(planes.values(), quantity="margin", over="median")
    assert len(figure.data) == 2
    for name, plane, relief in zip(planes, planes.values(), figure.data, strict=True):
        assert (relief.name, relief.cmin, relief.cmax) == (name, low, high)
        medians = np.median(plane.margin.numpy(), axis=2)
        for r, alpha in enumerate(relief.x):
            for c, beta in enumerate(relief.y):
                assert (alpha, beta) == (plane.alpha[r], plane.beta[c])
                assert relief.z[c][r] == pytest.approx(medians[r, c])
    assert [relief.visible for relief in figure.data] == [True, False]
    buttons = figure.layout.updatemenus[0].buttons
    assert [(b.label, b.args[0]["visible"]) for b in buttons] == [("SL", [True, False]), ("other", [False, True])]
    assert len(plots.interactive(planes["SL"], sample=0).data) == 1


def test_what_cannot_be_drawn_is_refused_by_name(planes, axes):
    result = planes["SL"]
    with pytest.raises(ValueError, match=r"quantity is 'foo', expected one of 'loss', 'margin', 'entropy', 'error'"):
        plots.surface(result, axes[0], quantity="foo")
    for sample in (99, -99):
        for draw in (plots.decisions, plots.surface):
            with pytest.raises(
                ValueError, match=rf"sample is {sample}, expected one of the \d+ that the surface holds"
            ):
                draw(result, axes[0], sample=sample)


@pytest.mark.parametrize("quantity", ["loss", "margin", "entropy"])
def test_a_path_is_the_median_at_its_fractions_of_steps(quantity, cnn, images, axes):
    result = input_path(cnn, images, None, BALL, steps=3, points=4)
    assert plots.path(result, axes[0], quantity=quantity, name="SL") is axes[0]
    line = axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), np.arange(13) / 4)
    np.testing.assert_allclose(line.get_ydata(), np.median(getattr(result, quantity).numpy(), axis=1))
    assert line.get_markevery() == 4


def test_small_multiples_of_traces_share_axes_and_show_the_others_in_grey(models, images, axes):
    results: dict[str, Any] = {
        "SL": [pgd(models["SL"], images, None, BALL, steps=3), pgd(models["SL"], images, None, BALL, steps=4)],
        "other": stability(models["other"], images, None, BALL, steps=3),
    }
    assert plots.traces(results, axes, quantity="margin") == axes
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_ylim() == axes[1].get_ylim()
    medians = [np.median(values.numpy(), axis=1) for values in
               (results["SL"][0].margin, results["SL"][1].margin, results["other"].trace.margin)]  # fmt: skip
    for ax, grey, own in ((axes[0], medians[2], medians[:2]), (axes[1], medians[0], medians[2:])):
        np.testing.assert_allclose(ax.lines[0].get_ydata(), grey)
        assert ax.lines[0].get_color() == "0.8"
        drawn = [line.get_ydata() for line in ax.lines[1:]]
        for values in own:
            assert any(len(y) == len(values) and np.allclose(y, values) for y in drawn)
    assert [ax.get_title() for ax in axes] == ["SL", "other"]


@pytest.mark.parametrize("log", [False, True])
def test_distributions_are_shares_of_all_samples_over_shared_bins(log, models, images, axes):
    results = {name: gradients(model, images, None, BALL) for name, model in models.items()}
    values = torch.tensor([0.5, 1.0, 2.0, 0.0, torch.nan, 4.0], dtype=torch.float64)
    results["other"] = dataclasses.replace(results["other"], gradalign=values)
    assert plots.distributions(results, axes, quantity="gradalign", log=log, bins=8) == axes
    bars = [[(p.get_x(), p.get_width(), p.get_height()) for p in ax.patches] for ax in axes]
    assert len(bars[0]) == len(bars[1]) == 8
    for (left, width, _), (other_left, other_width, _) in zip(*bars, strict=True):
        assert (left, width) == pytest.approx((other_left, other_width))
    for name, ax, drawn in zip(results, axes, bars, strict=True):
        every = results[name].gradalign.numpy()
        kept = every[np.isfinite(every) & ((every > 0) | (not log))]
        for left, width, height in drawn:
            inside = (kept >= left) & ((kept < left + width) | np.isclose(kept, left + width) & (left == drawn[-1][0]))
            assert height == pytest.approx(inside.sum() / 6)
        assert ax.lines[0].get_xdata()[0] == pytest.approx(np.median(kept))
    words = axes[1].texts[0].get_text().splitlines()
    assert words[1:] == ["n = 6", "1 undefined", *(["1 zero"] if log else [])]
    assert axes[0].get_ylim() == axes[1].get_ylim()


def test_distributions_take_a_function_and_refuse_what_is_not_there(models, images, axes):
    results = {name: gradients(model, images, None, BALL) for name, model in models.items()}
    plots.distributions(results, axes, quantity=lambda r: r.norm_l2[0], label="norm (nats / pixel)")
    assert axes[0].get_xlabel() == "norm (nats / pixel)"
    with pytest.raises(ValueError, match="metric is 'nothing', which a Gradients does not have"):
        plots.distributions(results, axes, quantity="nothing")


def test_distributions_of_nothing_are_drawn_empty(cnn, images, axes):
    """Every gradient of this model vanishes, so that none has a direction."""
    results = {"SL": gradients(Detached(cnn), images, None, BALL)}
    plots.distributions(results, axes[0], quantity="gradalign", log=True)
    assert axes[0].texts[0].get_text().splitlines() == ["no value", "n = 6", "6 undefined"]
    assert sum(p.get_height() for p in axes[0].patches) == 0


DRAW = {
    "surfaces": plots.surfaces,
    "decision_maps": lambda planes, axes: plots.decision_maps(planes, axes, sample=0),
    "distributions": lambda planes, axes: plots.distributions(planes, axes, quantity="centre_loss"),
    "nothing": lambda planes, axes: plots.surfaces({}, []),
}


@pytest.mark.parametrize("draw", DRAW.values(), ids=DRAW)
def test_another_number_of_axes_than_of_results_is_refused(draw, planes, axes):
    with pytest.raises(ValueError, match=r"axes are \d, expected one for each of the \d results"):
        draw(planes, axes[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 6}, "sample is 6, expected one of the 6"),
        ({"levels": 1}, "levels is 1 .*expected at least 2"),
        ({"ends": (2.0, 1.0)}, r"limits \(2\.0, 1\.0\), expected .*low < high"),
    ],
)
def test_a_view_that_does_not_exist_is_refused(options, message, planes, axes):
    with pytest.raises(ValueError, match=message):
        plots.surface(planes["SL"], axes[0], **options)
