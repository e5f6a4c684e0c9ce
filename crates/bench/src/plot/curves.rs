//! One quantity against another: medians joined by a line, with bars from the least to the greatest.

use super::axis::{LogAxis, name};
use super::svg::{Anchor, Svg, text_width};
use super::{COLOURS, Curve};

const SIZE: (f64, f64) = (640.0, 360.0);
const LEFT: f64 = 70.0;
const TOP: f64 = 48.0;
const BELOW: f64 = 56.0;

pub(super) fn draw(title: &str, x: &str, y: &str, curves: &[Curve]) -> String {
    let longest = curves.iter().map(|curve| text_width(&curve.name, 12.0)).fold(0.0, f64::max);
    let (right, bottom) = (LEFT + SIZE.0, TOP + SIZE.1);
    let width = (right + longest + 60.0).max(text_width(title, 15.0) + 40.0);
    let mut svg = Svg::new(width, bottom + BELOW);
    svg.text((20.0, 26.0), 15.0, Anchor::Start, "#000000", title);
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let across = LogAxis::over(points().map(|(x, _)| *x), LEFT, right);
    let up = LogAxis::over(points().flat_map(|(_, sample)| sample.values.iter().copied()), bottom, TOP);
    for tick in across.ticks() {
        let at = across.place(tick);
        svg.line((at, TOP), (at, bottom), 1.0, "#e4e4e4");
        svg.text((at, bottom + 18.0), 12.0, Anchor::Middle, "#333333", &name(tick));
    }
    for tick in up.ticks() {
        let at = up.place(tick);
        svg.line((LEFT, at), (right, at), 1.0, "#e4e4e4");
        svg.text((LEFT - 8.0, at + 4.0), 12.0, Anchor::End, "#333333", &name(tick));
    }
    svg.line((LEFT, bottom), (right, bottom), 1.2, "#333333");
    svg.line((LEFT, TOP), (LEFT, bottom), 1.2, "#333333");
    svg.text((f64::midpoint(LEFT, right), bottom + 42.0), 12.0, Anchor::Middle, "#000000", x);
    svg.text((20.0, TOP - 8.0), 12.0, Anchor::Start, "#000000", y);
    for (number, curve) in curves.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let places: Vec<(f64, f64)> =
            curve.points.iter().map(|(x, sample)| (across.place(*x), up.place(sample.median()))).collect();
        svg.path(&places, colour);
        for (place, (_, sample)) in places.into_iter().zip(&curve.points) {
            svg.line((place.0, up.place(sample.min())), (place.0, up.place(sample.max())), 1.2, colour);
            svg.mark(number, place, 4.0, colour, false);
        }
        #[expect(clippy::cast_precision_loss, reason = "a handful of curves")]
        let at = TOP + 12.0 + 22.0 * number as f64;
        svg.mark(number, (right + 22.0, at), 4.0, colour, false);
        svg.text((right + 34.0, at + 4.0), 12.0, Anchor::Start, "#000000", &curve.name);
    }
    svg.end()
}
