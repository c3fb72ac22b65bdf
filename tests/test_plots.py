"""What is drawn is what was measured, the right way round."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.contour import QuadContourSet
from torch import Tensor, nn

from gradlens import (
    Ball,
    Entropy,
    PGDTrace,
    Stability,
    Surface,
    entropy,
    input_line,
    input_plane,
    losses,
    pgd,
    plots,
    spectrum,
    stability,
)
from tests.analytic import Detached


@pytest.fixture
def ax() -> Iterator[Axes]:
    with mpl.rc_context():
        plots.style()
        fig, ax = plt.subplots(figsize=(3, 3))
        yield ax
        plt.close(fig)


@pytest.fixture
def steady(cnn: nn.Module, images: Tensor) -> Stability:
    return stability(cnn, images, None, Ball(0.1), steps=4)


@pytest.fixture
def plane(cnn: nn.Module, images: Tensor) -> Surface:
    return input_plane(cnn, images, None, Ball(0.1), points=7)


@pytest.fixture
def line(cnn: nn.Module, images: Tensor) -> Surface:
    return input_line(cnn, images, None, Ball(0.1), points=7)


@pytest.fixture
def attacked(cnn: nn.Module, images: Tensor) -> Entropy:
    return entropy(cnn, images, [0, 1, 2, 3, 0, 1], pgd(cnn, images, None, Ball(0.1)))


def drawn(ax: Axes, line: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, y = ax.lines[line].get_data()
    return np.asarray(x), np.asarray(y)


@pytest.mark.parametrize("quantity", ["loss", "grad_norm", "cosine", "cosine_final", "sign_agreement", "moved"])
def test_a_trace_is_drawn_as_the_median_over_samples_at_its_steps(quantity, steady, ax):
    values = getattr(steady.trace, quantity)
    assert plots.trace(steady.trace, ax, quantity=quantity) is ax
    x, y = drawn(ax)
    # a quantity of steps stands where the step leads, but for the gradient's angle to the end
    first = 1 if len(values) == 4 and quantity != "cosine_final" else 0
    assert x.tolist() == list(range(first, first + len(values)))
    np.testing.assert_allclose(y, np.median(values.numpy(), axis=1))


@pytest.mark.parametrize("band", [True, False])
def test_the_band_goes_from_the_tenth_to_the_ninetieth_percentile(band, steady, ax):
    plots.trace(steady, ax, quantity="loss", name="RL", band=band)
    assert bool(ax.collections) == band
    assert ax.get_legend_handles_labels()[1] == (["RL"] if band else [])
    if band:
        corners = ax.collections[0].get_paths()[0].vertices
        low, high = np.percentile(steady.trace.loss.numpy(), (10, 90), axis=1)
        for step in range(5):
            at_step = corners[corners[:, 0] == step, 1]
            assert at_step.min() == pytest.approx(low[step])
            assert at_step.max() == pytest.approx(high[step])


def test_undefined_samples_are_left_out_of_the_median_and_undefined_steps_are_gaps(steady, ax):
    cosine = steady.trace.cosine.clone()
    cosine[1] = torch.nan
    cosine[2, :3] = torch.nan
    trace = dataclasses.replace(steady.trace, cosine=cosine)
    plots.trace(trace, ax, quantity="cosine")
    y = drawn(ax)[1]
    assert np.isnan(y).tolist() == [False, True, False, False]
    assert y[2] == pytest.approx(np.median(cosine[2, 3:]))


def test_local_cosines_stand_at_their_radii(steady, ax):
    assert plots.local_cosine(steady, ax) is ax
    x, y = drawn(ax)
    assert tuple(x) == steady.radii
    np.testing.assert_allclose(y, np.median(steady.local_cosine.numpy(), axis=1))
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0.01", "0.1", "0.5", "1"]


@pytest.mark.parametrize("quantity", ["loss", "margin"])
def test_a_line_is_drawn_over_its_own_coordinates(quantity, line, ax):
    assert plots.line(line, ax, quantity=quantity) is ax
    x, y = drawn(ax)
    np.testing.assert_allclose(x, line.alpha)
    np.testing.assert_allclose(y, np.median(getattr(line, quantity)[:, 0].numpy(), axis=1))


def test_entropies_are_drawn_as_shares_of_samples(attacked, ax):
    assert plots.entropy(attacked, ax, name="SL") is ax
    for i, values in enumerate((attacked.clean, attacked.adversarial)):
        x, y = drawn(ax, i)
        for at, share in zip(x[1:], y[1:], strict=True):  # the first point is minus infinity, 0
            assert share == pytest.approx((values <= at).double().mean().item())
        assert y[-1] == 1
    assert ax.get_legend_handles_labels()[1] == ["SL clean", "SL attacked"]


def test_all_entropies_are_seen_on_panels_that_share_an_axis(attacked, ax):
    fig, axes = plt.subplots(1, 2, sharex=True)
    far = dataclasses.replace(attacked, adversarial=attacked.adversarial + 2)
    for one, result in zip(axes, (attacked, far), strict=True):  # the second reaches further than the first
        plots.entropy(result, one)
    assert axes[0].get_xlim() == axes[1].get_xlim()
    assert axes[0].get_xlim()[1] > far.adversarial.max()
    plt.close(fig)


def test_reliability_dots_stand_at_confidence_and_accuracy(attacked, ax):
    assert plots.reliability(attacked, ax) is ax
    bins = attacked.reliability().query("samples > 0")
    offsets = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) == len(bins)])
    np.testing.assert_allclose(offsets, bins[["confidence", "accuracy"]].to_numpy())


def test_a_history_is_the_mean_over_seeds(ax):
    rows = [
        {"epoch": epoch, "arm": arm, "seed": seed, "clean": 0.1 * epoch + 0.01 * seed + (arm == "RL") * 0.2}
        for arm in ("SL", "RL")
        for seed in range(3)
        for epoch in (1, 2)
    ]
    assert plots.history(pd.DataFrame(rows), ax) is ax
    for i, arm in enumerate(("SL", "RL")):
        x, y = drawn(ax, i)
        assert x.tolist() == [1, 2]
        np.testing.assert_allclose(y, [0.11 + (arm == "RL") * 0.2, 0.21 + (arm == "RL") * 0.2])
        assert mpl.colors.to_hex(ax.lines[i].get_color()) == plots.COLOURS[arm].lower()


def test_what_was_measured_once_is_seen_in_a_history(ax):
    rows = [{"epoch": epoch, "arm": arm, "seed": 0, "pgd": 0.5 if epoch == 2 or arm == "RL" else float("nan")}
            for arm in ("SL", "RL") for epoch in (1, 2)]  # fmt: skip
    plots.history(pd.DataFrame(rows), ax, quantity="pgd")
    dots = [one for one in ax.lines if one.get_marker() == "o"]
    assert [one.get_xydata().tolist() for one in dots] == [[[2.0, 0.5]]]
    assert mpl.colors.to_hex(dots[0].get_color()) == plots.COLOURS["SL"].lower()
    low, high = ax.get_xlim()
    assert low < 1 and high > 2 and ax.get_xscale() == "linear"


def test_a_history_of_one_epoch_has_whole_epochs_and_a_much_longer_arm_squeezes_no_other(ax):
    plots.history(pd.DataFrame({"epoch": [15], "arm": ["SL"], "clean": [0.5]}), ax)
    ax.figure.canvas.draw()
    labels = {text.get_text() for text in ax.get_xticklabels()}
    assert "15" in labels and all(label.isdigit() for label in labels)
    ax.clear()
    rows = [
        (epoch, arm, 0.5) for arm, epochs in (("SL", 90), ("RL", 15), ("exact", 15)) for epoch in range(1, epochs + 1)
    ]
    plots.history(pd.DataFrame(rows, columns=["epoch", "arm", "clean"]), ax)
    ax.figure.canvas.draw()
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    shown = [
        text.get_text() for text, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=True) if low <= at <= high
    ]
    assert shown == ["1", "2", "5", "10", "20", "50"]


def made_of(plane: Surface, loss: Tensor, inside: Tensor | None = None) -> Surface:
    """The plane with another loss (R, C), the same for each sample."""
    shape = plane.loss.shape
    every = torch.ones(shape, dtype=torch.bool) if inside is None else inside[:, :, None].expand(shape)
    return dataclasses.replace(plane, loss=loss[:, :, None].expand(shape).to(plane.loss), in_box=every)


def brightness(ax: Axes, *points: tuple[float, float]) -> list[float]:
    """What the picture shows at these coordinates."""
    ax.figure.canvas.draw()
    pixels = np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].mean(2)
    places = [ax.transData.transform(point) for point in points]
    return [pixels[len(pixels) - 1 - round(y), round(x)] for x, y in places]


@pytest.mark.parametrize("sample", [None, 0])
@pytest.mark.parametrize("axis", ["alpha", "beta"])
def test_the_first_direction_runs_to_the_right_and_the_second_upwards(axis, sample, plane, ax):
    alpha, beta = plane.alpha[:, None].expand(7, 7), plane.beta[None].expand(7, 7)
    result = made_of(plane, alpha if axis == "alpha" else beta)
    assert plots.surface(result, ax, sample=sample, cmap="gray", levels=6) is ax
    left, right = brightness(ax, (-2.25, 0.25), (2.25, 0.25))
    below, above = brightness(ax, (0.25, -2.25), (0.25, 2.25))
    if axis == "alpha":
        assert right > left + 100
        assert abs(above - below) < 5
    else:
        assert above > below + 100
        assert abs(right - left) < 5


def test_a_surface_shows_the_mean_over_samples_or_one_of_them(plane, ax):
    loss = torch.zeros(7, 7, 6, dtype=torch.float64)
    loss[..., 0], loss[..., 1] = 6, torch.nan
    result = dataclasses.replace(plane, loss=loss + plane.alpha[:, None, None] * 1e-3)
    for sample, expected in ((None, 6 / 5), (0, 6), (2, 0)):
        ax.clear()
        plots.surface(result, ax, sample=sample)
        (filled, *_) = [c for c in ax.collections if isinstance(c, QuadContourSet)]
        assert filled.zmin == pytest.approx(expected - 3e-3)
        assert filled.zmax == pytest.approx(expected + 3e-3)


def test_what_lies_off_the_pixel_box_is_hatched(plane, ax):
    inside = (plane.alpha < 1.5)[:, None].expand(7, 7)
    plots.surface(made_of(plane, plane.alpha[:, None].expand(7, 7), inside), ax)
    (hatched,) = [c for c in ax.collections if isinstance(c, QuadContourSet) and c.hatches == ["////"]]
    for point, expected in (((2.5, 0), True), ((0.5, 0), False), ((0, 2.5), False)):
        assert any(path.contains_point(point) for path in hatched.get_paths()) == expected


def test_decisions_show_each_class_at_the_point_where_it_was_measured(plane, ax):
    predicted = plane.predicted.clone()
    predicted[..., 2] = torch.arange(49).view(7, 7) % 4
    result = dataclasses.replace(plane, predicted=predicted)
    assert plots.decisions(result, ax, sample=2, classes=4) is ax
    (image,) = ax.images
    left, right, bottom, top = image.get_extent()
    shown = np.asarray(image.get_array())
    for r, alpha in enumerate(plane.alpha.tolist()):
        for c, beta in enumerate(plane.beta.tolist()):
            column = int((alpha - left) / (right - left) * 7)
            row = int((beta - bottom) / (top - bottom) * 7)
            assert shown[row, column] == predicted[r, c, 2]
            assert left + (column + 0.5) * (right - left) / 7 == pytest.approx(alpha, abs=1e-9)
    assert image.origin == "lower"


def test_the_legend_of_classes_names_those_that_appear(plane, ax):
    predicted = [torch.tensor([[0, 2], [2, 2]]), torch.tensor([[3]])]
    plots.class_legend(ax.figure, predicted, classes=4)
    (legend,) = ax.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["0", "2", "3"]


def test_results_that_are_undefined_throughout_are_drawn_empty_without_complaint(cnn, images, ax):
    """A model without gradients is the very case that the figures are for."""
    model, ball = Detached(cnn), Ball(0.1)
    still = stability(model, images, None, ball, steps=2)
    for quantity in ("cosine", "sign_agreement", "cosine_final"):
        plots.trace(still, ax, quantity=quantity)
    plots.local_cosine(still, ax)
    plots.line(input_line(model, images, None, ball, points=3), ax)
    assert all(np.isnan(np.asarray(line.get_ydata(), float)).all() for line in ax.lines[:4])
    plots.surface(input_plane(model, images, None, ball, points=3), ax)
    ax.figure.canvas.draw()


def test_an_arm_keeps_its_colour_and_others_take_the_rest_in_order():
    assert plots.colour("RL", ["A", "RL"]) == plots.COLOURS["RL"]
    others = [plots.colour(name, ["A", "SL", "B", "C"]) for name in ("A", "B", "C")]
    assert len({*others, *plots.COLOURS.values()}) == len(plots.COLOURS) + 3
    assert [plots.colour(name) for name in ("C", "B", "A")] == others[::-1], "wherever they are drawn again"
    many = [str(i) for i in range(9)]
    plots.style()
    given = [plots.colour(name, many) for name in (*many, *plots.COLOURS)]
    assert len(set(given)) == 14
    plots.style(many)  # one that is drawn alone keeps its place among all
    assert plots.colour("5") == given[5]


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"step": [0, 1, 2], "loss": [0.5, np.nan, -1e-30], "arm": ["SL", "RL", "SL"]})


def test_a_published_figure_is_a_picture_a_pdf_its_data_and_its_record(table, steady: PGDTrace, ax, tmp_path):
    plots.trace(steady, ax)
    runs = [{"name": "sl", "checkpoint_sha256": "ab"}]
    fig = plots.publish(
        ax.figure, "grad_norm", table, "A caption.", out=tmp_path / "set", runs=runs, made=steady.made
    )  # fmt: skip
    assert fig is ax.figure
    folder = tmp_path / "set"
    assert {path.name for path in folder.iterdir()} == {f"grad_norm.{k}" for k in ("png", "pdf", "parquet", "json")}
    assert (folder / "grad_norm.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "grad_norm.pdf").read_bytes().startswith(b"%PDF")
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "grad_norm.parquet"), table)
    record = json.loads((folder / "grad_norm.json").read_text())
    assert record["caption"] == record["alt"] == "A caption."
    assert record["data"] == "grad_norm.parquet"
    assert record["runs"] == runs
    assert record["made"]["call"] == steady.made.call


def test_the_same_figure_is_the_same_bytes_and_keeps_its_place(table, steady, ax, tmp_path):
    plots.trace(steady, ax)
    for name in ("first", "second"):
        plots.publish(ax.figure, name, table, "A caption.", out=tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    plots.publish(ax.figure, "first", table, "A caption.", out=str(tmp_path))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    orders = [json.loads(before[f"{name}.json"])["order"] for name in ("first", "second")]
    assert orders == [0, 1]


def test_an_empty_out_writes_nothing(table, ax, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plots.publish(ax.figure, "name", table, "A caption.", out="") is ax.figure
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "a b", "a.png", "..", "-"])
def test_a_name_that_is_no_plain_file_name_is_refused(name, ax, tmp_path: Path):
    with pytest.raises(ValueError, match=r"name is .*expected letters, digits"):
        plots.publish(ax.figure, name, None, "", out=tmp_path / "inside")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("of", ["weights", "inputs"])
def test_a_spectrum_is_its_density_on_a_log_scale_with_the_ends_marked(of, cnn, images, ax):
    result = spectrum(cnn, images, [0, 1, 2, 3, 0, 1], of=of, k=3, steps=30)
    sure = result.converged.clone()
    sure[..., 2] = False
    result = dataclasses.replace(result, converged=sure)
    assert plots.spectrum(result, ax, name="SL", width=0.05) is ax
    x, y = drawn(ax)
    density = result.density(torch.from_numpy(x), 0.05)
    np.testing.assert_allclose(y, density if of == "weights" else density.mean(0), rtol=1e-6)
    assert ax.get_yscale() == "log" and ax.get_legend_handles_labels()[1] == ["SL"]
    for marks, values in zip(ax.collections, (result.eigenvalues, result.bottom), strict=True):
        middle = values if of == "weights" else values.nanmedian(0).values
        np.testing.assert_allclose(np.asarray(marks.get_offsets())[:, 0], middle)
        assert (np.asarray(marks.get_offsets())[:, 1] > ax.get_ylim()[0]).all()
    faces = ax.collections[0].get_facecolors()
    assert faces[0, 3] > 0 and (len(faces) < 3 or faces[2, 3] == 0)
    assert ("weight" if of == "weights" else "pixel") in ax.get_xlabel()


def test_a_wide_bell_is_drawn_down_to_the_end_of_the_scale(cnn, images, ax):
    """One width for several spectra may be a large part of the reach of one of them."""
    result = spectrum(cnn, images, [0, 1, 2, 3, 0, 1], k=3, steps=30)
    plots.spectrum(result, ax, width=0.2 * float(result.eigenvalues[0] - result.bottom[0]))
    _, y = drawn(ax)
    assert max(y[0], y[-1]) < ax.get_ylim()[0]


def test_a_spectrum_that_is_undefined_or_all_zero_is_drawn_empty_without_complaint(cnn, images, ax):
    flat = spectrum(Detached(cnn), images, None, of="inputs", k=2, steps=5)
    plots.spectrum(flat, ax)
    void = {
        name: torch.full_like(getattr(flat, name), torch.nan) for name in ("eigenvalues", "bottom", "ritz", "weights")
    }
    plots.spectrum(dataclasses.replace(flat, **void), ax)
    ax.figure.canvas.draw()


def test_spectra_on_shared_axes_keep_their_marks_and_one_scale(cnn, images):
    flat, steep = spectrum(cnn, images), spectrum(cnn, images, loss=lambda z, y: 1e4 * losses.cross_entropy(z, y))
    fig, axes = plt.subplots(1, 2, sharex=True, sharey=True)
    for ax, result in zip(axes, (flat, steep), strict=True):
        plots.spectrum(result, ax, width=1.0)
    fig.canvas.draw()
    tops = [ax.lines[0].get_ydata().max() for ax in axes]
    assert axes[0].get_ylim() == pytest.approx((1e-6 * max(tops), 3 * max(tops)))
    for ax in axes:
        for marks in ax.collections:
            heights = marks.get_offset_transform().transform(marks.get_offsets())[:, 1]
            box = ax.get_window_extent()
            assert (heights > box.y0).all() and (heights < box.y1).all()
    plt.close(fig)
