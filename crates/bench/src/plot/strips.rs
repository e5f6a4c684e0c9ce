//! Every figure as a mark, row by row: ours, and below it the reference's; a stroke is the median.

use super::axis::{LogAxis, name};
use super::svg::{Anchor, Svg, text_width};
use super::{COLOURS, Strip};
use crate::sample::Sample;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 20.0;
const TOP: f64 = 62.0;
const ROW: f64 = 64.0;

pub(super) fn draw(title: &str, unit: &str, strips: &[Strip]) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a handful of rows")]
    let place = |number: usize| TOP + ROW * number as f64;
    let bottom = place(strips.len());
    let widest = strips.iter().map(|strip| text_width(&words(strip), 12.0)).fold(WIDTH, f64::max);
    let right = widest + LEFT;
    let mut svg = Svg::new(right + LEFT, bottom + 46.0);
    svg.text((LEFT, 26.0), 15.0, Anchor::Start, "#000000", title);
    svg.mark(0, (LEFT + 6.0, 44.0), 4.0, COLOURS[0], false);
    svg.text((LEFT + 16.0, 48.0), 12.0, Anchor::Start, "#000000", "bhatti");
    svg.mark(1, (LEFT + 90.0, 44.0), 4.0, COLOURS[1], false);
    svg.text(
        (LEFT + 100.0, 48.0),
        12.0,
        Anchor::Start,
        "#000000",
        "what it is compared with, in the same run",
    );
    let all = strips.iter().flat_map(|strip| strip.ours.values.iter().chain(&strip.theirs.values)).copied();
    let axis = LogAxis::over(all, LEFT + 10.0, right - 10.0);
    for tick in axis.ticks() {
        let at = axis.place(tick);
        svg.line((at, TOP), (at, bottom), 1.0, "#e4e4e4");
        svg.text((at, bottom + 18.0), 12.0, Anchor::Middle, "#333333", &name(tick));
    }
    svg.text((right, bottom + 38.0), 12.0, Anchor::End, "#000000", unit);
    for (number, strip) in strips.iter().enumerate() {
        let y = place(number);
        // The name lies over the ticks' lines.
        svg.rect((LEFT, y + 2.0), text_width(&words(strip), 12.0), 17.0, "#ffffff");
        svg.text((LEFT, y + 15.0), 12.0, Anchor::Start, "#000000", &words(strip));
        figures(&mut svg, axis, 0, y + 30.0, &strip.ours);
        figures(&mut svg, axis, 1, y + 46.0, &strip.theirs);
        svg.line((LEFT, y + ROW - 4.0), (right, y + ROW - 4.0), 1.0, "#cccccc");
    }
    svg.end()
}

fn words(strip: &Strip) -> String {
    if strip.reference.is_empty() {
        return strip.name.clone();
    }
    format!("{} / {}", strip.name, strip.reference)
}

fn figures(svg: &mut Svg, axis: LogAxis, series: usize, y: f64, sample: &Sample) {
    if sample.values.is_empty() {
        return;
    }
    for value in &sample.values {
        svg.mark(series, (axis.place(*value), y), 3.5, COLOURS[series], true);
    }
    let middle = axis.place(sample.median());
    svg.line((middle, y - 7.0), (middle, y + 7.0), 2.0, "#000000");
}
